"""PEP 517 backend of perfconv: setuptools, after a look at what is installed already.

A plain ``pip install .`` builds in an isolated environment, which hides the torch that the
extension is for; naming torch in ``requires`` would download another one of several GB. The
libraries use the LibTorch stable ABI, so any torch >= 2.10 will do to compile against: this
backend takes the headers of one that is there and asks for a download only of what is missing.
"""

import importlib.machinery
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

NEEDS = {"setuptools": "70.1", "cmake": "3.22", "ninja": "1.10"}
TORCH = "torch>=2.10"


def require_linux() -> None:
    if not sys.platform.startswith("linux"):
        sys.exit(f"perfconv: only Linux is supported, this is {sys.platform}.")


@cache
def search_path(python: str) -> list[str]:
    """sys.path of an interpreter as it is outside the isolation of a build."""
    hidden = ("PYTHONPATH", "PYTHONNOUSERSITE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    result = subprocess.run(
        [python, "-c", "import sys; print(*sys.path[1:], sep='\\n')"],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
    )
    return result.stdout.splitlines() if result.returncode == 0 else []


def environment_roots() -> Iterator[Path]:
    """Folders of environments that may be the one installed into."""
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX"):
        if os.environ.get(name):
            yield Path(os.environ[name])
    yield Path(".venv").resolve()
    for entry in os.environ.get("PATH", "").split(os.pathsep):
        if entry and (Path(entry).parent / "pyvenv.cfg").exists():
            yield Path(entry).parent


def interpreters() -> list[str]:
    """The running interpreter, then those of active environments, without repetition.

    pip runs this backend with the interpreter it installs for; uv and ``python -m build`` run it in
    an environment of their own, so that the target shows only through variables and PATH.
    """
    candidates = [root / "bin" / "python" for root in environment_roots()]
    found = [sys.executable, *(str(python) for python in candidates if python.exists())]
    return list(dict.fromkeys(found))


def find_torch(path: list[str]) -> Path | None:
    """The 'torch' folder on a search path, if it has stable-ABI headers. torch is not imported."""
    spec = importlib.machinery.PathFinder.find_spec("torch", path)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    return folder if (folder / "include/torch/csrc/stable/ops.h").exists() else None


def torch_dir() -> Path | None:
    """The 'torch' folder to take headers from, or None."""
    if os.environ.get("PERFCONV_TORCH_DIR"):
        return Path(os.environ["PERFCONV_TORCH_DIR"])
    paths = [list(sys.path), *(search_path(python) for python in interpreters())]
    return next((folder for path in paths if (folder := find_torch(path))), None)


def version_numbers(text: str) -> tuple[int, ...]:
    """Major and minor number: enough to compare with NEEDS."""
    return tuple(map(int, re.findall(r"\d+", text)[:2]))


def has(name: str, minimum: str, path: list[str]) -> bool:
    """Whether a package (for cmake and ninja: or a program) of that version is there.

    make will do instead of ninja.
    """
    versions = [found.version for found in importlib.metadata.distributions(name=name, path=path)]
    if not versions and name in ("cmake", "ninja") and shutil.which(name):
        result = subprocess.run([name, "--version"], capture_output=True, text=True)
        versions = [result.stdout]
    if versions and version_numbers(versions[0]) >= version_numbers(minimum):
        return True
    return name == "ninja" and shutil.which("make") is not None


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    require_linux()
    path = search_path(sys.executable)
    missing = [f"{name}>={floor}" for name, floor in NEEDS.items() if not has(name, floor, path)]
    return missing if torch_dir() else [*missing, TORCH]


get_requires_for_build_editable = get_requires_for_build_wheel


def get_requires_for_build_sdist(config_settings: dict | None = None) -> list[str]:
    path = search_path(sys.executable)
    floor = NEEDS["setuptools"]
    return [] if has("setuptools", floor, path) else [f"setuptools>={floor}"]


def __getattr__(name: str) -> object:
    """build_wheel, build_editable, build_sdist and prepare_metadata_for_*: setuptools' own."""
    if not name.startswith(("build_", "prepare_metadata_")):
        raise AttributeError(name)
    # After the isolated environment's own entries, so that what was asked for above wins.
    sys.path += [entry for entry in search_path(sys.executable) if entry not in sys.path]
    import setuptools.build_meta

    return getattr(setuptools.build_meta, name)
