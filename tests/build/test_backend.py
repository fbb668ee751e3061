"""The in-tree build backend: what it asks for, and where it finds torch."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build_support"))
import perfconv_build as backend  # noqa: E402

STABLE_HEADER = "include/torch/csrc/stable/ops.h"


def make_torch(folder: Path, *, has_stable_headers: bool = True) -> Path:
    """A folder that looks like an installed torch to the search."""
    torch = folder / "torch"
    header = torch / STABLE_HEADER
    header.parent.mkdir(parents=True)
    (torch / "__init__.py").touch()
    if has_stable_headers:
        header.touch()
    return torch


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No torch anywhere: not named, not beside the interpreter, not in an active environment."""
    for name in ("PERFCONV_TORCH_DIR", "VIRTUAL_ENV", "CONDA_PREFIX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(backend, "interpreters", list)
    return monkeypatch


def test_complete_environment_needs_nothing() -> None:
    assert backend.get_requires_for_build_wheel() == []
    assert backend.get_requires_for_build_editable() == []
    assert backend.get_requires_for_build_sdist() == []


def test_asks_for_torch_only_when_none_is_found(bare: pytest.MonkeyPatch) -> None:
    assert backend.get_requires_for_build_wheel() == [backend.TORCH]


def test_asks_for_what_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "NEEDS", {"setuptools": "9999.1", "cmake": "3.22"})
    assert backend.get_requires_for_build_wheel() == ["setuptools>=9999.1"]
    assert backend.get_requires_for_build_sdist() == ["setuptools>=9999.1"]


def test_named_torch_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERFCONV_TORCH_DIR", str(tmp_path))
    assert backend.torch_dir() == tmp_path


def test_own_path_comes_before_other_interpreters(tmp_path: Path, bare: pytest.MonkeyPatch) -> None:
    first, second = make_torch(tmp_path / "first"), make_torch(tmp_path / "second")
    bare.setattr(backend, "interpreters", lambda: ["other-python"])
    bare.setattr(backend, "search_path", lambda python: [str(second.parent)])
    assert backend.torch_dir() == second
    bare.setattr(sys, "path", [str(first.parent)])
    assert backend.torch_dir() == first


def test_torch_without_stable_headers_is_passed_over(
    tmp_path: Path, bare: pytest.MonkeyPatch
) -> None:
    old = make_torch(tmp_path / "old", has_stable_headers=False)
    bare.setattr(sys, "path", [str(old.parent)])
    assert backend.torch_dir() is None


def test_interpreters_of_active_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("active", "conda", "on-path"):
        python = tmp_path / name / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.touch()
        (tmp_path / name / "pyvenv.cfg").touch()
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "active"))
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path / "conda"))
    monkeypatch.setenv("PATH", f"{tmp_path}/on-path/bin:{tmp_path}/active/bin:/nowhere")
    monkeypatch.chdir(tmp_path)
    found = backend.interpreters()
    expected = [f"{tmp_path}/{name}/bin/python" for name in ("active", "conda", "on-path")]
    assert found == [sys.executable, *expected]


@pytest.mark.parametrize(
    ("found", "floor", "is_enough"),
    [
        ("84.2.1", "70.1", True),
        ("70.1", "70.1", True),
        ("65.5.0", "70.1", False),
        ("3.9.0", "3.22", False),
        ("3.22.1", "3.22", True),
        ("cmake version 3.25.1\n", "3.22", True),
        ("1.13.0.git.kitware", "1.10", True),
    ],
)
def test_versions_compare_as_numbers(found: str, floor: str, is_enough: bool) -> None:
    assert (backend.version_numbers(found) >= backend.version_numbers(floor)) is is_enough


def test_program_on_path_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "cmake"
    program.write_text("#!/bin/sh\necho cmake version 3.21.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert not backend.has("cmake", "3.22", [])
    program.write_text("#!/bin/sh\necho cmake version 3.25.1\n")
    assert backend.has("cmake", "3.22", [])


def test_make_will_do_instead_of_ninja(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not backend.has("ninja", "1.10", [])
    (tmp_path / "make").touch(mode=0o755)
    assert backend.has("ninja", "1.10", [])


def test_other_platforms_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SystemExit, match=r"^perfconv: only Linux is supported, this is darwin\.$"):
        backend.get_requires_for_build_wheel()


def test_hooks_are_setuptools_own() -> None:
    import setuptools.build_meta

    assert backend.build_wheel is setuptools.build_meta.build_wheel
    with pytest.raises(AttributeError):
        _ = backend.no_such_hook
