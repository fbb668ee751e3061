"""Every way to install perfconv, next to an installed torch and without network."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "options", [(), ("--no-build-isolation",)], ids=["isolated", "no-build-isolation"]
)
def test_pip_install(environment, source_tree: Path, options: tuple[str, ...]) -> None:
    output = environment.pip("install", *options, ".", cwd=source_tree)
    assert "Successfully installed perfconv" in output
    assert "Collecting torch" not in output
    assert environment.folder in environment.smoke_test().parents


@pytest.mark.parametrize(
    "options", [(), ("--no-build-isolation",)], ids=["isolated", "no-build-isolation"]
)
def test_pip_install_editable(environment, source_tree: Path, options: tuple[str, ...]) -> None:
    environment.pip("install", *options, "-e", ".", cwd=source_tree)
    assert environment.smoke_test() == source_tree / "perfconv"
    for library in (source_tree / "perfconv").glob("*.so"):
        library.unlink()


def test_pip_wheel(environment, source_tree: Path, tmp_path: Path) -> None:
    environment.pip("wheel", "--no-deps", "-w", str(tmp_path / "dist"), ".", cwd=source_tree)
    (wheel,) = (tmp_path / "dist").glob("perfconv-*.whl")
    environment.pip("install", str(wheel), cwd=tmp_path)
    assert environment.folder in environment.smoke_test().parents


def test_source_distribution(
    environment,
    build_distribution: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Compiled once more, for one architecture: the wheel's tests have all of them."""
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    archive = build_distribution("sdist")
    with tarfile.open(archive) as file:
        names = file.getnames()
    stem = names[0].split("/")[0]
    for needed in ("CMakeLists.txt", "build_support/perfconv_build.py", "csrc/library.cpp"):
        assert f"{stem}/{needed}" in names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    environment.pip("install", str(archive), cwd=tmp_path)
    assert environment.folder in environment.smoke_test().parents


def test_setup_py_in_place(environment, source_tree: Path) -> None:
    environment.run(environment.python, "setup.py", "build_ext", "--inplace", cwd=source_tree)
    built = list((source_tree / "perfconv").glob("*.so"))
    assert {path.name.split(".")[0] for path in built} >= {"_C", "libperfconv_cpu"}
    for library in built:
        library.unlink()


def test_uv_pip_install(environment, source_tree: Path) -> None:
    # uv sees no packages through a .pth file, and builds in an environment of its own, for which
    # it fetches setuptools: no dependencies, and with network. ("python -m uv" would install into
    # the environment of that python.)
    uv = pytest.importorskip("uv").find_uv_bin()
    environment.run(uv, "pip", "install", "--no-deps", ".", cwd=source_tree, offline=False)
    assert environment.folder in environment.smoke_test().parents


def test_environment_without_build_tools_names_them(environment, source_tree: Path) -> None:
    # Offline, what is missing cannot be fetched: the message must name it.
    code = (
        "import sys; sys.path.insert(0, 'build_support'); import perfconv_build as backend; "
        "backend.search_path = lambda python: []; import shutil; shutil.which = lambda name: None; "
        "print(backend.get_requires_for_build_wheel())"
    )
    output = environment.run(environment.python, "-c", code, cwd=source_tree)
    for name in ("setuptools", "cmake", "ninja"):
        assert name in output
