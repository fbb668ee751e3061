"""Which gated blocks run as one operator, and with which arguments."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from perfconv.nn.batch_norm import folded, has_statistics
from perfconv.nn.stage_conv import pack_of
from perfconv.ops.arguments import is_autocast
from perfconv.ops.autograd import is_eager
from perfconv.ops.gated_block import BlockStages

if TYPE_CHECKING:
    from perfconv.nn.gated_block import GatedBlock


def whole_block(block: "GatedBlock", input: Tensor) -> BlockStages | None:
    """The stages of ``block`` for ``gated_block``; None where it must run stage by stage.

    That is: with gradients, autocast, transforms or a graph on its way to another runtime; with a
    squeeze-excite or without a perforated F3, which look at inactive pixels; with several dtypes,
    several activations, or a layer without bias.
    """
    if torch.is_grad_enabled() or block.structure.squeeze is not None or not block.perforate_f3:
        return None
    if not _is_ours_to_run() or is_autocast(input):
        return None
    weights, biases, packs = [], [], []
    numbers: dict[str, list[int]] = {"stride": [], "padding": [], "dilation": []}
    groups = []
    for stage in block.stages:
        conv, norm = block._conv(stage), block._norm(stage)
        if has_statistics(norm):
            return None
        weight, bias = folded(conv, norm)
        if bias is None or not weight.dtype == bias.dtype == input.dtype:
            return None
        weights.append(weight)
        biases.append(bias)
        pack = pack_of(conv, weight)
        if pack is not None:
            packs.append(pack)
        numbers["stride"] += conv.stride
        numbers["padding"] += stage.padding
        numbers["dilation"] += conv.dilation
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
        **numbers,
        groups=groups,
        activation=activations.pop(),
        sum_activation=block.sum_activation,
    )


def _is_ours_to_run() -> bool:
    """Eager, or compiled to run here: other runtimes are given the operators of the stages."""
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return False
    return torch.compiler.is_compiling() or is_eager()
