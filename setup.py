"""Runs CMake; every compile option is in CMakeLists.txt.

Environment: PERFCONV_CUDA=auto|0|1 (or FORCE_CUDA=1), TORCH_CUDA_ARCH_LIST, CUDA_HOME, MAX_JOBS,
CMAKE_ARGS, DEBUG=1, PERFCONV_TORCH_DIR (the 'torch' folder to build against), PERFCONV_BUILD_DIR
(where CMake works; the default keeps what can be reused in build/).
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_support"))
from perfconv_build import require_linux, torch_dir  # noqa: E402


def find_program(name: str) -> str | None:
    """An executable of the Python package of that name, else one on PATH."""
    spec = importlib.util.find_spec(name)
    if spec and spec.origin:
        program = Path(spec.origin).parent / "data" / "bin" / name
        if program.is_file():
            return str(program)
    return shutil.which(name)


def cuda_mode(environment: Mapping[str, str]) -> str:
    forced = "1" if environment.get("FORCE_CUDA") == "1" else "auto"
    value = environment.get("PERFCONV_CUDA", "").lower() or forced
    modes = {"0": "OFF", "1": "ON", "auto": "AUTO"}
    if value not in modes:
        sys.exit(f"perfconv: PERFCONV_CUDA must be 0, 1 or auto, got {value!r}.")
    return modes[value]


def listed_archs(text: str) -> list[str]:
    """TORCH_CUDA_ARCH_LIST ("8.0;9.0a;12.0+PTX") as CMake spells it."""
    archs = []
    for arch in filter(None, re.split(r"[;, ]+", text)):
        match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", arch)
        if not match:
            sys.exit(
                f"perfconv: TORCH_CUDA_ARCH_LIST must look like 8.0;9.0a;12.0+PTX, got {arch!r}."
            )
        archs.append(match[1] + match[2] + ("" if match[3] else "-real"))
    return archs


def visible_archs() -> list[str]:
    """The architectures of the GPUs of this machine; none without nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True)
    capabilities = sorted(set(result.stdout.split())) if result.returncode == 0 else []
    return [{"9.0": "90a"}.get(c, c.replace(".", "")) + "-real" for c in capabilities]


class CMakeBuild(build_ext):
    """Configures, builds and installs the native libraries into the package folder."""

    def run(self) -> None:
        require_linux()
        cmake = find_program("cmake")
        if cmake is None:
            sys.exit("perfconv: CMake >= 3.22 is needed (pip install cmake).")
        destination = ROOT if self.inplace else Path(self.build_lib).resolve()
        folder = os.environ.get("PERFCONV_BUILD_DIR", f"build/cmake-{sys.implementation.cache_tag}")
        build = ROOT / folder
        jobs = os.environ.get("MAX_JOBS") or str(self.parallel or os.cpu_count())
        (build / "CMakeCache.txt").unlink(missing_ok=True)  # options of an earlier build
        for library in (destination / "perfconv").glob("*.so"):  # such as its CUDA library
            library.unlink()
        self.call([cmake, "-S", str(ROOT), "-B", str(build), *self.options(destination)])
        self.call([cmake, "--build", str(build), "-j", jobs])
        self.call([cmake, "--install", str(build)])

    def options(self, destination: Path) -> list[str]:
        torch = torch_dir()
        if torch is None:
            sys.exit(
                "perfconv: no torch >= 2.10 found: install it first, or set PERFCONV_TORCH_DIR."
            )
        archs = listed_archs(os.environ.get("TORCH_CUDA_ARCH_LIST", "")) or visible_archs()
        build_type = "Debug" if os.environ.get("DEBUG") == "1" else "Release"
        options = [
            f"-DCMAKE_INSTALL_PREFIX={destination}",
            f"-DCMAKE_BUILD_TYPE={build_type}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPERFCONV_TORCH_DIR={torch}",
            f"-DPERFCONV_CUDA={cuda_mode(os.environ)}",
            f"-DPERFCONV_CUDA_ARCHS={';'.join(archs)}",
        ]
        ninja = find_program("ninja")
        if ninja:
            options += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        return options + shlex.split(os.environ.get("CMAKE_ARGS", ""))

    @staticmethod
    def call(command: list[str]) -> None:
        print("+", shlex.join(command), flush=True)
        if subprocess.run(command).returncode:
            sys.exit(
                "perfconv: the native build failed, see the messages above "
                "(PERFCONV_CUDA=0 builds the CPU kernels alone)."
            )


setup(ext_modules=[Extension("perfconv._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
