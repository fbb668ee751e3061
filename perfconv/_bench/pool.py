"""Times the "pag" multi-dilation pool against one dense 3x3, and against all of its branches.

The pool is fused (BatchNorm folded, weights packed) and runs its branches and epilogue for a given
choice of branch per pixel; the gate that makes the choice is timed apart. Baselines: one dense 3x3
with bias and ReLU in the faster of its memory formats, and the dense form of the same pool, every
branch times its weight. Both are timed in turn with the pool; ratios are medians over the pairs.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import perfconv
from perfconv._bench.tasks import Options, Task
from perfconv._bench.timing import compared, fastest
from perfconv._bench.timing_cuda import make_clock
from perfconv.nn import MultiDilationPool
from perfconv.nn.dilation_pool import weighted_sum

PATTERNS = ("random", "regions", "one")
LARGE_PAIRS = 11  # of a map of a whole street scene, where a dense 3x3 takes a second
BUDGET_MS = 500.0  # of every branch computed, over all rounds


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

    def __init__(self, problem: Problem, device: torch.device | str = "cpu") -> None:
        self.problem = problem
        torch.manual_seed(problem.seed)
        dtype = getattr(torch, problem.dtype)
        plain = MultiDilationPool(problem.channels, tied=problem.tied).eval().to(device, dtype)
        self.gate = plain.gate
        self.pool = perfconv.fuse(plain)
        self.choice = make_choice(problem, len(plain.dilations)).to(device)
        input = torch.randn(1, problem.channels, problem.height, problem.width)
        input = input.to(device, dtype)
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


def measure(problem: Problem, options: Options) -> Iterator[dict]:
    """The pool against one dense 3x3 and against all branches, in the same rounds."""
    clock = make_clock(options.device)
    with torch.inference_mode():
        case = Case(problem, clock.device)
        case.check()
        layout = fastest({n: lambda n=n: case.one_dense(n) for n in case.inputs}, clock)
        calls = {
            "pool": case.pooled,
            "one_dense": lambda: case.one_dense(layout),
            "dense": case.all_dense,
            "gate": lambda: case.gate(case.inputs["channels_last"]),
        }
        times = clock.measure(
            {name: clock.captured(call) for name, call in calls.items()},
            options.pairs if problem.height < 100 else min(options.pairs, LARGE_PAIRS),
            {"dense": BUDGET_MS, "gate": BUDGET_MS},
        )
    one, every = compared(times, "one_dense")["pool"], compared(times)["pool"]
    yield {
        "algorithm": "multi_dilation",
        **asdict(problem),
        "density": 1.0,
        "dense_layout": layout,
        "gate_ms": compared(times)["gate"]["candidate_ms"],
        **every,
        "ratio_to_one_dense": 1 / one["speed_up"],
        **{f"one_dense_{name}": value for name, value in one.items()},
        **{f"all_dense_{name}": value for name, value in every.items()},
    }


def describe(record: dict) -> str:
    return (
        f"{record['problem']:38s} one 3x3 {record['one_dense_baseline_ms']:7.2f} ms  "
        f"pool {record['one_dense_candidate_ms']:7.2f} ms  ratio "
        f"{record['ratio_to_one_dense']:.3f}  all dense x{record['all_dense_speed_up']:.2f}  "
        f"gate {record['gate_ms']:.2f} ms"
    )


def tasks(options: Options) -> list[Task]:
    chosen = problems(options.is_quick)
    if options.scope == "standard":
        chosen = chosen[:2]
    return [Task(f"pool-{p.name}", partial(measure, p, options), describe) for p in chosen]
