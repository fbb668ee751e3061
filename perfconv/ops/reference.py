"""Oracles in plain PyTorch: slow, obviously right, differentiable by torch alone.

Everything is computed densely in float64 from the definition; tests compare the operators with it.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

IntPair = int | tuple[int, int]


def activate(values: Tensor, name: str | None) -> Tensor:
    """The activation of that name, as torch defines it."""
    if name is None:
        return values
    return {"relu": F.relu, "relu6": F.relu6, "silu": F.silu, "hardswish": F.hardswish}[name](
        values
    )


def nearest_source(mask: Tensor) -> Tensor:
    """Where each pixel finds its value under the nearest fill.

    Args:
        mask: (N, 1, H, W), bool.

    Returns:
        (N, H*W), int64: the flat position in the same image of the active pixel at the smallest
        squared distance, of several the lowest one; -1 in an image without any.
    """
    batch, _, height, width = mask.shape
    flat = torch.arange(height * width)
    rows, columns = flat // max(width, 1), flat % max(width, 1)
    distance = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2  # (H*W, H*W)
    sources = torch.full((batch, height * width), -1)
    for image in range(batch):
        active = mask[image, 0].flatten().nonzero()[:, 0]  # ascending
        if len(active):
            # argmin may return any of several minima: the position breaks the tie.
            ranked = distance[:, active] * (height * width) + active
            sources[image] = active[ranked.argmin(1)]
    return sources


def nearest_fill(values: Tensor, mask: Tensor) -> Tensor:
    """(N, C, H, W) ``values`` with inactive pixels replaced by the nearest active ones, or 0."""
    mask = mask.expand(values.size(0), -1, -1, -1)
    source = nearest_source(mask)[:, None]  # (N, 1, H*W)
    if values.numel() == 0:
        return values
    taken = values.flatten(2).gather(2, source.clamp(min=0).expand(-1, values.size(1), -1))
    return torch.where(source < 0, 0, taken).reshape(values.shape)


def perforated_conv2d(
    input: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    *,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    fill: str = "zero",
    base: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    activate_base: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """``where(mask, activation(conv2d(input, weight, bias) + residual), fill)`` in ``dtype``.

    Arguments as in ``perfconv.perforated_conv2d``, input with a batch dimension. Computed in the
    dtype of the input, this is what a user without perfconv would write.
    """
    input, weight = input.to(dtype), weight.to(dtype)
    bias, base, residual = (
        value if value is None else value.to(dtype) for value in (bias, base, residual)
    )
    values = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if residual is not None:
        values = values + residual
    values = activate(values, activation)
    if fill == "nearest":
        return nearest_fill(values, mask)
    if fill == "passthrough":
        assert base is not None
        return torch.where(mask, values, activate(base, activation) if activate_base else base)
    return torch.where(mask, values, torch.nan if fill == "none" else 0)


def gate_mask(
    input: Tensor, weight: Tensor, bias: Tensor | None, *, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """The two logits (N, 2, H, W) of a 1x1 gate and P(compute) (N, 1, H, W).

    A pixel is active where the second logit is the larger one.
    """
    logits = torch.einsum("jc,nchw->njhw", weight.to(dtype).flatten(1), input.to(dtype))
    if bias is not None:
        logits = logits + bias.to(dtype)[:, None, None]
    return logits, logits.softmax(1)[:, 1:]


def multi_dilation_conv2d(
    input: Tensor,
    weight: Tensor,
    choice: Tensor,
    bias: Tensor | None = None,
    *,
    dilations: Sequence[int],
    activation: str | None = None,
    fill: str = "zero",
    base: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Every branch computed densely, and for each pixel the branch that it chose.

    Arguments as in ``perfconv.multi_dilation_conv2d``; choices out of range count as inactive.
    """
    input, weight = input.to(dtype), weight.to(dtype)
    bias, base = (value if value is None else value.to(dtype) for value in (bias, base))
    shape = (input.size(0), weight.size(-4), *input.shape[2:])
    values = input.new_zeros(shape)
    for branch, dilation in enumerate(dilations):
        if dilation == 0:
            result = input
        else:
            result = F.conv2d(
                input,
                weight if weight.dim() == 4 else weight[branch],
                bias if bias is None or bias.dim() == 1 else bias[branch],
                padding=dilation * (weight.size(-1) // 2),
                dilation=dilation,
            )
            result = activate(result, activation)
        values = torch.where(choice == branch, result, values)
    active = (choice >= 0) & (choice < len(dilations))
    if fill == "nearest":
        return nearest_fill(values, active)
    return torch.where(active, values, 0 if base is None else base)


def expand_mask(
    mask: Tensor,
    kernel_size: tuple[int, int],
    *,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    input_size: tuple[int, int],
) -> Tensor:
    """(N, 1, H, W), bool: the input pixels that the active outputs read.

    The image of flat positions, counted from 1, is unfolded like an input: it names the pixels
    that each output reads.
    """
    positions = torch.arange(1.0, input_size[0] * input_size[1] + 1).double()
    read = F.unfold(
        positions.reshape(1, 1, *input_size), kernel_size, dilation, padding, stride
    )  # (1, K_h*K_w, H_out*W_out), 0 where padded
    expanded = torch.zeros(mask.size(0), positions.numel() + 1, dtype=torch.bool)
    for image in range(mask.size(0)):
        expanded[image, read[0][:, mask[image].flatten()].flatten().long()] = True
    return expanded[:, 1:].reshape(mask.size(0), 1, *input_size)


def active_positions(mask: Tensor) -> list[int]:
    """Flat positions of the True pixels of an (N, 1, H, W) mask, ascending."""
    return mask.flatten().nonzero()[:, 0].tolist()
