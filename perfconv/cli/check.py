"""``perfconv check``: versions, kernels in use, and whether they agree with dense convolution."""

import argparse
import platform
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from perfconv import _ext
from perfconv.ops import perforated_conv2d

ALGORITHMS = ("auto", "direct", "gather_gemm", "implicit_gemm", "dense")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SEED = 0


@dataclass(frozen=True)
class Outcome:
    """One line of the self-test."""

    subject: str
    error: float  # largest absolute difference from float64
    allowed: float

    @property
    def is_good(self) -> bool:
        return self.error <= self.allowed  # a NaN is not

    def line(self) -> str:
        verdict = "OK  " if self.is_good else "FAIL"
        return f"  {verdict} {self.subject}: largest error {self.error:.1e} ({self.allowed:.1e})"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    summary = "versions, kernels in use, and a self-test"
    subparsers.add_parser("check", help=summary, description=summary)


def describe() -> Iterator[str]:
    """What was built, what runs, and why something is absent."""
    info = _ext.build_info()
    yield f"perfconv {info['version']}"
    yield f"  built with     {info['compiler']}, torch {info['torch_build']}"
    yield f"  runs with      torch {info['torch_runtime']} (needs {info['torch_target']} or newer)"
    yield f"  Python         {platform.python_version()} on {platform.system()} {info['processor']}"
    yield f"  CPU kernels    {info['cpu_isa']}, {torch.get_num_threads()} threads"
    if not _ext.has_cuda():
        yield f"  CUDA kernels   absent: {info['cuda_error']}"
        return
    yield f"  CUDA kernels   CUDA {info['cuda']}, for {info['cuda_archs']}"
    if not torch.cuda.is_available():
        yield "  GPU            absent: torch sees none"
        return
    major, minor = torch.cuda.get_device_capability()
    yield f"  GPU            {torch.cuda.get_device_name()}, compute capability {major}.{minor}"


def devices() -> list[str]:
    return ["cpu", "cuda"] if _ext.has_cuda() and torch.cuda.is_available() else ["cpu"]


def largest_error(result: Tensor, exact: Tensor) -> float:
    """NaN if there is one in ``result``."""
    return (result.double().cpu() - exact).abs().max().item()


def compare(device: str, dtype: torch.dtype, algorithm: str, density: float) -> Outcome:
    """A perforated convolution against the dense one in float64, zero where inactive.

    Allowed is twice the error of the dense one in the same dtype, and some roundings of the sums.
    """
    generator = torch.Generator().manual_seed(SEED)
    exact_input = torch.randn(2, 32, 19, 23, generator=generator).to(dtype).double()
    exact_weight = torch.randn(48, 32, 3, 3, generator=generator).to(dtype).double()
    mask = torch.rand(2, 1, 19, 23, generator=generator) < density
    exact = F.conv2d(exact_input, exact_weight, padding=1).masked_fill(~mask, 0)  # (2, 48, 19, 23)

    input, weight = exact_input.to(device, dtype), exact_weight.to(device, dtype)
    on_device = mask.to(device)
    dense = F.conv2d(input, weight, padding=1).masked_fill(~on_device, 0)
    perforated = perforated_conv2d(input, weight, on_device, padding=1, algorithm=algorithm)
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    magnitude = F.conv2d(exact_input.abs(), exact_weight.abs(), padding=1).max().item()
    roundings = 4 * torch.finfo(sums).eps * magnitude
    masks = "all-True mask" if density == 1.0 else f"random mask, density {density}"
    subject = f"{device} {str(dtype).removeprefix('torch.')} {algorithm}, {masks}"
    allowed = 2 * largest_error(dense, exact) + roundings
    return Outcome(subject, largest_error(perforated, exact), allowed)


def self_test() -> Iterator[Outcome]:
    for device in devices():
        for dtype in DTYPES:
            for algorithm in ALGORITHMS:
                for density in (1.0, 0.3):
                    yield compare(device, dtype, algorithm, density)


def run(args: argparse.Namespace) -> int:
    """Prints everything; 0 when every comparison holds."""
    print("\n".join(describe()))
    print("self-test against dense convolution in float64 (allowed error in brackets)")
    failures = 0
    for outcome in self_test():
        print(outcome.line(), flush=True)
        failures += not outcome.is_good
    print(f"FAIL: {failures} comparisons" if failures else "OK: perfconv works on this machine")
    return 1 if failures else 0
