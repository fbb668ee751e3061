"""Times the "pag" multi-dilation pool against one dense 3x3, and against all of its branches.

    python benchmarks/bench_pool.py --quick
    python benchmarks/bench_pool.py --output benchmarks/results/NAME.jsonl

The pool is fused (BatchNorm folded, weights packed) and runs its branches and epilogue for a given
choice of branch per pixel; the gate that makes the choice is timed apart. Baselines: one dense 3x3
with bias and ReLU in the faster of its memory formats, and the dense form of the same pool, every
branch times its weight. Both are timed in turn with the pool; ratios are medians over the pairs.
"""

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import perfconv
from perfconv._bench.timing import Comparison, compare, environment, fastest, median_ms
from perfconv.nn import MultiDilationPool
from perfconv.nn.dilation_pool import weighted_sum

PATTERNS = ("random", "regions", "one")


@dataclass(frozen=True)
class Problem:
    """One pool on one feature map. Sizes in pixels and channels."""

    channels: int
    height: int
    width: int
    dtype: str = "float32"
    pattern: str = "random"  # random: independent pixels | regions: smooth areas | one: dilation 4
    tied: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        tied = "-tied" if self.tied else ""
        return f"c{self.channels}-{self.height}x{self.width}-{self.dtype}-{self.pattern}{tied}"


def problems(is_quick: bool) -> list[Problem]:
    if is_quick:
        return [Problem(64, 20, 30), Problem(64, 20, 30, tied=True)]
    small, large = (512, 54, 70), (512, 128, 256)  # 425x560 and 1024x2048 at stride 8
    return [
        *(Problem(*small, dtype, p) for dtype in ("float32", "bfloat16") for p in PATTERNS),
        *(Problem(*small, dtype, tied=True) for dtype in ("float32", "bfloat16")),
        *(Problem(256, 54, 70, dtype) for dtype in ("float32", "bfloat16")),
        Problem(*large, "bfloat16", "regions"),
    ]


def make_choice(problem: Problem, branches: int) -> Tensor:
    """(1, 1, H, W), int64. Every branch for about equally many pixels, but for "one"."""
    generator = torch.Generator().manual_seed(problem.seed)
    shape = (1, 1, problem.height, problem.width)
    if problem.pattern == "one":
        return torch.full(shape, 3)
    scores = torch.rand(1, branches, *shape[2:], generator=generator)
    if problem.pattern == "regions":
        scores = F.avg_pool2d(scores, 15, 1, 7, count_include_pad=False)
    return scores.argmax(1, keepdim=True)


class Case:
    """The modules and tensors of a problem, and the calls to time."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        torch.manual_seed(problem.seed)
        dtype = getattr(torch, problem.dtype)
        plain = MultiDilationPool(problem.channels, tied=problem.tied).eval().to(dtype)
        self.gate = plain.gate
        self.pool = perfconv.fuse(plain)
        self.choice = make_choice(problem, len(plain.dilations))
        input = torch.randn(1, problem.channels, problem.height, problem.width).to(dtype)
        weight = self.pool.branches.weight
        self.bias = self.pool.branches.bias.reshape(-1, problem.channels)[0]
        weight = weight.reshape(-1, *weight.shape[-3:])[: problem.channels]
        last = torch.channels_last
        self.inputs = {"nchw": input, "channels_last": input.contiguous(memory_format=last)}
        self.weights = {"nchw": weight, "channels_last": weight.contiguous(memory_format=last)}
        hard = F.one_hot(self.choice[:, 0], len(plain.dilations)).movedim(-1, 1)
        self.hard = hard.to(dtype)

    def pooled(self) -> Tensor:
        return self.pool.branches.chosen(self.inputs["channels_last"], self.choice)

    def one_dense(self, layout: str) -> Tensor:
        return F.conv2d(self.inputs[layout], self.weights[layout], self.bias, padding=1).relu_()

    def all_dense(self) -> Tensor:
        maps = self.pool.branches.maps(self.inputs["channels_last"])
        return weighted_sum(maps, self.hard)

    def check(self) -> None:
        expected, found = self.all_dense().float(), self.pooled().float()
        bound = 0.05 if self.problem.dtype == "bfloat16" else 1e-3
        error = (found - expected).abs().max().item()
        if error > bound * max(1.0, expected.abs().max().item()):
            raise AssertionError(f"{self.problem.name}: the pool is off by {error}")


def measure(problem: Problem, pairs: int) -> dict:
    with torch.inference_mode():
        case = Case(problem)
        case.check()
        layout = fastest({name: lambda n=name: case.one_dense(n) for name in case.inputs})
        one = compare(lambda: case.one_dense(layout), case.pooled, pairs=pairs)
        every = compare(case.all_dense, case.pooled, pairs=max(5, pairs // 4))
        gate_ms = median_ms(lambda: case.gate(case.inputs["channels_last"]), pairs)
    return {
        "problem": problem.name,
        **asdict(problem),
        "dense_layout": layout,
        "gate_ms": gate_ms,
        "ratio_to_one_dense": 1 / one.speed_up,
        **prefixed("one_dense", one),
        **prefixed("all_dense", every),
    }


def prefixed(prefix: str, comparison: Comparison) -> dict:
    return {f"{prefix}_{name}": value for name, value in asdict(comparison).items()}


def describe(record: dict) -> str:
    return (
        f"{record['problem']:38s} one 3x3 {record['one_dense_baseline_ms']:7.2f} ms  "
        f"pool {record['one_dense_candidate_ms']:7.2f} ms  ratio "
        f"{record['ratio_to_one_dense']:.3f}  all dense x{record['all_dense_speed_up']:.2f}  "
        f"gate {record['gate_ms']:.2f} ms"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two small problems, 5 pairs")
    parser.add_argument("--pairs", type=int, default=31)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--filter", default="", help="only problems whose name contains this")
    parser.add_argument("--output", type=Path, help="results file (JSON lines), appended to")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    head = environment()
    print(json.dumps(head))
    write(arguments.output, head)
    for problem in problems(arguments.quick):
        if arguments.filter in problem.name:
            record = measure(problem, 5 if arguments.quick else arguments.pairs)
            print(describe(record), flush=True)
            write(arguments.output, record)
    return 0


def write(output: Path | None, record: dict) -> None:
    if output:
        with output.open("a") as stream:
            stream.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    sys.exit(main())
