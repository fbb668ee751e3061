"""BatchNorm around perforated convolutions: folded into weights, or over active pixels only."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

PLAIN_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
FUNCTIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "sigmoid": F.sigmoid,
    "hardsigmoid": F.hardsigmoid,
}


def activate(values: Tensor, activation: str | None) -> Tensor:
    """An activation by its name in ``perforated_conv2d``, or a squeeze-excite's gate."""
    return values if activation is None else FUNCTIONS[activation](values)


def is_foldable(module: nn.Module) -> bool:
    """A BatchNorm with statistics of its own, or the Identity that ``fuse`` leaves.

    It may have an activation of its own, as timm's do, and nothing else.
    """
    if isinstance(module, nn.Identity):
        return True
    if not isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
        return False
    if type(module) not in PLAIN_NORMS:
        others = [m for name, m in module.named_children() if name != "act"]
        if not hasattr(module, "act") or not all(isinstance(m, nn.Identity) for m in others):
            return False
    return isinstance(module.running_mean, Tensor)


def has_statistics(module: nn.Module) -> bool:
    """A BatchNorm in training mode, whose statistics are those of its input."""
    return isinstance(module, _BatchNorm) and module.training


def includes_activation(module: nn.Module) -> bool:
    """Whether calling ``module`` applies the activation too: timm's, and what is left of it."""
    return type(module) not in (*PLAIN_NORMS, nn.Identity)


def normalized(
    norm: nn.Module, values: Tensor, mask: Tensor | None, activation: str | None
) -> Tensor:
    """BatchNorm and then ``activation``, once; batch statistics over the mask, None for all."""
    if has_statistics(norm) and not (mask is None and torch.is_grad_enabled()):
        # A pass without gradients, which computes something again, leaves running statistics alone.
        if mask is None:
            mask = torch.ones_like(values[:, :1], dtype=torch.bool)
        return activate(active_batch_norm(norm, values, mask), activation)
    return norm(values) if includes_activation(norm) else activate(norm(values), activation)


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
    if not isinstance(norm, _BatchNorm):
        return conv.weight, conv.bias
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


def active_batch_norm(norm: nn.Module, values: Tensor, mask: Tensor) -> Tensor:
    """``norm`` with batch statistics over the pixels of ``mask``; all pixels are normalised.

    Args:
        norm: a BatchNorm in training mode; its running statistics are updated, except by a mask
            without active pixels. An activation that it includes is not applied.
        values: (N, C, H, W).
        mask: (N, 1, H, W), bool.

    Notes: differentiable in values and parameters. No host sync.
    """
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
