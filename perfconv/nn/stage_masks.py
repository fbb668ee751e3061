"""Grids of a gated block's stages, and the pixels that each must compute for the next one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perfconv.nn.block_structure import Stage
from perfconv.nn.stage_conv import as_bool, is_pointwise
from perfconv.ops.conv_grad import output_size
from perfconv.ops.mask import ActivePixels, expand_mask


def stage_sizes(
    stages: Sequence[Stage], convs: Sequence[nn.Conv2d], input: Tensor
) -> list[tuple[int, int]]:
    """The output size of each stage for ``input`` (N, C, H, W)."""
    sizes = []
    size = (input.size(2), input.size(3))
    if torch.jit.is_tracing():  # where sizes are tensors; FLOP counters trace
        size = (int(size[0]), int(size[1]))
    for stage, conv in zip(stages, convs, strict=True):
        top, left = stage.padding
        height, width = output_size(
            size, conv.kernel_size, conv.stride, [top, top, left, left], conv.dilation
        )
        size = (height, width)
        sizes.append(size)
    return sizes


def stage_masks(
    stages: Sequence[Stage],
    convs: Sequence[nn.Conv2d],
    mask: Tensor | ActivePixels,
    sizes: Sequence[tuple[int, int]],
    squeezed: int | None,
) -> list:
    """The pixels that each stage must compute, for the last one to have those of ``mask``.

    None stands for all of them: what a squeeze-excite pools, after stage ``squeezed``, is dense.
    """
    masks: list = [mask]
    for index in range(len(stages) - 1, 0, -1):
        if index == squeezed:
            return [None] * index + masks[::-1]
        stage, conv = stages[index], convs[index]
        if not is_pointwise(stage, conv):
            mask = expand_mask(
                as_bool(mask),
                conv.kernel_size,
                stride=conv.stride,
                padding=stage.padding,
                dilation=conv.dilation,
                input_size=sizes[index - 1],
            )
        masks.append(mask)
    return masks[::-1]
