"""Loads the native libraries, once, and says what is there and why something is not.

The CPU library is required. The CUDA library is loaded when it was built and torch has CUDA; its
absence never breaks the CPU operators. Nothing here initialises CUDA.
"""

import importlib.machinery
import sys
import warnings
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parent
CPU_LIBRARY = PACKAGE / "libperfconv_cpu.so"
CUDA_LIBRARY = PACKAGE / "libperfconv_cuda.so"


def installed_elsewhere(package: Path = PACKAGE) -> Path | None:
    """Another perfconv with built libraries that Python could import, hidden by ``package``."""
    folders = [Path(entry or ".").resolve() / PACKAGE.name for entry in sys.path]
    for finder in sys.meta_path:  # editable installations bring finders of their own
        if finder is importlib.machinery.PathFinder:
            continue
        spec = finder.find_spec(PACKAGE.name, None)
        if spec is not None and spec.origin:
            folders.append(Path(spec.origin).resolve().parent)
    others = (folder for folder in folders if folder != package)
    return next((folder for folder in others if (folder / CPU_LIBRARY.name).exists()), None)


def missing_message(package: Path = PACKAGE) -> str:
    """What to tell someone whose perfconv has no built libraries."""
    if not (package.parent / "CMakeLists.txt").exists():
        return (
            f"perfconv: the installation in {package} has no native libraries for this Python. "
            "Install it again: pip install --force-reinstall --no-deps perfconv."
        )
    tree = package.parent
    other = installed_elsewhere(package)
    if other is None:
        return (
            f"perfconv: Python imports the source tree {tree}, whose native libraries are not "
            "built, and no other perfconv is installed. Build them: pip install -e . in that tree "
            "(or pip install . and run from another directory)."
        )
    return (
        f"perfconv: Python imports the source tree {tree}, whose native libraries are not built; "
        f"it shadows the installed package in {other}. Run from another directory, or build this "
        "tree: pip install -e ."
    )


def is_built(package: Path = PACKAGE) -> bool:
    """Whether ``package`` holds the native libraries, for this Python."""
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    has_module = any((package / f"_C{suffix}").exists() for suffix in suffixes)
    return has_module and (package / CPU_LIBRARY.name).exists()


def load_cpu() -> None:
    if not is_built():
        raise ImportError(missing_message())
    try:
        torch.ops.load_library(str(CPU_LIBRARY))
    except OSError as error:
        raise ImportError(
            f"perfconv: {CPU_LIBRARY} does not load with torch {torch.__version__}: "
            f"{error.__cause__ or error}. perfconv needs torch >= 2.10; install perfconv again "
            "beside the torch in use: pip install --force-reinstall --no-deps ."
        ) from error


def cuda_version_warning(built: str, running: str) -> str | None:
    """The text of a warning when the CUDA versions of perfconv and torch differ in major number."""
    if built.split(".")[0] == running.split(".")[0]:
        return None
    return (
        f"perfconv was built with CUDA {built}, torch {torch.__version__} with CUDA {running}: "
        f"the driver must support CUDA {built.split('.')[0]}. To be rid of this, build perfconv "
        "with the nvcc of torch's CUDA version."
    )


def load_cuda() -> str | None:
    """Loads the CUDA library; returns why it is absent, or None when it is loaded."""
    if not CUDA_LIBRARY.exists():
        return (
            "perfconv was built without CUDA kernels; with nvcc installed, "
            "PERFCONV_CUDA=1 pip install . builds them or says why not"
        )
    if torch.version.cuda is None:
        return f"torch {torch.__version__} has no CUDA support"
    try:
        torch.ops.load_library(str(CUDA_LIBRARY))
    except OSError as error:
        return f"{CUDA_LIBRARY} does not load: {error.__cause__ or error}"
    message = cuda_version_warning(_C.build_info()["cuda"], torch.version.cuda)
    if message:
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    return None


load_cpu()

from perfconv import _C  # noqa: E402  (only after the message above could be given)

cuda_error: str | None = load_cuda()


def has_cuda() -> bool:
    """Whether the CUDA kernels are loaded (a GPU may still be absent)."""
    return cuda_error is None


def build_info() -> dict[str, str]:
    """What perfconv was built with and runs with; ``cuda_error`` is empty with CUDA."""
    return {
        **_C.build_info(),
        "cpu_isa": _C.cpu_isa(),
        "torch_runtime": torch.__version__,
        "cuda_runtime": torch.version.cuda or "",
        "cuda_error": cuda_error or "",
    }
