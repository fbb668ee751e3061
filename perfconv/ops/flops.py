"""FLOP formulas for torch.utils.flop_counter: what the mask needs, 2 FLOPs for each MAC.

The formulas read the mask, so a count is exact for the masks that ran; taps in the padding count,
as they do in torch's formula for dense convolution.
"""

from collections.abc import Sequence

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
