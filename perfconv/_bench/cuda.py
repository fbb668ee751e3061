"""Times perforated convolution on a GPU against cuDNN, cuBLAS and the im2col of older libraries.

    python benchmarks/bench_cuda.py --output benchmarks/results/NAME.jsonl
    python benchmarks/bench_cuda.py --dry-run          small problems on the CPU: does it run?

A results file is one JSON object a line: the environment, then a measurement a line; an
interrupted run continues where it stopped. Baselines: the dense convolution in both memory formats
with cudnn.benchmark, a matrix product (cuBLAS) of the perforated problem's M, N, K, and im2col +
GEMM over the active pixels in plain torch, its positions made beforehand. Forward passes are
measured as CUDA graphs, all of them, and once more as plain calls; training (forward and backward)
as plain calls. The mask comes in as bool, and its compaction is within the time.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import perfconv
from perfconv._bench.problems import LISTS, Problem, make_mask
from perfconv._bench.timing import Call, commit, environment
from perfconv._bench.timing_cuda import DeviceClock, device_record

ALGORITHMS = ("implicit_gemm", "gather_gemm")  # the textbook path as graphs only: it is slow
MODES = ("graph", "eager", "training")
COMPACTION_SHAPE = (4, 1, 128, 256)
POOL_DILATIONS = (1, 2, 4, 6, 8, 10)


class Case:
    """The tensors of a problem on the device, and the calls to time."""

    def __init__(self, problem: Problem, device: torch.device) -> None:
        self.problem = problem
        generator = torch.Generator().manual_seed(problem.seed)
        dtype = getattr(torch, problem.dtype)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        size = (problem.batch, problem.channels, problem.height, problem.width)
        weight = (problem.out_channels, problem.channels // problem.groups, *[problem.kernel] * 2)
        last = torch.channels_last
        self.mask = make_mask(problem).to(device)
        self.density = self.mask.float().mean().item()
        self.nchw = normal(*size), normal(*weight) * 0.05
        self.input, self.weight = (value.contiguous(memory_format=last) for value in self.nchw)
        self.bias = normal(problem.out_channels)
        grad = normal(problem.batch, problem.out_channels, *size[2:])
        self.grad = grad.contiguous(memory_format=last)
        self.options = {
            "padding": problem.padding,
            "dilation": problem.dilation,
            "groups": problem.groups,
        }

    def dense(self) -> Tensor:
        return F.conv2d(self.input, self.weight, self.bias, **self.options)

    def dense_nchw(self) -> Tensor:
        return F.conv2d(*self.nchw, self.bias, **self.options)

    def perforated(self, algorithm: str) -> Tensor:
        return perfconv.perforated_conv2d(
            self.input, self.weight, self.mask, self.bias, algorithm=algorithm, **self.options
        )

    @cached_property
    def gemm_operands(self) -> tuple[Tensor, Tensor]:
        """(M, K) and (K, N) of the multiplications that the mask asks for."""
        rows = int(self.mask.sum())
        depth = self.problem.channels * self.problem.kernel**2
        left = torch.randn(rows, depth, device=self.input.device).to(self.input.dtype)
        right = torch.randn(depth, self.problem.out_channels, device=self.input.device)
        return left, right.to(self.input.dtype)

    @cached_property
    def im2col_places(self) -> tuple[Tensor, Tensor]:
        """Active pixels, and the pixels of the padded input that each of them reads, (M, taps)."""
        p = self.problem
        image, _, y, x = self.mask.nonzero(as_tuple=True)
        active = (image * p.height + y) * p.width + x
        width = p.width + 2 * p.padding
        first = (image * (p.height + 2 * p.padding) + y) * width + x
        taps = torch.arange(p.kernel, device=active.device) * p.dilation
        return active, first[:, None] + (taps[:, None] * width + taps).flatten()

    def im2col(self) -> Tensor:
        """The older libraries' way: copy the patches of active pixels, multiply, scatter."""
        p = self.problem
        active, places = self.im2col_places
        padded = F.pad(self.input, [p.padding] * 4).permute(0, 2, 3, 1).reshape(-1, p.channels)
        patches = padded[places].flatten(1)  # (M, taps * C_in)
        columns = self.weight.permute(2, 3, 1, 0).reshape(-1, p.out_channels)
        sums = torch.addmm(self.bias, patches, columns)  # (M, C_out)
        rows = sums.new_zeros(p.batch * p.height * p.width, p.out_channels)
        rows.index_copy_(0, active, sums)
        return rows.view(p.batch, p.height, p.width, -1).permute(0, 3, 1, 2)

    def step(self, output: Tensor) -> None:
        torch.autograd.grad(output, (self.input, self.weight, self.bias), self.grad)

    def calls(self, mode: str) -> dict[str, Call]:
        """Everything to compare, by name."""
        names = ALGORITHMS if mode == "graph" else ALGORITHMS[:1]
        algorithms = {name: lambda n=name: self.perforated(n) for name in names}
        if mode == "training":
            for value in (self.input, self.weight, self.bias):
                value.requires_grad_()
            steps = {"dense": lambda: self.step(self.dense())}
            return steps | {
                name: lambda call=call: self.step(call()) for name, call in algorithms.items()
            }
        found = {"dense": self.dense, "dense_nchw": self.dense_nchw} | algorithms
        if self.problem.groups == 1:
            found["im2col"] = self.im2col
            found["matmul"] = lambda: torch.mm(*self.gemm_operands)
        return found

    def check(self) -> None:
        """Active pixels equal the dense result, up to the rounding of the dtype."""
        exact = F.conv2d(self.input.float(), self.weight.float(), self.bias.float(), **self.options)
        expected = torch.where(self.mask, exact, 0)
        bound = 2e-2 * max(1.0, expected.abs().max().item())
        for name, call in self.calls("graph").items():
            if name in ("dense", "dense_nchw", "matmul"):
                continue
            error = (call().float() - expected).abs().max().item()
            if not error <= bound:
                raise AssertionError(f"{self.problem.name}: {name} is off by {error}")


def layer_rows(problem: Problem, mode: str, clock: DeviceClock) -> Iterator[dict]:
    """One row for each thing that is compared."""
    case = Case(problem, clock.device)
    with torch.set_grad_enabled(mode == "training"):
        calls = case.calls(mode)
        if mode != "training":
            case.check()
        if mode == "graph":
            calls = {name: clock.captured(call) for name, call in calls.items()}
        samples = clock.measure(calls)
    best = min(sample.median_us for name, sample in samples.items() if name.startswith("dense"))
    flops = 2 * problem.dense_macs() * (3 if mode == "training" else 1)
    for name, sample in samples.items():
        executed = flops if name.startswith("dense") else flops * case.density
        yield {
            "problem": problem.name,
            "pass": mode,
            "algorithm": name,
            **problem.record(),
            "density": case.density,
            **asdict(sample),
            "speed_up": best / sample.median_us,
            "tflops": executed / sample.median_us / 1e6,
            "of_dense_rate": executed / flops * best / sample.median_us,
        }


def compaction_row(density: float, clock: DeviceClock) -> dict:
    mask = (torch.rand(COMPACTION_SHAPE) < density).to(clock.device)
    calls = {"compact_mask": clock.captured(lambda: perfconv.compact_mask(mask))}
    sample = clock.measure(calls)["compact_mask"]
    shape = "x".join(map(str, COMPACTION_SHAPE))
    row = {"problem": f"compact_mask-{shape}-{density}", "pass": "graph"}
    return {**row, "algorithm": "compact_mask", "density": density, **asdict(sample)}


def pool_rows(problem: Problem, clock: DeviceClock) -> Iterator[dict]:
    """Multi-dilation pooling, tied weights, against a dense convolution for each dilation."""
    case = Case(problem, clock.device)
    shape = (problem.batch, 1, problem.height, problem.width)
    choice = torch.randint(len(POOL_DILATIONS), shape).to(clock.device)

    def dense() -> Tensor:
        outputs = [
            F.conv2d(case.input, case.weight, case.bias, padding=d, dilation=d)
            for d in POOL_DILATIONS
        ]
        return torch.stack(outputs)

    def pooled() -> Tensor:
        return perfconv.multi_dilation_conv2d(
            case.input, case.weight, choice, case.bias, dilations=POOL_DILATIONS
        )

    with torch.no_grad():
        calls = {"dense": clock.captured(dense), "multi_dilation": clock.captured(pooled)}
        samples = clock.measure(calls)
    for name, sample in samples.items():
        yield {
            "problem": f"pool-{problem.name}",
            "pass": "graph",
            "algorithm": name,
            **problem.record(),
            **asdict(sample),
            "speed_up": samples["dense"].median_us / sample.median_us,
        }


def rows(problems: list[Problem], modes: list[str], clock: DeviceClock, done: set) -> Iterator:
    """Everything that is not done yet."""
    for density in (0.0, 0.25, 1.0):
        row = compaction_row(density, clock)
        if (row["problem"], "graph") not in done:
            yield row
    for problem in problems:
        for mode in modes:
            if (problem.name, mode) not in done:
                yield from layer_rows(problem, mode, clock)
    pooled = next((p for p in problems if p.groups == 1 and p.channels == p.out_channels), None)
    is_pool_done = pooled is not None and (f"pool-{pooled.name}", "graph") in done
    if pooled and not is_pool_done and hasattr(perfconv, "multi_dilation_conv2d"):
        yield from pool_rows(pooled, clock)


def read_done(path: Path | None) -> set:
    if path is None or not path.exists():
        return set()
    found = [json.loads(line) for line in path.read_text().splitlines() if line]
    return {(row["problem"], row["pass"]) for row in found if "problem" in row}


def describe(row: dict) -> str:
    more = f"  x{row['speed_up']:6.2f} of dense" if "speed_up" in row else ""
    rate = f"  {row['tflops']:7.1f} TFLOP/s" if "tflops" in row else ""
    quartiles = f"({row['low_us']:.1f}-{row['high_us']:.1f})"
    return (
        f"{row['problem']:54s} {row['pass']:8s} {row['algorithm']:14s} "
        f"{row['median_us']:10.1f} us {quartiles:20s}{more}{rate}"
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", choices=sorted(LISTS), default="cuda")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--filter", default="", help="only problems whose name contains this")
    parser.add_argument("--output", type=Path, help="results file (JSON lines), continued")
    parser.add_argument(
        "--dry-run", action="store_true", help="small problems, on the CPU if need be"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if not arguments.dry_run and not (torch.cuda.is_available() and perfconv.has_cuda()):
        reason = perfconv.cuda_error or "torch sees none"
        print(f"bench_cuda: no GPU to measure on: {reason} (--dry-run)", file=sys.stderr)
        return 1
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    name = "quick" if arguments.dry_run else arguments.list
    problems = [problem for problem in LISTS[name]() if arguments.filter in problem.name]
    clock = DeviceClock(repeats=arguments.repeats)
    head = {**environment(), **device_record(), "tf32": torch.backends.cudnn.allow_tf32}
    print(json.dumps(head))
    stream = None
    if arguments.output:
        is_new = not arguments.output.exists()
        stream = arguments.output.open("a")
        if is_new:
            print(json.dumps(head), file=stream, flush=True)
    for row in rows(problems, arguments.modes, clock, read_done(arguments.output)):
        print(describe(row), flush=True)
        if stream:
            print(json.dumps({**row, "commit": commit()}), file=stream, flush=True)
            os.fsync(stream.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
