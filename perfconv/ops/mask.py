"""Masks: the compacted form, the input pixels a mask needs, other resolutions, density."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from perfconv import _ext  # noqa: F401  (loads the operators)
from perfconv.ops.arguments import (
    IntPair,
    check_bool_mask,
    check_mask_image,
    four_sided_padding,
    int_pair,
)


class ActivePixels(NamedTuple):
    """A mask with the list of its active pixels: make it once, hand it to every layer.

    The order of ``active_idx`` is a pure function of the mask and otherwise unspecified.
    """

    mask: Tensor  # (N, 1, H, W), bool, True = compute
    active_idx: Tensor  # (N*H*W,), int32 flat positions; the entries past the count are -1
    count: Tensor  # type: ignore[assignment]  # (1,), int32, on the device of the mask
    image_counts: Tensor  # (N,), int32


def compact_mask(mask: Tensor) -> ActivePixels:
    """The active pixels of a mask as a list of static length, its count left on the device.

    Args:
        mask: (N, 1, H, W), bool, True = compute. An ``ActivePixels`` is returned as it is.

    Returns:
        An :class:`ActivePixels`.

    Raises:
        TypeError: ``mask`` is not bool.
        ValueError: ``mask`` is not (N, 1, H, W), or N*H*W is 2**31 or more.

    Notes: not differentiable. Deterministic. No host sync.
    Example:
        >>> mask = torch.tensor([[[[True, False], [False, True]]]])
        >>> compact_mask(mask).active_idx.tolist()
        [0, 3, -1, -1]
    """
    if isinstance(mask, ActivePixels):
        return mask
    check_bool_mask("compact_mask", mask)
    return ActivePixels(mask, *torch.ops.perfconv.compact_mask(mask))


@torch.library.register_fake("perfconv::compact_mask")
def _compact_mask_fake(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (
        mask.new_empty((mask.numel(),), dtype=torch.int32),
        mask.new_empty((1,), dtype=torch.int32),
        mask.new_empty((mask.size(0),), dtype=torch.int32),
    )


def expand_mask(
    mask: Tensor,
    kernel_size: IntPair,
    *,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    input_size: IntPair | None = None,
) -> Tensor:
    """The input pixels that a convolution reads for the active output pixels (their halo).

    Args:
        mask: (N, 1, H_out, W_out), bool, or ActivePixels.
        kernel_size, stride, padding, dilation: of the convolution; pixels, (h, w) order.
        input_size: (H, W) of the input. Required if the stride is above 1, where several input
            sizes give the same output; otherwise it follows from the mask.

    Returns:
        (N, 1, H, W), bool: True where some active output reads the pixel.

    Raises:
        TypeError: ``mask`` is not bool.
        ValueError: ``input_size`` is missing with a stride, or does not give the mask's size.

    Notes: not differentiable. Deterministic. No host sync.
    Example:
        >>> mask = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
        >>> mask[0, 0, 1, 1] = True
        >>> int(expand_mask(mask, 3, padding=1).sum())
        9
    """
    op = "expand_mask"
    if isinstance(mask, ActivePixels):
        mask = mask.mask
    check_mask_image(op, mask)
    kernel = int_pair(op, "kernel_size", kernel_size)
    steps = int_pair(op, "stride", stride)
    spacing = int_pair(op, "dilation", dilation)
    sides = four_sided_padding(op, padding, kernel, spacing, steps)
    if input_size is None:
        if steps != [1, 1]:
            raise ValueError(
                f"{op}: input_size must be given with stride {tuple(steps)}, where several sizes "
                "give this mask, got None. Pass input_size=(H, W)."
            )
        size = [
            mask.size(2) + spacing[0] * (kernel[0] - 1) - sides[0] - sides[1],
            mask.size(3) + spacing[1] * (kernel[1] - 1) - sides[2] - sides[3],
        ]
    else:
        size = int_pair(op, "input_size", input_size)
    return torch.ops.perfconv.expand_mask(mask, kernel, steps, sides, spacing, size)


@torch.library.register_fake("perfconv::expand_mask")
def _expand_mask_fake(
    mask: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    input_size: list[int],
) -> Tensor:
    return mask.new_empty((mask.size(0), 1, input_size[0], input_size[1]))


def downsample_mask(mask: Tensor, stride: IntPair, *, size: IntPair | None = None) -> Tensor:
    """The mask on a coarser grid: True where any pixel of the cell is.

    Args:
        mask: (N, 1, H, W), bool, or ActivePixels.
        stride: cell size in pixels, (h, w) order.
        size: (height, width) of the result; each side is ceil(H / stride), the default, or
            floor(H / stride), where the last cell also takes the pixels beyond it.

    Returns:
        (N, 1, ceil(H / stride), ceil(W / stride)) or (N, 1, *size), bool.

    Raises:
        TypeError: ``mask`` is not bool.
        ValueError: ``stride`` is not positive, or ``size`` is neither floor nor ceil.

    Notes: not differentiable. No host sync.
    Example:
        >>> downsample_mask(torch.eye(4, dtype=torch.bool)[None, None], 2)[0, 0].tolist()
        [[True, False], [False, True]]
    """
    op = "downsample_mask"
    if isinstance(mask, ActivePixels):
        mask = mask.mask
    check_mask_image(op, mask)
    cell = int_pair(op, "stride", stride)
    if min(cell) < 1 or max(cell) > 2**30:
        raise ValueError(
            f"{op}: stride must be 1 or more (and below 2^30), got {tuple(cell)}. "
            "Give it in pixels."
        )
    pooled = F.max_pool2d(mask.float(), cell, cell, ceil_mode=True) > 0  # (N, 1, ceil, ceil)
    if size is None:
        return pooled
    for axis, wanted in zip((2, 3), int_pair(op, "size", size), strict=True):
        found, length = pooled.size(axis), mask.size(axis)
        if wanted == found:
            continue
        if wanted != length // cell[axis - 2] or wanted < 1:
            raise ValueError(
                f"{op}: size must be ceil or floor of {length} / {cell[axis - 2]} along "
                f"dimension {axis}, got {wanted}. Leave size out for ceil."
            )
        merged = pooled.narrow(axis, wanted - 1, found - wanted + 1).any(axis, keepdim=True)
        pooled = torch.cat([pooled.narrow(axis, 0, wanted - 1), merged], axis)
    return pooled


def density(mask: Tensor) -> Tensor:
    """The share of active pixels of each image.

    Args:
        mask: (N, 1, H, W), bool, or ActivePixels.

    Returns:
        (N,), float32, in [0, 1].

    Raises:
        TypeError: ``mask`` is not bool.
        ValueError: ``mask`` is not (N, 1, H, W).

    Notes: not differentiable. No host sync.
    Example:
        >>> density(torch.eye(2, dtype=torch.bool)[None, None]).tolist()
        [0.5]
    """
    if isinstance(mask, ActivePixels):
        mask = mask.mask
    check_mask_image("density", mask)
    return mask.flatten(1).float().mean(1)  # (N,)
