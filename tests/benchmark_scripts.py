"""Imports the modules of the benchmark suite by their names."""

import importlib
from types import ModuleType


def load_scripts(*names: str) -> dict[str, ModuleType]:
    return {name: importlib.import_module(f"perfconv._bench.{name}") for name in names}
