"""What timing a gated model needs: gates that open what they are told to, dense models folded."""

import sys
from functools import cache, lru_cache, partial
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._pytree import tree_leaves

import perfconv
from perfconv._bench.conv_case import rounding_bound
from perfconv._bench.timing import CpuClock, fastest
from perfconv._bench.timing_cuda import make_clock
from perfconv.nn import PixelGate
from perfconv.ops import ActivePixels

MOST_NETWORKS = 64


class GivenGate(PixelGate):
    """Reads its input and decides as ever, then hands out the mask it was given.

    Not ``force_gates``, which saves the gate: its time belongs to what is measured.
    """

    given: ActivePixels | None = None
    decides: Tensor | None = None  # (), False

    def give(self, mask: Tensor) -> None:
        with torch.inference_mode(False):  # a compiled network tells the two kinds of tensors apart
            self.take(perfconv.compact_mask(mask.clone()))

    def take(self, active: ActivePixels) -> None:
        self.given = active
        if self.decides is None:
            self.decides = active.mask.new_zeros(())

    def _has_fused_decision(self) -> bool:
        # A counter of FLOPs looks on from a dispatch mode, where gates decide by their logits.
        return self.given is not None or super()._has_fused_decision()

    def _fused_decision(self, input: Tensor) -> ActivePixels:
        if self.given is None:
            return super()._fused_decision(input)
        if not super()._has_fused_decision():
            return self.given
        own = super()._fused_decision(input)
        if self.decides is None or not torch.compiler.is_compiling():
            return self.given
        # A compiled graph leaves out what nobody reads, and with it the time of the gate.
        return ActivePixels(
            *(
                torch.where(self.decides, mine, given)
                for mine, given in zip(own, self.given, strict=True)
            )
        )


def reading_gate(channels: int) -> PixelGate:
    """A gate that opens where the first channel of its input is 1, and not where it is 0.

    It costs what any other costs, and its block runs as with any other.
    """
    gate = PixelGate(channels).requires_grad_(False)
    nn.init.zeros_(gate.conv.weight)
    assert gate.conv.bias is not None
    gate.conv.weight[1, 0] = 1
    gate.conv.bias.copy_(torch.tensor([0.5, 0.0]))
    return gate


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Convolution and BatchNorm by torch's own means, in place."""
    pairs = [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")]
    for module in model.modules():
        for conv, norm in pairs:
            layers = getattr(module, conv, None), getattr(module, norm, None)
            if isinstance(layers[1], nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(*layers))
                setattr(module, norm, nn.Identity())
    return model


@cache
def read_rate(device: str, mebibytes: int) -> float:
    """Bytes a second at which this machine reads memory, with torch's threads."""
    clock = make_clock(device)
    values = torch.ones(mebibytes << 18, device=clock.device)
    (times,) = clock.measure({"read": values.sum}, 7).values()
    return values.nbytes / (1e-3 * median(time for time in times if time is not None))


def network_dtype(device: str) -> torch.dtype:
    """In which whole networks are timed: on a GPU what its matrix units are made for."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def check_near(what: str, found: Tensor, wanted: Tensor) -> None:
    """Up to the rounding of the dtype."""
    if not (found.float() - wanted.float()).norm() <= rounding_bound(found) * wanted.float().norm():
        raise AssertionError(f"{what} is off")


@lru_cache(maxsize=2)  # a network at several densities is compiled once
def compiled_network(model: nn.Module) -> nn.Module:
    """Through torch.compile, for the shapes of its first call.

    torch compiles a function for eight objects and then no longer, without an error; the networks
    of a run share the forward of one class.
    """
    torch._dynamo.config.recompile_limit = MOST_NETWORKS
    return torch.compile(model, dynamic=False)


def fastest_way(
    model: nn.Module, image: Tensor, clock: CpuClock, with_compile: bool
) -> tuple[str, nn.Module]:
    """("eager" or "compiled", the network to call), as the dense network may choose.

    Both give the same, which is checked. A network that torch.compile does not take runs eagerly,
    and its row says so.
    """
    if not with_compile:
        return "eager", model
    made = {"eager": model, "compiled": compiled_network(model)}
    wanted = tree_leaves(model(image))
    try:
        found = tree_leaves(made["compiled"](image))
    except Exception as error:  # of the compiler, in many kinds
        print(f"{type(model).__name__} is not compiled: {error}", file=sys.stderr)
        return f"eager; torch.compile: {type(error).__name__}", model
    for value, own in zip(wanted, found, strict=True):
        if value is not None:
            check_near("the compiled network", own, value)
    best = fastest({name: partial(network, image) for name, network in made.items()}, clock)
    return best, made[best]
