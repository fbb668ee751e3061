"""The kernels of every instruction set this processor has, chosen by PERFCONV_ISA.

The variable is read once per process: the named problems run again in a process for each.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import perfconv

TESTS = Path(__file__).resolve().parent
ISAS = ("portable", "avx2", "avx512", "avx512_bf16")


def available() -> tuple[str, ...]:
    """Each instruction set contains the ones before it; the last is not always the one chosen."""
    isa = perfconv.build_info()["cpu_isa"]
    processor = Path("/proc/cpuinfo")
    if "PERFCONV_ISA" not in os.environ and processor.exists():
        isa = "avx512_bf16" if "avx512_bf16" in processor.read_text() else isa
    return ISAS[: ISAS.index(isa) + 1]


@pytest.mark.parametrize("isa", ISAS)
def test_oracle(isa: str) -> None:
    if isa not in available():
        pytest.skip(f"this processor has no {isa}, or PERFCONV_ISA forbids it")
    command = [
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider",
        "-c", str(TESTS.parents[1] / "pyproject.toml"), "--rootdir", str(TESTS.parents[1]),
        str(TESTS / "test_conv.py"), str(TESTS / "test_conv_properties.py"),
        "-m", "not slow", "-k", "(against_oracle and implicit_gemm) or tile",
    ]  # fmt: skip
    package = str(Path(perfconv.__file__).parents[1])
    result = subprocess.run(
        command,
        env={**os.environ, "PERFCONV_ISA": isa, "PYTHONPATH": package},
        cwd=package,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]
    assert f"perfconv: {isa} kernels" in result.stdout
