"""Times a ResNet-50 with gates against the plain one: whole networks, one image, inference.

The trunk of the parsers (torchvision's layers) at output stride 8, 425x560, random weights,
converted and fused in place. Every gate opens a mask of its own, all of one density. Dense is the
fastest of both layouts, eager and through torch.compile (--no-compile leaves that out), BatchNorm
folded; the gated network the faster of eager and compiled. Gates are computed within the time and
left out of the FLOPs. On a GPU in bfloat16, and once more with both as CUDA graphs.

Verdict: latency ratio within 5 points of the FLOPs ratio.
"""

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

import perfconv
from perfconv._bench.gated_models import (
    GivenGate,
    check_near,
    compiled_network,
    fastest_way,
    fold_batch_norms,
    network_dtype,
)
from perfconv._bench.problems import mask_of_size
from perfconv._bench.tasks import Options, Task
from perfconv._bench.timing import Call, compared, fastest
from perfconv._bench.timing_cuda import make_clock
from perfconv.models.resnet import Bottleneck, ResNet

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
DENSITIES = (0.5, 0.7, 0.9, 1.0)
PATTERNS = ("random", "blobs")
MARGIN = 0.05  # between latency ratio and FLOPs ratio


class Trunk(nn.Module):
    """A ResNet-50 that returns its last features; random weights that keep the size of features."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = ResNet(Bottleneck, (3, 4, 6, 3), output_stride=8)
        for module in self.modules():
            if isinstance(module, Bottleneck):
                nn.init.constant_(module.bn3.weight, 0.2)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)["res5"]


class Case:
    """The dense networks, and the gated one at a density."""

    def __init__(self, size: tuple[int, int], with_compile: bool, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.clock = make_clock(device)
        self.with_compile = with_compile
        model = Trunk().eval().requires_grad_(False).to(self.clock.device, network_dtype(device))
        image = torch.rand(1, 3, *size).to(self.clock.device, network_dtype(device))
        self.images = {name: image.to(memory_format=kind) for name, kind in LAYOUTS.items()}
        self.dense = {}
        for name, kind in LAYOUTS.items():
            folded = fold_batch_norms(copy.deepcopy(model)).to(memory_format=kind)
            self.dense[name] = lambda m=folded, n=name: m(self.images[n])
            if with_compile:
                compiled = compiled_network(folded)
                self.dense[f"{name}, compiled"] = lambda m=compiled, n=name: m(self.images[n])
        with torch.inference_mode():
            self.best = fastest(self.dense, self.clock)
        kind = {"device": image.device, "dtype": image.dtype}
        converted = perfconv.convert(
            model,
            gate=lambda block: GivenGate(
                block.conv1.in_channels, stride=block.conv2.stride, **kind
            ),
        )
        self.gated = perfconv.fuse(converted.to(memory_format=torch.channels_last), inplace=True)
        self.way, self.run = "eager", self.gated

    def give(self, density: float, pattern: str) -> float:
        """Gives every gate a mask; the FLOPs ratio of the network."""
        with perfconv.record_gates(self.gated) as record, torch.no_grad():
            self.gated(self.images["channels_last"])
        gates = perfconv.gates(self.gated)
        for seed, call in enumerate(record.calls):
            height, width = call.gate.mask.shape[2:]
            mask = mask_of_size(height, width, density, pattern, seed)
            gates[call.name].give(mask.to(self.clock.device))
        return perfconv.flops.count(self.gated, self.images["channels_last"]).flops_ratio

    def sparse(self) -> Tensor:
        return self.run(self.images["channels_last"])

    def check(self) -> None:
        """With every gate open the gated network is the plain one; the faster way of it."""
        self.give(1.0, "random")
        check_near("the gated network", self.sparse(), self.dense["nchw"]())
        image = self.images["channels_last"]
        self.way, self.run = fastest_way(self.gated, image, self.clock, self.with_compile)


@lru_cache(maxsize=2)  # compiled, and not for CUDA graphs
def shared_case(size: tuple[int, int], with_compile: bool, device: str) -> Case:
    case = Case(size, with_compile, device)
    with torch.inference_mode():
        case.check()
    return case


def measure(
    size: tuple[int, int], density: float, pattern: str, options: Options, is_graph: bool
) -> Iterator[dict]:
    with_compile = options.with_compile and not is_graph
    case = shared_case(size, with_compile, options.device)
    capture: Callable[[Call], Call] = case.clock.captured if is_graph else lambda call: call
    flops_ratio = case.give(density, pattern)
    with torch.inference_mode():
        calls = {"dense": capture(case.dense[case.best]), "auto": capture(case.sparse)}
        timed = compared(case.clock.measure(calls, options.pairs))["auto"]
    ratio = 1 / timed["speed_up"]
    yield {
        "algorithm": "auto",
        "density": density,
        "pattern": pattern,
        "dense": case.best,
        "own": case.way,
        **timed,
        "dense_ms": timed["baseline_ms"],
        "gated_ms": timed["candidate_ms"],
        "ratio": ratio,
        "ratio_low": 1 / timed["speed_up_high"],
        "ratio_high": 1 / timed["speed_up_low"],
        "flops_ratio": flops_ratio,
        "holds": ratio <= flops_ratio + MARGIN,
    }


def describe(row: dict) -> str:
    return (
        f"{row['problem']:40s} dense {row['dense_ms']:7.1f} ms ({row['dense']})  gated "
        f"{row['gated_ms']:7.1f} ms  ratio {row['ratio']:.3f} ({row['ratio_low']:.3f}-"
        f"{row['ratio_high']:.3f})  FLOPs {row['flops_ratio']:.3f}  "
        f"{'holds' if row['holds'] else 'MISSED'}"
    )


def tasks(options: Options) -> list[Task]:
    size = (64, 64) if options.is_quick else (425, 560)
    options = options.with_pairs(11)  # of a second each and more
    densities = options.sweep.get("density", DENSITIES[:1] if options.is_quick else DENSITIES)
    patterns = options.sweep.get("pattern", PATTERNS[:1])
    return [
        Task(
            f"resnet50-os8-{size[0]}x{size[1]}-{pattern}{density}",
            partial(measure, size, density, pattern, options, name == "graph"),
            describe,
            name,
        )
        for pattern in patterns
        for density in densities
        if pattern == patterns[0] or density < 1
        for name in (("graph", "") if options.with_graphs else ("",))
    ]
