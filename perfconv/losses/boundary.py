"""boundary_loss: class-balanced cross-entropy of boundary maps, for one output or several."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from perfconv.losses.arguments import check_maps, checked_valid, wide


def boundary_loss(
    logits: Tensor | Sequence[Tensor],
    boundaries: Tensor,
    *,
    valid: Tensor | None = None,
    consensus: float = 0.0,
) -> Tensor:
    """Binary cross-entropy in which boundary and other pixels of an image weigh the same.

    With P the boundary pixels of an image, Q the others, and beta = |Q| / (|P| + |Q|):
    (beta * sum over P of -log p  +  (1 - beta) * sum over Q of -log(1 - p)) / (|P| + |Q|),
    the mean over images and the sum over outputs. An image of one kind only costs 0.

    Args:
        logits: (N, 1, H, W), or a sequence of them: side outputs and their fusion.
        boundaries: (N, 1, H, W), the share of annotators that drew the pixel, in [0, 1].
        valid: (N, 1, H, W), bool, True = counts; default: everywhere.
        consensus: pixels above it are boundaries, those at 0 are not, those between do not count.
            0 takes the union of annotators.

    Returns:
        A scalar, float32 (float64 for float64 logits).

    Raises:
        TypeError: a map is not floating point, or ``valid`` not bool.
        ValueError: shapes or devices differ, there is no output, or ``consensus`` is not in [0, 1).

    Notes: differentiable in logits. No host sync.
    Source: Xie and Tu 2015, equation 2, divided by the number of pixels.
    Example:
        >>> boundaries = torch.tensor([1.0, 0.0, 0.0, 0.0]).reshape(1, 1, 2, 2)
        >>> round(float(boundary_loss(torch.zeros(1, 1, 2, 2), boundaries)), 4)  # 2 * 3/16 * log 2
        0.2599
    """
    if not 0 <= consensus < 1:
        raise ValueError(
            f"boundary_loss: consensus must be in [0, 1), got {consensus}. 0 is the union of "
            "annotators."
        )
    outputs = [logits] if isinstance(logits, Tensor) else list(logits)
    if not outputs:
        raise ValueError(
            "boundary_loss: logits must hold an output, got an empty sequence. Give the side "
            "outputs."
        )
    terms = [_balanced(output, boundaries, valid, consensus) for output in outputs]
    return torch.stack(terms).sum()


def _balanced(logits: Tensor, boundaries: Tensor, valid: Tensor | None, consensus: float) -> Tensor:
    check_maps("boundary_loss", "logits", logits, "boundaries", boundaries)
    if logits.size(1) != 1:
        raise ValueError(
            f"boundary_loss: logits must be (N, 1, H, W), got {tuple(logits.shape)}. Give one "
            "channel."
        )
    counts = checked_valid("boundary_loss", valid, torch.ones_like(boundaries, dtype=torch.bool))
    logits = torch.where(counts, wide(logits), 0.0)  # what does not count may be anything
    positive = counts & (boundaries > consensus)
    negative = counts & (boundaries == 0)
    count_positive = positive.flatten(1).sum(1).to(logits.dtype)  # (N,)
    count_negative = negative.flatten(1).sum(1).to(logits.dtype)
    total = (count_positive + count_negative).clamp(min=1)
    cost_positive = (F.softplus(-logits) * positive).flatten(1).sum(1)
    cost_negative = (F.softplus(logits) * negative).flatten(1).sum(1)
    per_image = (count_negative * cost_positive + count_positive * cost_negative) / total.square()
    return per_image.mean() if len(per_image) else logits.sum()
