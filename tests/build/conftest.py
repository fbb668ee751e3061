"""What the tests of building and installing share: a copy of this tree, and new environments."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_SOURCES = (".git", ".venv*", "build", "dist", "*.egg-info", "*.so", "__pycache__", ".*_cache")

# A perfect score here needs the operator, its gradient's registration and both native modules.
SMOKE_TEST = """
import torch, perfconv
x, w = torch.randn(2, 8, 9, 7), torch.randn(4, 8, 3, 3)
y = perfconv.perforated_conv2d(x, w, torch.ones(2, 1, 9, 7, dtype=torch.bool), padding=1)
torch.testing.assert_close(y, torch.nn.functional.conv2d(x, w, padding=1))
print(perfconv.build_info()["version"], perfconv.__file__)
"""


@cache
def without_network() -> tuple[str, ...]:
    """A command prefix that cuts off the network, where this system permits one."""
    for prefix in (("unshare", "-n"), ("unshare", "-rn")):
        if shutil.which("unshare") and not subprocess.run([*prefix, "true"]).returncode:
            return prefix
    return ()


@dataclass(frozen=True)
class Environment:
    """A new virtual environment that sees the packages of the running one, but no perfconv."""

    folder: Path

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def run(self, *command: str, cwd: Path, offline: bool = True) -> str:
        """Runs a command with this environment active; its output. Fails the test if it fails."""
        variables = {**os.environ, "VIRTUAL_ENV": str(self.folder), "MAX_JOBS": "2"}
        variables["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        variables.pop("PYTHONPATH", None)
        if offline:
            variables["PIP_NO_INDEX"] = "1"
            command = (*without_network(), *command)
        result = subprocess.run(
            command,
            cwd=cwd,
            env=variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}"
        return result.stdout

    def pip(self, *arguments: str, cwd: Path) -> str:
        return self.run(self.python, "-m", "pip", *arguments, cwd=cwd)

    def smoke_test(self) -> Path:
        """Uses the installed package from an empty folder; the folder it was imported from."""
        empty = self.folder / "empty"
        empty.mkdir(exist_ok=True)
        output = self.run(self.python, "-c", SMOKE_TEST, cwd=empty)
        return Path(output.split()[-1]).parent


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=False, symlinks=True)
    made = Environment(folder)
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    # A path in a .pth file adds the packages there, but not what their own .pth files add: the
    # running environment's editable perfconv stays out of sight.
    Path(site, "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


@pytest.fixture(scope="session")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this tree without anything built; later builds in it reuse earlier objects."""
    tree = tmp_path_factory.mktemp("source") / "perfconv"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_SOURCES))
    return tree


@pytest.fixture(scope="session")
def build_distribution(
    source_tree: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Builds "wheel" or "sdist" of the source tree as a frontend does, once; the file's path."""
    folder = tmp_path_factory.mktemp("distributions")

    @cache
    def build(kind: str) -> Path:
        code = (
            "import sys; sys.path.insert(0, 'build_support'); import perfconv_build as backend; "
            f"print(); print(backend.build_{kind}({str(folder)!r}))"
        )
        command: Sequence[str] = [sys.executable, "-c", code]
        result = subprocess.run(command, cwd=source_tree, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        return folder / result.stdout.split()[-1]

    return build
