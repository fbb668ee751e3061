"""FLOP formulas for torch.utils.flop_counter: what the mask needs, 2 FLOPs for each MAC.

The formulas read the mask, so a count is exact for the masks that ran; taps in the padding count,
as they do in torch's formula for dense convolution.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from perfconv import _ext  # noqa: F401  (loads the operators)


def active_pixels(mask: Tensor, batch: int) -> int:
    """Active output pixels of the batch; all of them if the mask holds no data (meta tensors)."""
    if mask.device.type == "meta" or isinstance(mask, FakeTensor):
        return batch * mask.size(2) * mask.size(3)
    images = batch if mask.size(0) == 1 else 1  # a mask of one image serves the whole batch
    return int(mask.sum()) * images


@register_flop_formula(
    [torch.ops.perfconv.perforated_conv2d, torch.ops.perfconv.perforated_conv2d_dgrad],
    get_raw=True,
)
def conv_flops(
    images: Tensor,
    weight: Tensor,
    mask: Tensor,
    *arguments: object,
    out_val: Tensor,
    **options: object,
) -> int:
    """An active pixel takes one MAC for each element of the weight, forwards and in dgrad."""
    return 2 * active_pixels(mask, images.size(0)) * weight.numel()


@register_flop_formula(torch.ops.perfconv.perforated_conv2d_into, get_raw=True)
def conv_into_flops(
    base: Tensor,
    input: Tensor,
    weight: Tensor,
    mask: Tensor,
    *arguments: object,
    out_val: None,
    **options: object,
) -> int:
    """The same."""
    return 2 * active_pixels(mask, base.size(0)) * weight.numel()


@register_flop_formula(torch.ops.perfconv.gated_block, get_raw=True)
def gated_block_flops(
    input: Tensor,
    shortcut: Tensor | None,
    mask: Tensor | None,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    packed_weights: Sequence[Tensor],
    *numbers: Sequence[int],
    out_val: tuple[Tensor, Tensor] | Tensor,
    **options: object,
) -> int:
    """Each stage at the pixels that the next one reads; two logits at a pixel that a gate sees."""
    decided = out_val if isinstance(out_val, Tensor) else out_val[1]
    masks = block_stage_masks(input, decided if mask is None else mask, weights, *numbers[:3])
    stages = sum(
        active_pixels(one, input.size(0)) * weight.numel()
        for one, weight in zip(masks, weights, strict=True)
    )
    return 2 * (stages + (0 if gate_weight is None else decided.numel() * gate_weight.numel()))


@register_flop_formula(torch.ops.perfconv.gated_block_into, get_raw=True)
def gated_block_into_flops(
    base: Tensor, input: Tensor | None, *arguments: Any, out_val: Tensor, **options: object
) -> int:
    """The same."""
    image = base if input is None else input
    return gated_block_flops(image, None, *arguments, out_val=out_val)


def block_stage_masks(
    input: Tensor,
    mask: Tensor,
    weights: Sequence[Tensor],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[Tensor]:
    """The pixels that each stage of a gated block computes, numbers as its operator takes them."""
    sizes = [list(input.shape[2:])]
    for i, weight in enumerate(weights):
        sizes.append(
            [
                (length + 2 * pad - spacing * (kernel - 1) - 1) // step + 1
                for length, pad, spacing, kernel, step in zip(
                    sizes[-1],
                    padding[2 * i : 2 * i + 2],
                    dilation[2 * i : 2 * i + 2],
                    weight.shape[2:],
                    stride[2 * i : 2 * i + 2],
                    strict=True,
                )
            ]
        )
    masks = [mask]
    for i in range(len(weights) - 1, 0, -1):
        pair = slice(2 * i, 2 * i + 2)
        sides = [side for side in padding[pair] for _ in range(2)]
        masks.append(
            torch.ops.perfconv.expand_mask(
                masks[-1], list(weights[i].shape[2:]), stride[pair], sides, dilation[pair], sizes[i]
            )
        )
    return masks[::-1]


@register_flop_formula(torch.ops.perfconv.gate_mask, get_raw=True)
def gate_flops(
    input: Tensor, weight: Tensor, *arguments: object, out_val: tuple, **options: object
) -> int:
    """Two logits at every pixel."""
    return 2 * 2 * input.numel()


@register_flop_formula(torch.ops.perfconv.perforated_conv2d_wgrad, get_raw=True)
def wgrad_flops(
    grad_output: Tensor,
    input: Tensor,
    mask: Tensor,
    *arguments: object,
    out_val: Tensor,
    **options: object,
) -> int:
    """The same: the result has the shape of the weight."""
    return 2 * active_pixels(mask, grad_output.size(0)) * out_val.numel()


@register_flop_formula(
    [torch.ops.perfconv.multi_dilation_conv2d, torch.ops.perfconv.multi_dilation_dgrad],
    get_raw=True,
)
def multi_dilation_flops(
    images: Tensor,
    weight: Tensor,
    choice: Tensor,
    *arguments: object,
    out_val: Tensor,
    **options: object,
) -> int:
    """A pixel takes one MAC for each element of its branch's weight; a copied pixel none."""
    dilations = next(value for value in arguments if isinstance(value, list | tuple))
    return 2 * convolved_pixels(choice, dilations) * weight.shape[-4:].numel()


@register_flop_formula(torch.ops.perfconv.multi_dilation_wgrad, get_raw=True)
def multi_dilation_wgrad_flops(
    grad_output: Tensor,
    input: Tensor,
    choice: Tensor,
    kernel_size: int,
    dilations: Sequence[int],
    *arguments: object,
    out_val: Tensor,
    **options: object,
) -> int:
    """The same."""
    return 2 * convolved_pixels(choice, dilations) * out_val.shape[-4:].numel()


def convolved_pixels(choice: Tensor, dilations: Sequence[int]) -> int:
    """Pixels that chose a dilation above 0; all of them if the choice holds no data."""
    if choice.device.type == "meta" or isinstance(choice, FakeTensor):
        return choice.numel()
    return sum(
        int((choice == branch).sum()) for branch, dilation in enumerate(dilations) if dilation != 0
    )


@register_flop_formula(torch.ops.perfconv.perforated_conv2d_backward, get_raw=True)
def backward_flops(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    mask: Tensor,
    *arguments: object,
    out_val: tuple,
    **options: object,
) -> int:
    """dgrad and wgrad."""
    return 4 * active_pixels(mask, grad_output.size(0)) * weight.numel()
