"""Who may import whom, in Python and in C++ (the rules are drawn in ARCHITECTURE.md).

A new edge needs an architecture decision record under docs/adr.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ROOT / "perfconv"
NATIVE = ROOT / "csrc"

# Part of the package: the parts of the package it may import. "*" is all but the command line.
MAY_IMPORT = {
    "_ext": set(),
    "ops": {"_ext"},
    "nn": {"_ext", "ops"},
    "losses": {"ops.mask"},
    "metrics": {"ops.mask"},
    "schedules": {"ops.mask"},
    "data": set(),
    "flops": {"ops", "nn"},
    "viz": {"ops", "nn"},
    "onnx": {"ops"},
    "convert": {"ops", "nn"},
    "truncate": {"nn", "convert", "flops"},
    "models": {"ops", "nn", "convert"},
    "distill": {"ops", "nn", "convert", "models", "losses"},
    "train": {"*"},
    "_bench": {"*"},
    "cli": {"*", "cli"},
    "__init__": {"*"},
    "__main__": {"cli"},
}
FOREIGN = {"tests", "benchmarks", "examples"}


def python_files() -> list[Path]:
    return sorted(PYTHON.rglob("*.py"))


def module_name(path: Path) -> str:
    """Dotted name inside perfconv: ops/mask.py is "ops.mask", ops/__init__.py is "ops"."""
    parts = path.relative_to(PYTHON).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def imported_names(path: Path) -> Iterator[str]:
    """Full dotted names of everything a file imports, relative imports resolved."""
    package = ("perfconv", *path.relative_to(PYTHON).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def is_allowed(importer: str, imported: str) -> bool:
    """Whether part ``importer`` may import ``imported`` (dotted names inside perfconv)."""
    part = importer.split(".")[0]
    target = imported.split(".")[0]
    if target == part or imported == "_C":
        return imported != "_C" or part == "_ext"
    allowed = MAY_IMPORT[part]
    if "*" in allowed:
        return target != "cli" or "cli" in allowed
    return any(imported == name or imported.startswith(name + ".") for name in allowed)


@pytest.mark.parametrize("path", python_files(), ids=module_name)
def test_python_imports(path: Path) -> None:
    importer = module_name(path)
    assert importer.split(".")[0] in MAY_IMPORT, f"{importer} has no place in MAY_IMPORT"
    for name in imported_names(path):
        first, _, rest = name.partition(".")
        assert first not in FOREIGN, f"{importer} imports {name}"
        if first == "perfconv" and rest:
            part_of_package = rest.split(".")[0]
            if part_of_package in MAY_IMPORT or part_of_package == "_C":
                assert is_allowed(importer, rest), f"{importer} must not import perfconv.{rest}"
            else:  # a public name of perfconv/__init__.py: only those above everything may use it
                assert "*" in MAY_IMPORT[importer.split(".")[0]], f"{importer} imports {name}"


def test_reference_needs_torch_only() -> None:
    path = PYTHON / "ops" / "reference.py"
    if not path.exists():
        pytest.skip("no ops/reference.py")
    assert not [name for name in imported_names(path) if name.startswith("perfconv")]


@pytest.mark.parametrize("path", python_files(), ids=module_name)
def test_only_one_door_to_the_native_side(path: Path) -> None:
    text = path.read_text()
    name = module_name(path)
    assert "load_library" not in text or name == "_ext"
    assert "torch.ops.perfconv" not in text or name.split(".")[0] == "ops"
    assert "is_cuda" not in text, "the dispatcher chooses by device, not Python"


# ---- C++ -----------------------------------------------------------------------------------------

INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}

# Folder (longest prefix wins): the folders of csrc it may include, and whether torch is among them.
MAY_INCLUDE = {
    "library.cpp": (("core/",), True),
    "python/": (("cpu/", "core/", "cuda/planner.h"), False),
    "core/": (("core/",), True),
    "cpu/": (("core/", "cpu/"), True),
    "cpu/kernels/": (("core/", "cpu/kernels/"), False),
    "cuda/": (("core/", "cuda/"), True),
    "cuda/kernels/": (("core/", "cuda/kernels/", "cuda/device/"), False),
    "cuda/device/": (("core/", "cuda/kernels/launch.h", "cuda/device/"), False),
    "cuda/planner": (("core/", "cuda/planner"), False),
}
# Headers of core that kernels share with the host, without torch.
TORCH_FREE_CORE = {"core/geometry.h", "core/element.h"}


def native_files() -> list[str]:
    files = (path for path in NATIVE.rglob("*") if path.suffix in SUFFIXES)
    return sorted(str(path.relative_to(NATIVE)) for path in files)


def is_torch(header: str) -> bool:
    return header.split("/")[0] in {"torch", "ATen", "c10", "caffe2"}


@pytest.mark.parametrize("name", native_files())
def test_native_includes(name: str) -> None:
    rule = max((prefix for prefix in MAY_INCLUDE if name.startswith(prefix)), key=len)
    folders, may_use_torch = MAY_INCLUDE[rule]
    may_use_torch = may_use_torch and name not in TORCH_FREE_CORE
    for header in INCLUDE.findall((NATIVE / name).read_text()):
        assert not header.endswith((".cpp", ".cu")), f"{name} includes {header}"
        assert not header.startswith(("ATen/", "c10/")), f"{name}: stable ABI only, not {header}"
        assert may_use_torch or not is_torch(header), f"{name} must not include {header}"
        if not may_use_torch and header.startswith("core/"):
            assert header in TORCH_FREE_CORE, f"{name} must not include {header}"
        if (NATIVE / header).exists():
            assert header.startswith(folders), f"{name} must not include {header}"


# ---- the rules are tested themselves -------------------------------------------------------------


@pytest.mark.parametrize(
    ("importer", "imported", "expected"),
    [
        ("ops.conv", "_ext.build_info", True),
        ("ops.conv", "ops.mask.density", True),
        ("ops.conv", "nn.conv", False),
        ("losses.density", "ops.mask.density", True),
        ("losses.density", "ops.conv", False),
        ("losses.density", "ops.masking", False),
        ("nn.conv", "_C.build_info", False),
        ("_ext", "_C", True),
        ("models.hed", "cli.demo", False),
        ("train.loop", "cli", False),
        ("cli.demo", "models.hed", True),
        ("__init__", "nn", True),
    ],
)
def test_the_rules(importer: str, imported: str, expected: bool) -> None:
    if imported.startswith("_C"):
        imported = "_C"
    assert is_allowed(importer, imported) is expected
