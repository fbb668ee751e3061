"""Weights in the order the kernels read them."""

import torch
from torch import Tensor

from perfconv import _ext
from perfconv.ops.arguments import check_int, check_tensor


def pack_weight(weight: Tensor, *, groups: int = 1) -> Tensor:
    """A copy of a convolution weight in the order of this machine's kernels.

    Without it a weight is packed in every call. The result holds for this process only: never save
    it. ``perfconv.prepack`` keeps one in each layer of a model.

    Args:
        weight: (C_out, C_in / groups, K_h, K_w), or (K, C_out, C_in, k, k) for the branches of
            ``multi_dilation_conv2d``.
        groups: of the convolution.

    Returns:
        A flat tensor whose length and dtype are those of the kernels in use; (K, length) for
        branches. Empty on CUDA where the kernels read channels_last weights as they are: all but
        bfloat16 and float16 on GPUs of capability 9.0.

    Raises:
        TypeError: ``weight`` is not a floating-point tensor, or ``groups`` is not an int.
        ValueError: ``weight`` is not 4-D or 5-D, or C_out is not a multiple of ``groups``.

    Notes: not differentiable. Deterministic.
    Example:
        >>> pack_weight(torch.randn(32, 16, 3, 3)).numel() >= 32 * 16 * 9
        True
    """
    check_tensor("pack_weight", "weight", weight)
    check_int("pack_weight", "groups", groups)
    if weight.dim() == 5:
        return torch.stack([torch.ops.perfconv.pack_weight(one, groups) for one in weight.detach()])
    return torch.ops.perfconv.pack_weight(weight.detach(), groups)


@torch.library.register_fake("perfconv::pack_weight")
def _pack_weight_fake(weight: Tensor, groups: int) -> Tensor:
    length = torch.library.get_ctx().new_dynamic_size()
    on_cuda = weight.device.type == "cuda"
    return weight.new_empty(
        (length,), dtype=weight.dtype if on_cuda else compute_dtype(weight.dtype)
    )


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which this machine's kernels multiply (csrc/cpu/pack.cpp, plan_gemm)."""
    multiplies_bfloat16 = _ext.build_info()["cpu_isa"] == "avx512_bf16"
    if dtype == torch.float16 or (dtype == torch.bfloat16 and not multiplies_bfloat16):
        return torch.float32
    return dtype
