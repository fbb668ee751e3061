"""Importing perfconv: what it loads, and what it says when something is not there."""

import importlib.machinery
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import perfconv
from perfconv import _ext

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, *, path: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess:
    """Runs ``code`` in a new interpreter with ``path`` before everything else."""
    script = f"import sys\nif {path!r}: sys.path.insert(0, {path!r})\n{code}"
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


@pytest.fixture
def unbuilt_tree(tmp_path: Path) -> Path:
    """A source tree whose native libraries were never built."""
    tree = tmp_path / "tree"
    (tree / "perfconv").mkdir(parents=True)
    (tree / "CMakeLists.txt").touch()
    (tree / "perfconv" / "__init__.py").write_text("from perfconv import _ext\n")
    (tree / "perfconv" / "_ext.py").write_text((ROOT / "perfconv" / "_ext.py").read_text())
    return tree


def test_importing_does_not_initialise_cuda() -> None:
    result = python("import perfconv, torch; print(torch.cuda.is_initialized())")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["False"]


def test_importing_does_not_import_the_compiler() -> None:
    """torch._dynamo and what it needs take longer than all of perfconv."""
    result = python(
        "import torch\nbefore = {*sys.modules}\nimport perfconv\n"
        "heavy = {'torch._dynamo', 'sympy', 'numpy', 'matplotlib', 'PIL'}\n"
        "print(heavy & {*sys.modules} - before)"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["set()"]


def test_every_part_is_there_after_one_import() -> None:
    result = python("import perfconv as p; print(p.models.pag_resnet50, p.data.Sample, p.viz.save)")
    assert result.returncode == 0, result.stderr


def test_unbuilt_tree_that_shadows_an_installation(unbuilt_tree: Path) -> None:
    result = python("import perfconv", path=str(unbuilt_tree))
    assert result.returncode != 0
    message = result.stderr.splitlines()[-1]
    installed, tree = Path(perfconv.__file__).parent, unbuilt_tree
    assert message.startswith(f"ImportError: perfconv: Python imports the source tree {tree}")
    assert f"shadows the installed package in {installed}" in message
    assert "another directory" in message
    assert "pip install -e ." in message


def test_unbuilt_tree_without_an_installation(
    unbuilt_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(unbuilt_tree), "/nowhere"])
    monkeypatch.setattr(sys, "meta_path", [importlib.machinery.PathFinder])
    message = _ext.missing_message(unbuilt_tree / "perfconv")
    assert str(unbuilt_tree) in message
    assert "no other perfconv is installed" in message
    assert "pip install -e ." in message


def test_damaged_installation(tmp_path: Path) -> None:
    message = _ext.missing_message(tmp_path / "site-packages" / "perfconv")
    assert "no native libraries for this Python" in message
    assert "Install it again" in message


def test_libraries_of_another_python_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "libperfconv_cpu.so").touch()
    (tmp_path / "_C.cpython-27-x86_64-linux-gnu.so").touch()
    assert not _ext.is_built(tmp_path)


def test_build_info() -> None:
    info = perfconv.build_info()
    assert info["version"] == "0.1.0"
    assert info["torch_target"] == "2.10"
    assert info["torch_runtime"] == torch.__version__
    assert all(isinstance(value, str) for value in info.values())


def test_cuda_state_is_explained() -> None:
    assert perfconv.has_cuda() is (perfconv.cuda_error is None)
    if not perfconv.has_cuda():
        assert perfconv.build_info()["cuda_error"] == perfconv.cuda_error
        assert "CUDA" in perfconv.cuda_error


def test_cuda_library_is_refused_by_a_torch_without_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ext, "CUDA_LIBRARY", tmp_path / "libperfconv_cuda.so")
    assert "built without CUDA" in _ext.load_cuda()
    _ext.CUDA_LIBRARY.touch()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "has no CUDA support" in _ext.load_cuda()
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "does not load" in _ext.load_cuda()


@pytest.mark.parametrize(
    ("built", "running", "warns"), [("13.0.88", "13.2", False), ("13.0.88", "12.8", True)]
)
def test_cuda_versions_are_compared_by_major(built: str, running: str, warns: bool) -> None:
    message = _ext.cuda_version_warning(built, running)
    assert (message is not None) is warns
    assert message is None or (built in message and running in message)
