"""segmentation_loss: cross-entropy over the pixels that have a label."""

import torch
import torch.nn.functional as F
from torch import Tensor

from perfconv.losses.arguments import check_form, wide


def segmentation_loss(
    logits: Tensor, labels: Tensor, *, ignore_index: int = 255, form: str = "valid"
) -> Tensor:
    """Softmax cross-entropy, summed over the labelled pixels of the batch and divided by a count.

    - "valid": divided by the number of labelled pixels; 0 where there is none.
    - "authors": divided by all pixels of the label map + 1, so that images with many unlabelled
      pixels weigh less.

    The same loss serves the depth bins of the depth branch.

    Args:
        logits: (N, C, H, W), floating point.
        labels: (N, H, W), int64, 0 .. C - 1 or ``ignore_index``.
        ignore_index: the label of pixels that do not count.
        form: "valid" or "authors".

    Returns:
        A scalar, float32 (float64 for float64 logits).

    Raises:
        TypeError: labels are not int64, or logits not floating point.
        ValueError: a shape above does not hold, ``form`` is neither, or a label is none of the
            above (on the CPU; other devices do as torch's cross_entropy).

    Notes: differentiable in logits. No host sync on other devices.
    Source: Kong and Fowlkes 2018, released code ("authors").
    Example:
        >>> labels = torch.tensor([[[0, 1, 255, 255]]])
        >>> logits = torch.zeros(1, 2, 1, 4)
        >>> round(float(segmentation_loss(logits, labels)), 4)  # log 2
        0.6931
        >>> round(float(segmentation_loss(logits, labels, form="authors")), 4)  # 2 log 2 / 5
        0.2773
    """
    check_form("segmentation_loss", form)
    _check_labels(logits, labels)
    try:
        total = F.cross_entropy(
            wide(logits), labels, ignore_index=ignore_index, reduction="none"
        ).sum()
    except IndexError as error:
        raise ValueError(
            f"segmentation_loss: labels must be in [0, {logits.size(1)}) or {ignore_index}, got "
            f"{int(labels.min())} .. {int(labels.max())}. Map the others to {ignore_index}."
        ) from error
    if form == "authors":
        return total / (labels.numel() + 1)
    return total / (labels != ignore_index).sum().clamp(min=1)


def _check_labels(logits: Tensor, labels: Tensor) -> None:
    if not logits.is_floating_point():
        raise TypeError(
            f"segmentation_loss: logits must be floating point, got {logits.dtype}. Give the "
            "network's output before the softmax."
        )
    if labels.dtype != torch.int64:
        raise TypeError(
            f"segmentation_loss: labels must be int64, got {labels.dtype}. Convert: labels.long()."
        )
    if logits.dim() != 4 or labels.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            "segmentation_loss: logits must be (N, C, H, W) and labels (N, H, W), got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}. Scale the logits to the labels' "
            "size."
        )
