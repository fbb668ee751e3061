"""Objects compiled for one instruction set must not lend functions to the rest of the library.

The linker keeps one copy of an inline function that several objects define. If that copy came from
an object compiled for AVX-512, a processor without it would crash in code that was never chosen.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def isa_objects() -> list[Path]:
    """Objects of the per-ISA sources in the build folder of an in-place or editable build."""
    return sorted((ROOT / "build").glob("cmake-*/**/csrc/cpu/kernels/*_avx*.cpp.o"))


@pytest.mark.skipif(not isa_objects(), reason="no build folder with x86 kernels in this tree")
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
@pytest.mark.parametrize("path", isa_objects(), ids=lambda path: path.name)
def test_no_shared_functions(path: Path) -> None:
    result = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True)
    rows = [line.split(maxsplit=2) for line in result.stdout.splitlines() if line[0] != " "]
    shared = [name for _, kind, name in rows if kind in "WuV" and not name.startswith("DW.ref.")]
    assert shared == [], f"{path.name} defines functions that other objects may define too"
