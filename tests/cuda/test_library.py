"""The CUDA library: it loads beside any torch, and has a kernel for every operator."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cuda_backend import refuse

import perfconv
from perfconv import _ext

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = _ext.CUDA_LIBRARY

LOAD = """
import sys
import torch
from perfconv import _ext  # the schemas: the CPU library
names = sys.argv[2:]
has = lambda name: torch._C._dispatch_has_kernel_for_dispatch_key(f"perfconv::{name}", "CUDA")
assert torch.version.cuda is not None or not any(map(has, names))
torch.ops.load_library(sys.argv[1])
print(*(name for name in names if has(name)))
"""


WITHOUT_TENSORS = {"set_break_even"}  # of no device


def schemas() -> list[str]:
    """The names of the operators in csrc/library.cpp, which is all of them."""
    text = (ROOT / "csrc" / "library.cpp").read_text()
    return re.findall(r'm\.def\(\s*"(\w+)\(', text)


@pytest.fixture
def library() -> Path:
    if not LIBRARY.exists():
        refuse("PERFCONV_REQUIRE_EMULATOR", "perfconv was built without CUDA kernels (no nvcc)")
    return LIBRARY


def test_every_schema_is_an_operator() -> None:
    names = schemas()
    assert len(names) == len(set(names)) >= 11
    assert all(hasattr(torch.ops.perfconv, name) for name in names)


def test_loads_and_registers_a_kernel_for_every_operator(library: Path) -> None:
    """In a process of its own, so that this one stays as perfconv loaded it."""
    names = set(schemas()) - WITHOUT_TENSORS
    command = [sys.executable, "-c", LOAD, str(library), *names]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) == names


def test_says_whether_cuda_is_there(library: Path) -> None:
    assert perfconv.has_cuda() is (torch.version.cuda is not None)
    info = perfconv.build_info()
    assert re.match(r"\d+\.\d+", info["cuda"])
    assert "80" in info["cuda_archs"]
    if torch.version.cuda is None:
        assert perfconv.cuda_error == f"torch {torch.__version__} has no CUDA support"


def test_emulated_operators_are_the_same(backend) -> None:
    """Same schemas, in another namespace: what is tested emulated is what runs on a GPU."""
    if backend.emulator is None:
        pytest.skip("about the emulated library")
    for name in schemas():
        ours = getattr(torch.ops.perfconv, name).default._schema
        emulated = getattr(backend.ops, name).default._schema
        assert str(emulated) == str(ours).replace("perfconv::", "perfconv_emulated::")


def test_older_architectures_are_refused(tmp_path: Path) -> None:
    """By CMake, in one sentence, before anything is compiled."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if cmake is None or shutil.which("nvcc") is None:
        pytest.skip("no cmake or no nvcc")
    folder = Path(torch.__file__).parent
    options = ["-DPERFCONV_CUDA=ON", "-DPERFCONV_CUDA_ARCHS=75-real", "-DPERFCONV_PYTHON=OFF"]
    command = [cmake, "-S", str(ROOT), "-B", str(tmp_path), f"-DPERFCONV_TORCH_DIR={folder}"]
    result = subprocess.run([*command, *options], capture_output=True, text=True)
    assert result.returncode != 0
    assert "compute capability 8.0 or newer" in " ".join(result.stderr.split())
