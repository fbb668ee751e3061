"""BatchNorm around perforated convolutions: folded into weights, or over active pixels only."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def is_foldable(module: nn.Module) -> bool:
    """A BatchNorm with statistics of its own, or the Identity that ``fuse`` leaves."""
    if isinstance(module, nn.Identity):
        return True
    known = (nn.BatchNorm2d, nn.SyncBatchNorm)
    return type(module) in known and isinstance(module.running_mean, Tensor)


def freeze_statistics(module: nn.Module) -> None:
    """Every BatchNorm below takes its stored statistics, until the next ``train()``."""
    for child in module.modules():
        if isinstance(child, _BatchNorm):
            child.eval()


def folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of the one convolution that is ``conv`` followed by ``norm``.

    With s = gamma / sqrt(variance + eps): weight s * W, bias s * (b - mean) + beta. Differentiable
    in every parameter; the statistics are those of evaluation. The shift becomes a bias, so that a
    perforated convolution adds it at active pixels only.
    """
    if isinstance(norm, nn.Identity):
        return conv.weight, conv.bias
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)  # (C_out,)
    if norm.weight is not None:
        scale = scale * norm.weight
    centre = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
    shift = -scale * centre
    if norm.bias is not None:
        shift = shift + norm.bias
    weight = conv.weight * scale.to(conv.weight.dtype)[:, None, None, None]
    return weight, shift.to(weight.dtype)


def active_batch_norm(norm: nn.Module, values: Tensor, mask: Tensor | None) -> Tensor:
    """``norm`` with batch statistics over the pixels of ``mask``; all pixels are normalised.

    Args:
        norm: a BatchNorm in training mode; its running statistics are updated, except by a mask
            without active pixels. In evaluation mode, and for None as the mask, ``norm`` itself.
        values: (N, C, H, W).
        mask: (N, 1, H, W), bool, or None.

    Notes: differentiable in values and parameters. No host sync.
    """
    if mask is None or not norm.training or isinstance(norm, nn.Identity):
        return norm(values)
    assert isinstance(norm, _BatchNorm)
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    chosen = mask.to(wide.dtype)
    count = chosen.sum()
    share = 1 / count.clamp(min=1)
    mean = torch.where(mask, wide, 0).sum((0, 2, 3)) * share  # (C,)
    centred = wide - mean[:, None, None]
    variance = (centred.square() * chosen).sum((0, 2, 3)) * share
    if torch.is_grad_enabled():
        _update_statistics(norm, mean.detach(), variance.detach(), count)
    scale = torch.rsqrt(variance + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    result = centred * scale[:, None, None]
    if norm.bias is not None:
        result = result + norm.bias[:, None, None]
    return result.to(values.dtype)


def _update_statistics(norm: _BatchNorm, mean: Tensor, variance: Tensor, count: Tensor) -> None:
    """As torch does it: the running variance is the unbiased one."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    has_pixels = count > 0
    norm.num_batches_tracked.add_(has_pixels)
    if norm.momentum is None:
        rate = 1 / norm.num_batches_tracked.clamp(min=1).to(mean.dtype)
    else:
        rate = torch.full_like(count, norm.momentum)
    rate = torch.where(has_pixels, rate, 0)
    unbiased = variance * (count / (count - 1).clamp(min=1))
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), rate.to(norm.running_mean.dtype))
    norm.running_var.lerp_(unbiased.to(norm.running_var.dtype), rate.to(norm.running_var.dtype))
