"""A gated block as one operator: which ones, with which arguments, and the call."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from perfconv.nn.batch_norm import folded, has_statistics
from perfconv.nn.conv import PerforatedConv2d, version
from perfconv.nn.hooks import is_tapped
from perfconv.nn.stage_conv import pack_of
from perfconv.ops.arguments import is_autocast
from perfconv.ops.autograd import is_eager
from perfconv.ops.gated_block import BlockStages, gated_block, gated_block_into

if TYPE_CHECKING:
    from perfconv.nn.gated_block import GatedBlock


class KeptStages(NamedTuple):
    """The stages of a fused block, until one of the things changes that they were made of.

    A call right after other work finds no code in the caches: a look at twenty places costs a tenth
    of asking every layer (KERNELS.md K-040).
    """

    stages: BlockStages
    held: tuple[tuple[dict, str, object], ...]  # what must still be there
    versions: tuple[tuple[Tensor, int | None], ...]  # autograd's count of edits of each weight

    def are_current(self) -> bool:
        for owner, name, value in self.held:
            if owner.get(name) is not value:
                return False
        for weight, count in self.versions:
            if count is not None and weight._version != count:
                return False
        return True


def whole_block(block: "GatedBlock", input: Tensor) -> BlockStages | None:
    """The stages of ``block`` for ``gated_block``; None where it must run stage by stage.

    That is: with gradients, autocast, transforms or a graph on its way to another runtime; with a
    squeeze-excite or without a perforated F3, which look at inactive pixels; with several dtypes,
    several activations, or a layer without bias.
    """
    if torch.is_grad_enabled() or block.structure.squeeze is not None or not block.perforate_f3:
        return None
    if torch.compiler.is_compiling():
        # Other runtimes are given the operators of the stages.
        is_exported = torch.compiler.is_exporting()
        return None if is_exported or is_autocast(input) else _stages(block, input.dtype)
    if not is_eager() or torch.jit.is_tracing() or is_autocast(input):
        return None
    kept = block._kept_stages
    if kept is not None and kept.are_current():
        return kept.stages
    stages = _stages(block, input.dtype)
    if stages is not None:
        block._kept_stages = _kept(block, stages)
    return stages


def run_at_once(
    block: "GatedBlock", input: Tensor, stages: BlockStages, owns_input: bool
) -> Tensor:
    """Sparse execution by one operator, in inference."""
    gate = block._modules["gate"]
    mask = None
    weights = gate.decision_weights(stages.total_stride)  # type: ignore[union-attr, operator]
    if weights is None:
        mask = block.given_mask(input)
    path = block.structure.shortcut
    if path is None:
        if owns_input:
            return gated_block_into(input, stages, mask, gate=weights)
        return gated_block(input, stages, mask, gate=weights)
    projection = block._layer(path)
    shortcut = projection(input)
    if block.overwrites_shortcut and not is_tapped(projection):
        return gated_block_into(shortcut, stages, mask, gate=weights, input=input)
    return gated_block(input, stages, mask, gate=weights, shortcut=shortcut)


def _stages(block: "GatedBlock", dtype: torch.dtype) -> BlockStages | None:
    weights, biases, packs = [], [], []
    stride: list[int] = []
    padding: list[int] = []
    dilation: list[int] = []
    groups = []
    for stage in block.stages:
        conv, norm = block._conv(stage), block._norm(stage)
        if has_statistics(norm):
            return None
        weight, bias = folded(conv, norm)
        if bias is None or not weight.dtype == bias.dtype == dtype:
            return None
        weights.append(weight)
        biases.append(bias)
        pack = pack_of(conv, weight)
        if pack is not None:
            packs.append(pack)
        stride += conv.stride
        padding += stage.padding
        dilation += conv.dilation
        groups.append(conv.groups)
    activations = {stage.activation for stage in block.stages[:-1]}
    if len(activations) > 1:
        return None
    if len(packs) < len(weights):
        packs = []
    return BlockStages(
        weights,
        biases,
        packs,
        stride,
        padding,
        dilation,
        groups,
        activation=activations.pop(),
        sum_activation=block.sum_activation,
    )


def _kept(block: "GatedBlock", stages: BlockStages) -> KeptStages | None:
    """None for layers that are not fused: their weights are folded in every call."""
    held: list[tuple[dict, str, object]] = []
    for stage, weight, bias in zip(block.stages, stages.weights, stages.biases, strict=True):
        conv, norm = block._conv(stage), block._norm(stage)
        if weight is not conv._parameters.get("weight") or not isinstance(conv, PerforatedConv2d):
            return None
        for path, layer in ((stage.conv, conv), (stage.norm, norm)):
            held += _places(block, path, layer)
        held += [(conv._parameters, "weight", weight), (conv._parameters, "bias", bias)]
        held.append((conv.__dict__, "_packed_weight", conv._packed_weight))
    versions = tuple((weight, version(weight)) for weight in stages.weights)
    return KeptStages(stages, tuple(held), versions)


def _places(block: nn.Module, path: str, layer: nn.Module) -> list[tuple[dict, str, object]]:
    """Where ``layer`` hangs in ``block``, and what that hangs in."""
    places: list[tuple[dict, str, object]] = []
    parent = block
    for name in path.split("."):
        child = parent._modules[name]
        assert child is not None
        places.append((parent._modules, name, child))
        parent = child
    assert parent is layer
    return places
