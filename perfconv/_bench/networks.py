"""Whole networks by name: every builder of the parsers, networks converted, and a training step.

The dense baseline of a parser is the network without gates and pools on the same trunk; of a
converted network the network itself; both with BatchNorm folded, in the faster layout, eager and
(--no-compile leaves that out) through torch.compile; the network is the faster of eager and
compiled. On a GPU in bfloat16, and once more with both as CUDA graphs. Random weights, gates given
masks of 9-pixel blobs, each of one density; image-wise gates of whole blocks are opened one by one
to that share.
"""

import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._pytree import tree_leaves

import perfconv
from perfconv._bench.gated_models import (
    GivenGate,
    check_near,
    compiled_network,
    fastest_way,
    network_dtype,
)
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


_defined: list[torch.library.Library] = []  # schemas live as long as their library


def importable(name: str) -> bool:
    """Whether a package of networks is there, torchvision's also beside another torch.

    Built for another torch it fails at import for want of the schemas of its own operators, which
    its networks do not use: defined here, they are enough.
    """
    for _ in range(2):
        try:
            importlib.import_module(name)
            return True
        except (ImportError, OSError):
            return False
        except RuntimeError:
            if _defined:
                return False
            library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                library.define(operator + schema)
            _defined.append(library)
            for module in [
                key for key in sys.modules if key.split(".")[0] in (name, "torchvision")
            ]:
                del sys.modules[module]
    return False


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
    """A copy with every BatchNorm folded into the convolution defined just before it.

    That these belong together is checked by the output. timm's norms hold their activation.
    """
    made = copy.deepcopy(model)
    for module in made.modules():
        children = list(module.named_children())
        for (name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, getattr(norm, "act", nn.Identity()))
    check_same(model, made, make_image((64, 64)))
    return made


def make_image(size: tuple[int, int]) -> Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))


def check_same(model: nn.Module, other: nn.Module, image: Tensor) -> None:
    """Both give the same for an image, up to rounding."""
    with torch.inference_mode():
        wanted, found = (tree_leaves(network(image)) for network in (model, other))
    for value, own in zip(wanted, found, strict=True):
        if value is None and own is None:  # a task that the network was not asked for
            continue
        check_near(f"{type(model).__name__}: the network to be timed", own, value)


class Pair:
    """A network, and fused as it is timed; both take the masks of one density after another.

    One fused network for all densities: torch.compile takes longer than every call together.
    """

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.image = image
        self.model = model.to(image.device, image.dtype, memory_format=torch.channels_last)
        self.fast: nn.Module | None = None

    def at(self, density: float) -> nn.Module:
        """The fused network with these masks; it must still do the same."""
        for model in filter(None, (self.model, self.fast)):
            if perfconv.gates(model):
                give_masks(model, self.image, density)
        if self.fast is None:
            self.fast = perfconv.fuse(copy.deepcopy(self.model), inplace=True)
        check_same(self.model, self.fast, self.image)
        return self.fast


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


@lru_cache(maxsize=2)  # compiled, and not for CUDA graphs
def dense_calls(
    name: str, size: tuple[int, int], device: str, with_compile: bool
) -> tuple[dict[str, Call], str, int]:
    """The baseline's calls, the name of the fastest of them, and its MACs."""
    image = timed_image(size, device)
    model = folded(make_model(name)).to(image.device, image.dtype)
    macs = perfconv.flops.count(model, image).dense_macs
    calls: dict[str, Call] = {}
    for layout, kind in LAYOUTS.items():
        own, values = copy.deepcopy(model).to(memory_format=kind), image.to(memory_format=kind)
        calls[layout] = partial(own, values)
        if with_compile:
            calls[f"{layout}, compiled"] = partial(compiled_network(own), values)
    with torch.inference_mode():
        return calls, fastest(calls, make_clock(device)), macs


def timed_image(size: tuple[int, int], device: str) -> Tensor:
    """On the device of a clock, in the dtype of whole networks there, channels_last."""
    image = make_image(size).to(make_clock(device).device, network_dtype(device))
    return image.to(memory_format=torch.channels_last)


def versus(
    model: nn.Module, baseline: str, size: tuple[int, int], options: Options, is_graph: bool
) -> dict:
    """What a network that is prepared takes, against a dense one; its MACs and memory.

    Both are as fast as they can be, eager or compiled; or both are CUDA graphs, not compiled.
    """
    clock = make_clock(options.device)
    with_compile = options.with_compile and not is_graph
    calls, best, baseline_macs = dense_calls(baseline, size, options.device, with_compile)
    image = timed_image(size, options.device)
    counted = perfconv.flops.count(model, image)
    capture: Callable[[Call], Call] = clock.captured if is_graph else lambda call: call
    with torch.inference_mode():
        way, run = fastest_way(model, image, clock, with_compile)
        pair = {"dense": capture(calls[best]), "auto": capture(partial(run, image))}
        found = compared(clock.measure(pair, options.pairs))["auto"]
        memory = clock.peak_bytes(partial(run, image))
    return {
        "height": size[0],
        "width": size[1],
        "baseline": baseline,
        "dense": best,
        "own": way,
        **found,
        "active_macs": counted.active_macs,
        "executed_macs": counted.executed_macs,
        "dense_macs": counted.dense_macs,
        "baseline_macs": baseline_macs,
        "flops_ratio": counted.active_macs / baseline_macs,
        "peak_bytes": memory,
    }


@lru_cache(maxsize=1)
def pair_of(name: str, baseline: str, size: tuple[int, int], device: str) -> Pair:
    model = make_model(name)
    return Pair(perfconv.convert(model) if name == baseline else model, timed_image(size, device))


def measure(
    name: str,
    baseline: str,
    size: tuple[int, int],
    density: float,
    options: Options,
    is_graph: bool = False,
) -> Iterator[dict]:
    fast = pair_of(name, baseline, size, options.device).at(density)
    found = versus(fast, baseline, size, options, is_graph)
    yield {"algorithm": "auto", "density": density, "pattern": "blobs", **found}


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
    few = options.with_pairs(11)
    return [
        Task(
            f"{name}-{size[0]}x{size[1]}-{density}",
            partial(measure, name, baseline, size, density, few, pass_name == "graph"),
            describe,
            pass_name,
        )
        for name, baseline, size in sorted(named, key=lambda item: item[1])
        for density in ((0.5, 0.9) if name in GATED or name == baseline else (1.0,))
        for pass_name in (("graph", "") if options.with_graphs else ("",))
    ]
