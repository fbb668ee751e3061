"""Times a fused, sparse gated bottleneck against the best dense one, inference.

Dense is the fastest of both layouts, eager and through torch.compile (--no-compile leaves that
out), BatchNorm folded, ReLU and addition in place. The gated block is what
``perfconv.fuse(inplace=True)`` gives, in channels_last; its gate is computed, its mask compacted
and its halo found in every call, within the time.

On a GPU in bfloat16, and once more with both as CUDA graphs.

Verdict: time ratio <= 1.05 * FLOPs ratio + one read of the input at the measured bandwidth + 3 %;
with all gates open <= 1 + the gate's own cost + 2 %.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import perfconv
from perfconv._bench.gated_models import fold_batch_norms, read_rate, reading_gate
from perfconv._bench.problems import BlockProblem, block_problems, quick_block_problems
from perfconv._bench.tasks import Options, Task
from perfconv._bench.timing import Call, compared, fastest
from perfconv._bench.timing_cuda import make_clock
from perfconv.models.resnet import Bottleneck
from perfconv.nn import GatedBottleneck

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def plain_block(problem: BlockProblem) -> Bottleneck:
    """With a branch that hardly adds to its input: blocks in place run many times."""
    block = Bottleneck(problem.channels, problem.channels // 4, dilation=problem.dilation)
    nn.init.constant_(block.bn3.weight, 1e-3)
    with torch.no_grad():
        block.bn3.weight[0] = 0
    return block.eval().requires_grad_(False).to(getattr(torch, problem.dtype))


class DenseBottleneck(nn.Module):
    """The same with BatchNorm folded and everything else in place."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        folded = fold_batch_norms(copy.deepcopy(block))
        self.conv1, self.conv2, self.conv3 = folded.conv1, folded.conv2, folded.conv3

    def forward(self, input: Tensor) -> Tensor:
        features = F.relu_(self.conv1(input))
        features = F.relu_(self.conv2(features))
        return F.relu_(self.conv3(features).add_(input))


class Case:
    """The dense and the gated block of a problem, and the calls to time."""

    def __init__(
        self, problem: BlockProblem, with_compile: bool, device: torch.device | str = "cpu"
    ) -> None:
        torch.manual_seed(problem.seed)
        dtype = getattr(torch, problem.dtype)
        plain = plain_block(problem).to(device)
        self.problem = problem
        self.mask = problem.mask().to(device)
        image = torch.rand(1, problem.channels, problem.height, problem.width).to(device)
        # The gate finds its mask in the first channel, to which the branch adds nothing.
        image[:, 0] = self.mask[:, 0]
        image = image.to(dtype)
        self.inputs = {name: image.to(memory_format=kind) for name, kind in LAYOUTS.items()}
        self.dense = {}
        torch._dynamo.reset()  # a compilation of its own for each shape, not one for them all
        for name, kind in LAYOUTS.items():
            model = DenseBottleneck(plain).to(memory_format=kind)
            self.dense[name] = lambda model=model, name=name: model(self.inputs[name])
            if with_compile:
                compiled = torch.compile(model)
                self.dense[f"{name}, compiled"] = lambda c=compiled, n=name: c(self.inputs[n])
        gate = reading_gate(problem.channels).to(device, dtype)
        gated = GatedBottleneck(plain, gate=gate).eval()
        self.block = perfconv.fuse(gated.to(memory_format=torch.channels_last), inplace=True)
        self.own = self.inputs["channels_last"].clone(memory_format=torch.channels_last)

    def sparse(self) -> Tensor:
        return self.block(self.own, owns_input=True)

    def gate(self) -> object:
        return self.block.gate.active_pixels(self.inputs["channels_last"])

    def check(self) -> None:
        """Active pixels equal the dense block, up to rounding; the others their input."""
        dense = self.dense["nchw"]().float()
        wanted = torch.where(self.mask, dense, self.inputs["nchw"].float())
        found = self.block(self.own.clone(memory_format=torch.preserve_format), owns_input=True)
        error = (found.float() - wanted).abs().max().item()
        bound = 0.05 if self.problem.dtype == "bfloat16" else 1e-4
        if not error <= bound:
            raise AssertionError(f"{self.problem.name}: the gated block is off by {error}")

    def flops_ratio(self) -> float:
        """Active over dense MACs, the first layer on its halo."""
        halo = perfconv.expand_mask(
            self.mask, 3, padding=self.problem.dilation, dilation=self.problem.dilation
        )
        inner, outer = self.problem.channels // 4, self.problem.channels
        first, others = inner * outer, 9 * inner * inner + inner * outer
        active = float(halo.float().mean()) * first + float(self.mask.float().mean()) * others
        return active / (first + others)


def measure(problem: BlockProblem, options: Options, is_graph: bool) -> Iterator[dict]:
    """Dense and gated in turn; as CUDA graphs both of them, dense without torch.compile."""
    clock = make_clock(options.device)
    capture: Callable[[Call], Call] = clock.captured if is_graph else lambda call: call
    with torch.inference_mode():
        case = Case(problem, options.with_compile and not is_graph, clock.device)
        case.check()
        dense = {name: capture(call) for name, call in case.dense.items()}
        best, gate = fastest(dense, clock), capture(case.gate)
        times = clock.measure({"dense": dense[best], "gated": capture(case.sparse)}, options.pairs)
        # Its input out of the caches, as in a network.
        alone = clock.measure({"dense": dense[best], "gate": gate}, 7)["gate"]
    gate_ms = median(time for time in alone if time is not None)
    rate = read_rate(options.device, 16 if options.is_quick else 256)
    yield verdict(case, best, compared(times)["gated"], gate_ms, rate)


def verdict(case: Case, best: str, timed: dict, gate_ms: float, rate: float) -> dict:
    """The row of a block; rate: bytes a second at which the machine reads memory."""
    problem, dense_ms = case.problem, timed["baseline_ms"]
    flops_ratio = case.flops_ratio()
    read = case.own.nbytes / rate / (1e-3 * dense_ms)
    is_open = problem.density >= 1
    bound = 1.02 + gate_ms / dense_ms if is_open else 1.05 * flops_ratio + read + 0.03
    ratio = 1 / timed["speed_up"]
    return {
        "algorithm": "auto",
        **problem.record(),
        "density": float(case.mask.float().mean()),
        "dense": best,
        **timed,
        "dense_ms": dense_ms,
        "gated_ms": timed["candidate_ms"],
        "gate_ms": gate_ms,
        "ratio": ratio,
        "ratio_low": 1 / timed["speed_up_high"],
        "ratio_high": 1 / timed["speed_up_low"],
        "flops_ratio": flops_ratio,
        "read_ratio": read,
        "bound": bound,
        "holds": ratio <= bound,
        "read_gb_per_s": rate / 1e9,
    }


def describe(row: dict) -> str:
    return (
        f"{row['problem']:52s} dense {row['dense_ms']:7.2f} ms ({row['dense']})  gated "
        f"{row['gated_ms']:7.2f} ms  ratio {row['ratio']:.3f} ({row['ratio_low']:.3f}-"
        f"{row['ratio_high']:.3f})  FLOPs {row['flops_ratio']:.3f}  bound {row['bound']:.3f}  "
        f"gate {row['gate_ms']:.2f} ms  {'holds' if row['holds'] else 'MISSED'}"
    )


def tasks(options: Options) -> list[Task]:
    densities = options.sweep.get("density", (0.3, 0.7, 1.0))
    patterns = options.sweep.get("pattern", ("blobs",))
    problems = block_problems(densities, patterns)
    if options.is_quick:
        problems = quick_block_problems()
    passes = ("graph", "") if options.with_graphs else ("",)
    if options.device == "cuda":
        problems = [replace(problem, dtype="bfloat16") for problem in problems]
    return [
        Task(problem.name, partial(measure, problem, options, name == "graph"), describe, name)
        for problem in problems
        for name in passes
    ]
