"""One stage of a gated block at the pixels of a mask."""

from torch import Tensor, nn

from perfconv.nn.block_structure import Stage
from perfconv.nn.conv import PerforatedConv2d
from perfconv.ops.conv import perforated_conv2d
from perfconv.ops.mask import ActivePixels


def convolve(
    stage: Stage,
    conv: nn.Conv2d,
    features: Tensor,
    mask: Tensor | ActivePixels,
    weight: Tensor,
    bias: Tensor | None,
    *,
    fill: str = "zero",
    activation: str | None = None,
    residual: Tensor | None = None,
    base: Tensor | None = None,
    activate_base: bool = False,
) -> Tensor:
    """The convolution of ``stage`` with this weight and bias at the pixels of ``mask``."""
    return perforated_conv2d(
        features,
        weight,
        mask,
        bias,
        **geometry(stage, conv),
        fill=fill,
        base=base,
        residual=residual,
        activation=activation,
        activate_base=activate_base,
        packed_weight=pack_of(conv, weight),
    )


def geometry(stage: Stage, conv: nn.Conv2d) -> dict:
    """The arguments of the operators that are numbers of a stage's convolution."""
    return {
        "stride": conv.stride,
        "padding": stage.padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
    }


def pack_of(conv: nn.Conv2d, weight: Tensor) -> Tensor | None:
    """The pack that ``conv`` keeps, if ``weight`` is its own."""
    if isinstance(conv, PerforatedConv2d) and weight is conv.weight:
        return conv.current_pack()
    return None


def as_bool(mask: Tensor | ActivePixels) -> Tensor:
    return mask.mask if isinstance(mask, ActivePixels) else mask


def is_pointwise(stage: Stage, conv: nn.Conv2d) -> bool:
    return (conv.kernel_size, conv.stride, stage.padding) == ((1, 1), (1, 1), (0, 0))
