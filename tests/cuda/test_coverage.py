"""Every kernel of the product ran on the emulator. Runs last (conftest.py)."""

import subprocess

import pytest
from cuda_backend import Backend, refuse


def demangled(names: set[str]) -> list[str]:
    result = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True)
    return sorted(result.stdout.splitlines())


def test_every_kernel_was_launched(backend: Backend, is_whole_suite: bool) -> None:
    if backend.emulator is None:
        pytest.skip("about the emulated library")
    if not is_whole_suite:
        pytest.skip("only a part of tests/cuda was run")
    launched = {line.split()[0] for line in backend.emulator.text("launched").splitlines()}
    kernels = {line.split()[0] for line in backend.emulator.text("kernels").splitlines()}
    assert kernels, "the emulated library has no kernels"
    never = kernels - launched
    if never:
        names = "\n".join(demangled(never))
        refuse("PERFCONV_REQUIRE_EMULATOR", f"kernels that no test launches:\n{names}\n")
