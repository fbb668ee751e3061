"""normals_loss: L2 and angle between predicted and true surface normals."""

import torch
from torch import Tensor

from perfconv.losses.arguments import check_form, check_maps, checked_valid, masked_mean, wide

AUTHORS_SOFTENING = 0.2  # keeps the authors' gradient of acos finite where vectors are parallel
SHORTEST = 0.5  # of true normals: their squared length where they are missing is below it
AUTHORS_SHORTEST_L2 = 0.9  # the same in the authors' L2 term


def normals_loss(
    prediction: Tensor,
    normals: Tensor,
    *,
    valid: Tensor | None = None,
    form: str = "valid",
    l2_weight: float = 1.0,
    angle_weight: float = 1.0,
) -> Tensor:
    """``l2_weight * normals_l2_loss + angle_weight * inverse_cosine_loss``.

    Args:
        prediction: (N, 3, H, W), unit vectors.
        normals: (N, 3, H, W), unit vectors; shorter than sqrt(0.5) = missing, never counts
            (sqrt(0.9) in the authors' L2 term).
        valid: (N, 1, H, W), bool, True = counts; default: all that are not missing.
        form: "valid" or "authors", of both terms.
        l2_weight: factor of the first term.
        angle_weight: factor of the second term.

    Returns:
        A scalar, float32 (float64 for float64 input).

    Raises:
        TypeError: a map is not floating point, or ``valid`` not bool.
        ValueError: shapes or devices differ, or ``form`` is neither.

    Notes: differentiable in prediction; finite everywhere. No host sync.
    Source: Kong and Fowlkes 2019, released code: both terms with weight 1.
    Example:
        >>> up = torch.tensor([0.0, 1.0, 0.0]).reshape(1, 3, 1, 1)
        >>> right = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
        >>> round(float(normals_loss(up, right)), 4)  # 2 / 2 + pi / 2
        2.5708
    """
    l2 = normals_l2_loss(prediction, normals, valid=valid, form=form)
    angle = inverse_cosine_loss(prediction, normals, valid=valid, form=form)
    return l2_weight * l2 + angle_weight * angle


def normals_l2_loss(
    prediction: Tensor, normals: Tensor, *, valid: Tensor | None = None, form: str = "valid"
) -> Tensor:
    """Half the squared distance of the vectors, a mean over pixels.

    - "valid": mean over the valid pixels of the batch; 0 where none is.
    - "authors": the sum over the valid ones divided by 3 times all pixels; normals shorter than
      sqrt(0.9) count as missing.

    Arguments, results and errors as of ``normals_loss``.
    """
    check_form("normals_l2_loss", form)
    shortest = AUTHORS_SHORTEST_L2 if form == "authors" else SHORTEST
    counts = _counts("normals_l2_loss", prediction, normals, valid, shortest)
    difference = torch.where(counts, wide(prediction) - wide(normals), 0.0)
    return _mean(0.5 * difference.square().sum(1, keepdim=True), counts, form)


def inverse_cosine_loss(
    prediction: Tensor, normals: Tensor, *, valid: Tensor | None = None, form: str = "valid"
) -> Tensor:
    """The angle between the vectors, in radians, a mean over pixels.

    - "valid": mean over the valid pixels. The angle is atan2(|n x m|, n . m), exact also where
      acos(n . m) loses its digits, and independent of lengths. Its gradient has length 1 for unit
      vectors, and is 0 where they are parallel or the prediction is 0.
    - "authors": the sum of acos(n . m) over the valid pixels divided by 3 times all pixels; the
      gradient of acos(t) is -1 / (0.2 + sqrt(1 - t^2)), which is finite at t = 1 and -1 and
      smaller than the true one elsewhere.

    Arguments, results and errors as of ``normals_loss``.
    """
    check_form("inverse_cosine_loss", form)
    counts = _counts("inverse_cosine_loss", prediction, normals, valid)
    first = torch.where(counts, wide(prediction), 0.0)
    second = torch.where(counts, wide(normals), 0.0)
    cosine = (first * second).sum(1, keepdim=True)  # (N, 1, H, W)
    if form == "authors":
        return _mean(torch.where(counts, _authors_arccos(cosine), 0.0), counts, form)
    sine = torch.linalg.vector_norm(torch.linalg.cross(first, second, dim=1), dim=1, keepdim=True)
    # atan2(0, 0) has no gradient: there (0, 1) is put in, whose angle is then not used.
    is_zero = (cosine == 0) & (sine == 0)
    angle = torch.atan2(sine, torch.where(is_zero, 1.0, cosine))
    return _mean(torch.where(is_zero, torch.pi / 2, angle), counts, form)


def _counts(
    function: str,
    prediction: Tensor,
    normals: Tensor,
    valid: Tensor | None,
    shortest: float = SHORTEST,
) -> Tensor:
    check_maps(function, "prediction", prediction, "normals", normals)
    if prediction.size(1) != 3:
        raise ValueError(
            f"{function}: prediction must be (N, 3, H, W), got {tuple(prediction.shape)}. Give "
            "x, y and z."
        )
    present = wide(normals).square().sum(1, keepdim=True) > shortest  # False for NaN
    return checked_valid(function, valid, present)


def _mean(values: Tensor, counts: Tensor, form: str) -> Tensor:
    if form == "authors":
        return (values * counts).sum() / (3 * counts.numel())
    return masked_mean(values, counts)


def _authors_arccos(cosine: Tensor) -> Tensor:
    """acos of the clamped value, with the authors' gradient."""
    clamped = cosine.detach().clamp(-1, 1)
    slope = -1 / (AUTHORS_SOFTENING + (1 - clamped.square()).sqrt())
    return clamped.acos() + slope * (cosine - cosine.detach())
