"""Objects compiled for one instruction set must not lend functions to the rest of the library.

The linker keeps one copy of an inline function that several objects define. If that copy came from
an object compiled for AVX-512, a processor without it would crash in code that was never chosen. If
it came from an object whose kernels are of sm_90a, a launch would find no kernel on another GPU.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def isa_objects() -> list[Path]:
    """Objects of the per-ISA sources in the build folder of an in-place or editable build."""
    return sorted((ROOT / "build").glob("cmake-*/**/csrc/cpu/kernels/*_avx*.cpp.o"))


def cuda_objects() -> list[Path]:
    return sorted((ROOT / "build").glob("cmake-*/**/csrc/cuda/kernels/*.cu.o"))


def shared_functions(path: Path) -> set[str]:
    """What the object defines and the linker may replace by another object's definition."""
    result = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in result.stdout.splitlines() if line[0] != " "]
    return {name for _, kind, name in rows if kind in "WuV" and not name.startswith("DW.ref.")}


@pytest.mark.skipif(not isa_objects(), reason="no build folder with x86 kernels in this tree")
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
@pytest.mark.parametrize("path", isa_objects(), ids=lambda path: path.name)
def test_no_shared_functions(path: Path) -> None:
    shared = shared_functions(path)
    assert not shared, f"{path.name} defines functions that other objects may define too"


@pytest.mark.skipif(not cuda_objects(), reason="no build folder with CUDA kernels in this tree")
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_kernels_of_one_gpu_share_no_function_with_the_others() -> None:
    of_sm90a: set[str] = set()
    of_others: set[str] = set()
    for path in cuda_objects():
        group = of_sm90a if path.name.endswith("_sm90a.cu.o") else of_others
        group |= shared_functions(path)
    assert of_sm90a and of_others
    assert not of_sm90a & of_others
