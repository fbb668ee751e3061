"""FLOP formulas for torch.utils.flop_counter: what the mask needs, 2 FLOPs for each MAC.

The formulas read the mask, so a count is exact for the masks that ran; taps in the padding count,
as they do in torch's formula for dense convolution.
"""

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
