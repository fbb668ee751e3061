"""What makes a module a plain residual block, found by its layers and their names."""

from itertools import pairwise
from typing import NamedTuple

from torch import nn

from perfconv.nn.batch_norm import is_foldable
from perfconv.nn.conv import PerforatedConv2d

ACTIVATIONS = ("relu", "act", "act1", "act2", "act3", "relu1", "relu2", "relu3")


class Stage(NamedTuple):
    """A convolution and its BatchNorm, by the names of their attributes."""

    conv: str
    norm: str


def why_not(block: nn.Module, stages: tuple[Stage, ...]) -> str | None:
    """Why ``block`` is no plain residual block of these stages; None if it is one.

    A plain residual block is ReLU(shortcut + branch), the branch a chain of convolutions, each
    followed by its BatchNorm and, but for the last, by a ReLU; the shortcut is the input or
    ``downsample`` of it. Names as in torchvision and timm. That ``forward`` really computes this
    cannot be seen from the layers; ``perfconv.convert`` compares outputs.
    """
    children = dict(block.named_children())
    for stage in stages:
        for name in stage:
            if name not in children:
                return f"it has no layer {name}"
        reason = _why_not_conv(children[stage.conv])
        if reason is not None:
            return f"its {stage.conv} {reason}"
        if not is_foldable(children[stage.norm]):
            kind = type(children[stage.norm]).__name__
            return f"its {stage.norm} is a {kind}, not a BatchNorm with running statistics"
    known = {name for stage in stages for name in stage} | {"downsample"}
    for name, child in children.items():
        if name in ACTIVATIONS and type(child) is not nn.ReLU:
            return f"its {name} is a {type(child).__name__}, not a ReLU"
        if name not in (*known, *ACTIVATIONS) and not isinstance(child, nn.Identity):
            return f"it has a further layer {name}, a {type(child).__name__}"
    return _why_not_chained([children[stage.conv] for stage in stages], "downsample" in children)


def _why_not_conv(conv: nn.Module) -> str | None:
    if type(conv) not in (nn.Conv2d, PerforatedConv2d):
        return f"is a {type(conv).__name__}, not a Conv2d"
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return f"has padding {conv.padding!r}, {conv.padding_mode!r}, not numbers of zeros"
    return None


def _why_not_chained(convs: list, has_projection: bool) -> str | None:
    for before, after in pairwise(convs):
        if before.out_channels != after.in_channels:
            return f"its layers do not fit, {before.out_channels} to {after.in_channels} channels"
    has_stride = any(conv.stride != (1, 1) for conv in convs)
    if not has_projection and (has_stride or convs[0].in_channels != convs[-1].out_channels):
        return "it changes the shape without a downsample layer"
    return None
