"""Compiles the native sources (syntax only) as machines other than this one would.

    python tools/check_portability.py [FOLDER]

Against the headers of the oldest supported torch, with g++ and with a cross compiler for aarch64
where there is one. FOLDER holds torch's ``include``; without it, the smallest wheel of that version
is downloaded (the one for macOS, about 80 MB: headers are the same) and its headers kept in build/.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = "2.10.0"
TARGET_VERSION = "0x020a000000000000"  # 2.10, as CMakeLists.txt sets it
CACHE = ROOT / "build" / f"torch-{VERSION}-headers"
WHEEL_TAGS = ["--platform", "macosx_11_0_arm64", "--python-version", "3.11"]
CROSS_COMPILERS = ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-g++-12")


def download_headers() -> None:
    """Fetches the wheel with pip and keeps its headers; raises CalledProcessError without one."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
        options = ["--no-deps", "--only-binary=:all:", *WHEEL_TAGS, "--dest", folder]
        subprocess.run([*pip, *options, f"torch=={VERSION}"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            headers = [name for name in archive.namelist() if name.startswith("torch/include/")]
            archive.extractall(CACHE, headers)


def find_headers() -> Path:
    if len(sys.argv) > 1:
        return Path(sys.argv[1])
    folder = CACHE / "torch" / "include"
    if not folder.exists():
        download_headers()
    return folder


def sources() -> list[Path]:
    """Everything but the kernels of one x86 instruction set, which need flags of their own."""
    folders = ("", "core", "cpu", "cpu/kernels")
    found = [path for folder in folders for path in sorted((ROOT / "csrc" / folder).glob("*.cpp"))]
    return [path for path in found if "_avx" not in path.name]


def failures(compiler: str, headers: Path) -> list[str]:
    """Names of the sources that ``compiler`` refuses; its messages go to the screen."""
    options = ["-std=c++20", "-fsyntax-only", "-fvisibility=hidden"]
    options += [f"-DTORCH_TARGET_VERSION={TARGET_VERSION}", f"-I{ROOT / 'csrc'}"]
    command = [compiler, *options, f"-isystem{headers}"]
    return [path.name for path in sources() if subprocess.run([*command, str(path)]).returncode]


def main() -> int:
    try:
        headers = find_headers()
    except subprocess.CalledProcessError:
        print(f"skipped: torch {VERSION} could not be downloaded")
        return 0
    cross_compiler = next(filter(shutil.which, CROSS_COMPILERS), None)
    if cross_compiler is None:
        print("skipped: aarch64, because no cross compiler is installed")
    any_failed = False
    for compiler in filter(None, ("g++", cross_compiler)):
        failed = failures(compiler, headers)
        any_failed = any_failed or bool(failed)
        verdict = f"FAILED: {', '.join(failed)}" if failed else f"{len(sources())} sources compile"
        print(f"{compiler}, headers of torch {VERSION}: {verdict}", flush=True)
    return 1 if any_failed else 0


if __name__ == "__main__":
    sys.exit(main())
