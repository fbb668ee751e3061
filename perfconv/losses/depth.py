"""Losses of monocular depth: log-depth L2, and its scale-invariant form."""

import torch
from torch import Tensor

from perfconv.losses.arguments import check_form, check_maps, checked_valid, masked_mean, wide


def log_depth_loss(
    log_depth: Tensor, depth_m: Tensor, *, valid: Tensor | None = None, form: str = "valid"
) -> Tensor:
    """Squared difference of natural logarithms, with D the depth and x = log D the prediction.

    - "valid": the mean of (x - log D)^2 over the valid pixels of the batch; 0 where none is.
    - "authors": 0.5 / (all pixels) times the sum over the valid ones.

    No scale or shift is fitted.

    Args:
        log_depth: (N, 1, H, W), the natural logarithm of metres.
        depth_m: (N, 1, H, W), metres. Pixels that are not finite and above 0 never count.
        valid: (N, 1, H, W), bool, True = counts; default: all of those.
        form: "valid" or "authors".

    Returns:
        A scalar, float32 (float64 for float64 input).

    Raises:
        TypeError: a map is not floating point, or ``valid`` not bool.
        ValueError: shapes or devices differ, or ``form`` is neither.

    Notes: differentiable in log_depth. No host sync.
    Source: Kong and Fowlkes 2018; their code predicts log millimetres, a constant apart.
    Example:
        >>> depth_m = torch.tensor([1.0, torch.e, 0.0, 0.0]).reshape(1, 1, 1, 4)  # two valid ones
        >>> round(float(log_depth_loss(torch.zeros(1, 1, 1, 4), depth_m)), 4)
        0.5
    """
    check_form("log_depth_loss", form)
    difference, counts = _log_difference("log_depth_loss", log_depth, depth_m, valid)
    if form == "authors":
        return 0.5 * difference.square().sum() / counts.numel()
    return masked_mean(difference.square(), counts)


def scale_invariant_depth_loss(
    log_depth: Tensor, depth_m: Tensor, *, valid: Tensor | None = None, balance: float = 0.5
) -> Tensor:
    """mean(d^2) - balance * mean(d)^2 of each image, d = log_depth - log D; the mean over images.

    With ``balance`` 1 a common factor of an image's depth costs nothing, with 0 this is
    ``log_depth_loss`` per image. Images without a valid pixel do not count.

    Args:
        log_depth: (N, 1, H, W), the natural logarithm of metres.
        depth_m: (N, 1, H, W), metres. Pixels that are not finite and above 0 never count.
        valid: (N, 1, H, W), bool, True = counts; default: all of those.
        balance: in [0, 1].

    Returns:
        A scalar, float32 (float64 for float64 input).

    Raises:
        TypeError: a map is not floating point, or ``valid`` not bool.
        ValueError: shapes or devices differ, or ``balance`` is outside [0, 1].

    Notes: differentiable in log_depth. No host sync.
    Source: Eigen, Puhrsch and Fergus 2014, equation 4.
    Example:
        >>> depth_m = torch.rand(1, 1, 4, 4) + 1
        >>> loss = scale_invariant_depth_loss((3 * depth_m).log(), depth_m, balance=1.0)
        >>> abs(float(loss)) < 1e-6
        True
    """
    if not 0 <= balance <= 1:
        raise ValueError(
            f"scale_invariant_depth_loss: balance must be in [0, 1], got {balance}. 0.5 is usual."
        )
    difference, counts = _log_difference("scale_invariant_depth_loss", log_depth, depth_m, valid)
    pixels = counts.flatten(1).sum(1)  # (N,)
    mean = difference.flatten(1).sum(1) / pixels.clamp(min=1)
    mean_square = difference.square().flatten(1).sum(1) / pixels.clamp(min=1)
    return masked_mean(mean_square - balance * mean.square(), pixels > 0)


def _log_difference(
    function: str, log_depth: Tensor, depth_m: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The difference, 0 at pixels that do not count; and which do. Both (N, 1, H, W)."""
    check_maps(function, "log_depth", log_depth, "depth_m", depth_m)
    if log_depth.size(1) != 1:
        raise ValueError(
            f"{function}: log_depth must be (N, 1, H, W), got {tuple(log_depth.shape)}. Give one "
            "channel."
        )
    counts = checked_valid(function, valid, torch.isfinite(depth_m) & (depth_m > 0))
    target = torch.where(counts, wide(depth_m), 1.0).log()
    return torch.where(counts, wide(log_depth) - target, 0.0), counts
