"""conformance.cu on a real GPU, and what GPUs gave: golden files that the emulator is held to."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from cuda_backend import refuse
from emulator.library import Arguments, In, KernelError
from torch import Tensor

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LIBRARY = ROOT / "build" / "emulated" / "libconformance_cuda.so"
GOLDEN = HERE / "golden"
WRITES_GOLDEN = "PERFCONV_WRITE_GOLDEN"  # "1": a GPU's results become golden files


def build(library: Path = LIBRARY, arch: str = "native") -> Path:
    """The library of the kernels, linked with the CUDA runtime instead of the emulated one."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        refuse("PERFCONV_REQUIRE_CUDA", "no nvcc found: put it on PATH")
    if arch == "native" and torch.cuda.get_device_capability() == (9, 0):
        arch = "sm_90a"  # wgmma
    sources = [HERE / "features" / "feature.cpp", HERE / "conformance.cu"]
    includes = [f"-I{folder}" for folder in (ROOT / "csrc", HERE, HERE / "features")]
    library.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC", f"-arch={arch}"]
    subprocess.run(
        [str(nvcc), *flags, *includes, *map(str, sources), "-o", str(library)], check=True
    )
    return library


class DeviceFeatures:
    """Runs the kernels of conformance.cu by name, as emulator.library.Features does, on a GPU."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL(str(build()))
        self.library.run_feature.argtypes = [ctypes.c_char_p, ctypes.POINTER(Arguments)]

    def run(self, name: str, *arguments: Tensor | In) -> None:
        tensors = [a.tensor if isinstance(a, In) else a for a in arguments]
        copies = [tensor.cuda() for tensor in tensors]
        packed = Arguments(stream=torch.cuda.current_stream().cuda_stream)
        for place, copy in enumerate(copies):
            packed.pointer[place] = copy.data_ptr()
        code = self.library.run_feature(name.encode(), ctypes.byref(packed))
        if code:
            raise KernelError(f"{name}: CUDA error {code}")
        for argument, tensor, copy in zip(arguments, tensors, copies, strict=True):
            if not isinstance(argument, In):
                tensor.copy_(copy)


def golden_path(name: str, given: np.ndarray, folder: Path = GOLDEN) -> Path:
    digest = hashlib.sha256(given.tobytes()).hexdigest()[:16]
    return folder / f"{name}-{digest}.npy"


def write_golden(name: str, given: np.ndarray, got: np.ndarray, folder: Path = GOLDEN) -> None:
    """Keeps what a GPU gave; atomically, so that an interrupted run leaves no half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = golden_path(name, given, folder)
    partial = path.with_suffix(".part")
    with partial.open("wb") as stream:
        np.save(stream, got)
    os.replace(partial, path)


def check_golden(name: str, given: np.ndarray, got: np.ndarray, folder: Path = GOLDEN) -> None:
    """The emulator's bits are a GPU's, where a GPU has been asked.

    Not for mma: the order of its sums is not documented, and the tests bound its error instead.
    """
    path = golden_path(name, given, folder)
    if path.exists() and "mma" not in name:
        assert np.array_equal(got, np.load(path)), f"{name}: a GPU gave other bits ({path.name})"


if __name__ == "__main__":  # compiles and links, on a machine without a GPU too
    print(build(arch=sys.argv[1] if len(sys.argv) > 1 else "sm_90a"))
