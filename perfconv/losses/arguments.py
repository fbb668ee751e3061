"""Checks that the losses share: shapes, masks, the names of forms, and means over valid pixels."""

from collections.abc import Sequence

import torch
from torch import Tensor

FORMS = ("valid", "authors")


def check_form(function: str, form: str, forms: Sequence[str] = FORMS) -> None:
    if form not in forms:
        raise ValueError(
            f"{function}: form must be one of {', '.join(map(repr, forms))}, got {form!r}. "
            "Choose one of these."
        )


def check_maps(function: str, name: str, map: Tensor, other: str, target: Tensor) -> None:
    """Both (N, C, H, W), the same shape, floating point, on one device."""
    if map.dim() != 4 or map.shape != target.shape:
        raise ValueError(
            f"{function}: {name} and {other} must have the same shape (N, C, H, W), got "
            f"{tuple(map.shape)} and {tuple(target.shape)}. Scale the prediction to the target's "
            "size, or the target to the prediction's."
        )
    for what, tensor in ((name, map), (other, target)):
        if not tensor.is_floating_point():
            raise TypeError(
                f"{function}: {what} must be floating point, got {tensor.dtype}. Convert it."
            )
    if map.device != target.device:
        raise ValueError(
            f"{function}: {name} and {other} must be on one device, got {map.device} and "
            f"{target.device}. Move one of them."
        )


def checked_valid(function: str, valid: Tensor | None, default: Tensor) -> Tensor:
    """(N, 1, H, W) bool: ``valid`` after checks, or ``default``; True counts."""
    if valid is None:
        return default
    if valid.dtype != torch.bool:
        raise TypeError(
            f"{function}: valid must be bool, got {valid.dtype}. True is a pixel that counts."
        )
    if valid.shape != default.shape:
        raise ValueError(
            f"{function}: valid must be (N, 1, H, W) = {tuple(default.shape)}, got "
            f"{tuple(valid.shape)}. Give one bool per pixel."
        )
    return valid & default


def wide(tensor: Tensor) -> Tensor:
    """Float32 or wider, also under autocast."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of ``values`` where ``valid`` (same shape), 0 where no pixel is; others get no gradient.

    Invalid places must hold finite values: a NaN there would reach the gradient.
    """
    return (values * valid).sum() / valid.sum().clamp(min=1)
