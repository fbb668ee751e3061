"""Whole networks by name: every builder of the parsers, networks converted, and a training step.

The dense baseline of a parser is the network without gates and pools on the same trunk; of a
converted network the network itself; both with BatchNorm folded, in the faster layout, eager and
(--no-compile leaves that out) through torch.compile. Random weights, gates given masks of 9-pixel
blobs, each of one density; image-wise gates of whole blocks are opened one by one to that share.
"""

import copy
import importlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

import perfconv
from perfconv._bench.gated_models import GivenGate, fold_batch_norms
from perfconv._bench.problems import mask_of_size
from perfconv._bench.tasks import Options, Task
from perfconv._bench.timing import Call, compared, fastest
from perfconv._bench.timing_cuda import make_clock
from perfconv.nn import LayerGate, PixelGate

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
# Builder: its baseline on the same trunk.
BUILDERS = {
    "multi_pool_resnet50": "baseline_resnet50",
    "multi_scale_resnet50": "baseline_resnet50",
    "pag_resnet50": "baseline_resnet50",
    "pag_resnet101": "baseline_resnet101",
    "gated_resnet50": "baseline_resnet50",
    "truncated_resnet50": "baseline_resnet50",
    "layer_skipping_resnet50": "baseline_resnet50",
    "depth_aware_resnet50": "baseline_resnet50",
    "depth_aware_resnet101": "baseline_resnet101",
    "recurrent_depth_resnet50": "baseline_resnet50",
    "recurrent_depth_resnet101": "baseline_resnet101",
}
CONVERTED = {"torchvision.resnet50": (224, 224), "timm.tf_efficientnet_lite0": (224, 224)}
GATED = ("pag_resnet50", "pag_resnet101", "gated_resnet50", "layer_skipping_resnet50")


def importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except Exception:  # a torchvision of another torch raises RuntimeError
        return False
    return True


def make_model(name: str) -> nn.Module:
    """A network by name, random weights, eval mode."""
    torch.manual_seed(0)
    package, _, rest = name.partition(".")
    if package == "torchvision":
        model = getattr(importlib.import_module("torchvision.models"), rest)()
    elif package == "timm":
        model = importlib.import_module("timm").create_model(rest)
    elif name == "baseline_resnet101":
        model = perfconv.models.baseline_resnet50(trunk=perfconv.models.resnet_trunk(101))
    elif name == "authors_resnet50":
        trunk = perfconv.models.resnet_trunk(50, stride_in_1x1=True)
        model = perfconv.models.baseline_resnet50(trunk=trunk)
    else:
        model = getattr(perfconv.models, name)()
    return model.eval().requires_grad_(False)


def folded(model: nn.Module) -> nn.Module:
    """A copy with every BatchNorm that follows a convolution folded into it."""
    try:
        from torch.fx.experimental.optimization import fuse

        return fuse(copy.deepcopy(model))
    except Exception:  # torch.fx cannot trace the network
        return fold_batch_norms(copy.deepcopy(model))


def give_masks(model: nn.Module, image: Tensor, density: float) -> None:
    """Every pixel gate a mask of blobs; of image-wise gates the first ones stay open."""
    gates = perfconv.gates(model)
    layer_gates = [gate for gate in gates.values() if isinstance(gate, LayerGate)]
    wanted = round(density * len(layer_gates))
    for number, gate in enumerate(layer_gates):  # spread over the depth
        is_open = (number + 1) * wanted // len(layer_gates) > number * wanted // len(layer_gates)
        perfconv.force_gates(gate, 1.0 if is_open else 0.0)
    for gate in gates.values():
        if type(gate) is PixelGate:
            gate.__class__ = GivenGate
    with perfconv.record_gates(model) as record, torch.no_grad():
        model(image)
    for seed, call in enumerate(record.calls):
        gate = gates.get(call.name)
        if isinstance(gate, GivenGate):
            height, width = call.gate.mask.shape[2:]
            gate.give(mask_of_size(height, width, density, "blobs", seed).to(image.device))


@lru_cache(maxsize=1)
def dense_calls(
    name: str, size: tuple[int, int], device: str, with_compile: bool
) -> tuple[dict[str, Call], str]:
    model = folded(make_model(name)).to(device)
    image = torch.rand(1, 3, *size).to(device)
    calls: dict[str, Call] = {}
    for layout, kind in LAYOUTS.items():
        own, values = copy.deepcopy(model).to(memory_format=kind), image.to(memory_format=kind)
        calls[layout] = partial(own, values)
        if with_compile:
            calls[f"{layout}, compiled"] = partial(torch.compile(own), values)
    with torch.inference_mode():
        return calls, fastest(calls)


def measure(
    name: str, baseline: str, size: tuple[int, int], density: float, options: Options
) -> Iterator[dict]:
    clock = make_clock(options.device)
    calls, best = dense_calls(baseline, size, options.device, options.with_compile)
    model = make_model(name)
    if name == baseline:
        model = perfconv.convert(model)
    last = torch.channels_last
    fast = perfconv.fuse(model.to(clock.device, memory_format=last), inplace=True)
    image = torch.rand(1, 3, *size).to(clock.device).to(memory_format=last)
    if perfconv.gates(fast):
        give_masks(fast, image, density)
    counted = perfconv.flops.count(fast, image)
    with torch.inference_mode():
        times = clock.measure({"dense": calls[best], "auto": lambda: fast(image)}, options.pairs)
    found = compared(times)["auto"]
    yield {
        "algorithm": "auto",
        "density": density,
        "pattern": "blobs",
        "height": size[0],
        "width": size[1],
        "baseline": baseline,
        "dense": best,
        **found,
        "active_macs": counted.active_macs,
        "executed_macs": counted.executed_macs,
        "dense_macs": counted.dense_macs,
        "flops_ratio": counted.flops_ratio,
        "peak_bytes": clock.peak_bytes(lambda: fast(image)),
    }


def describe(row: dict) -> str:
    return (
        f"{row['problem']:52s} dense {row['baseline_ms']:8.1f} ms  this "
        f"{row['candidate_ms']:8.1f} ms  x{row['speed_up']:.2f} ({row['speed_up_low']:.2f}-"
        f"{row['speed_up_high']:.2f})  active MACs {row['active_macs'] / 1e9:.2f} G"
    )


def tasks(options: Options) -> list[Task]:
    networks = {name: size for name, size in CONVERTED.items() if importable(name.split(".")[0])}
    if options.is_quick:
        networks = {}
    named = [(name, name, size) for name, size in networks.items()]
    if options.scope == "full":
        named += [(name, baseline, (161, 209)) for name, baseline in BUILDERS.items()]
    few = replace(options, pairs=min(options.pairs, 11))
    return [
        Task(
            f"{name}-{size[0]}x{size[1]}-{density}",
            partial(measure, name, baseline, size, density, few),
            describe,
        )
        for name, baseline, size in sorted(named, key=lambda item: item[1])
        for density in ((0.5, 0.9) if name in GATED or name == baseline else (1.0,))
    ]
