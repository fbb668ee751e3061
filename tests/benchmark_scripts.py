"""Imports the scripts of benchmarks/, which are no package, for the length of a test."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def load_scripts(monkeypatch: pytest.MonkeyPatch, *names: str) -> dict[str, ModuleType]:
    """The scripts of these names, imported in this order under the names that they use."""
    monkeypatch.syspath_prepend(str(FOLDER))
    loaded = {}
    for name in names:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded[name] = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, loaded[name])
        spec.loader.exec_module(loaded[name])
    return loaded
