"""What the wheel holds, and that it works in a new environment outside the source tree."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = {".py", ".pyi", ".typed", ".html", ".jinja", ".json", ".npz", ".safetensors"}


@pytest.fixture(scope="module")
def wheel(build_distribution: Callable[[str], Path]) -> Path:
    return build_distribution("wheel")


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


def test_native_libraries_are_in(names: list[str]) -> None:
    libraries = [Path(name).name for name in names if name.endswith(".so")]
    assert "libperfconv_cpu.so" in libraries
    assert len([name for name in libraries if name.startswith("_C.")]) == 1


def test_every_file_of_the_package_is_in(names: list[str]) -> None:
    files = (path for path in (ROOT / "perfconv").rglob("*") if path.suffix in SHIPPED)
    expected = {str(path.relative_to(ROOT)) for path in files}
    weights = {"perfconv/models/hed_gates.npz", "perfconv/train/scenes_parser.safetensors"}
    assert {"perfconv/py.typed", *weights} <= expected
    assert expected <= set(names)


def test_nothing_else_is_in(names: list[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not re.fullmatch(r"perfconv(-.*\.dist-info)?", top)} == set()
    assert not [name for name in names if "test" in Path(name).parts or "tests" in name.split("/")]
    assert any(name.endswith("licenses/LICENSE") or name.endswith("/LICENSE") for name in names)


def test_no_paths_of_the_building_machine(wheel: Path, source_tree: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    places = [str(source_tree), str(Path.home()) + "/", "/site-packages/torch"]
    for name in archive.namelist():
        content = archive.read(name)
        for place in places:
            assert place.encode() not in content, f"{name} holds the path {place}"


def test_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 8 * 2**20


def test_wheel_works_elsewhere(environment, wheel: Path, tmp_path: Path) -> None:
    environment.pip("install", str(wheel), cwd=tmp_path)
    assert environment.folder in environment.smoke_test().parents
    output = environment.run(str(environment.folder / "bin" / "perfconv"), "check", cwd=tmp_path)
    assert "FAIL" not in output
