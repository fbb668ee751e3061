"""Boundary detection: ODS, OIS and AP, with one-to-one matching, as in the BSDS500 benchmark."""

from dataclasses import dataclass

import torch
from torch import Tensor

from perfconv.metrics.matching import match_boundaries
from perfconv.metrics.state import Metric
from perfconv.metrics.thinning import thin

STEPS_BETWEEN = 100  # points at which the curve is read between two thresholds
RECALL_STEP = 0.01  # of the integral of precision over recall


@dataclass(frozen=True)
class BoundaryScores:
    """In [0, 1]; 0 where nothing was predicted."""

    ods: float  # best F with one threshold for the set
    ods_threshold: float
    ods_precision: float
    ods_recall: float
    ois: float  # F with the best threshold of each image
    average_precision: float
    precision: Tensor  # (T,)
    recall: Tensor  # (T,)
    thresholds: Tensor  # (T,)


class BoundaryMetric(Metric):
    """Precision and recall of soft boundary maps over a set of images with several annotators.

    At each threshold the map is made binary, thinned, and matched with every annotator's map
    within ``tolerance`` times the image's diagonal. Recall: matched pixels of all annotators over
    all their pixels. Precision: predicted pixels that some annotator matches over all predicted.

    Args:
        thresholds: T; they lie at k / (T + 1).
        tolerance: share of the diagonal.
        thinned: False takes binary maps as they are.

    Source: Martin, Fowlkes and Malik 2004; Arbelaez et al. 2011.
    Example:
        >>> line = torch.eye(8, dtype=torch.bool)
        >>> metric = BoundaryMetric(thresholds=3)
        >>> metric.update(0.6 * line, line[None])
        >>> metric.compute().ods
        1.0
    """

    def __init__(
        self, *, thresholds: int = 99, tolerance: float = 0.0075, thinned: bool = True
    ) -> None:
        if thresholds < 1 or not tolerance >= 0:
            raise ValueError(
                "BoundaryMetric: thresholds must be 1 or more and tolerance 0 or more, got "
                f"{thresholds} and {tolerance}."
            )
        names = ("recalled", "true", "right", "predicted")
        super().__init__(
            **{name: torch.zeros(thresholds, dtype=torch.int64) for name in names},
            best=torch.zeros(4, dtype=torch.int64),  # of each image's best threshold, same order
        )
        self.thresholds = torch.arange(1, thresholds + 1, dtype=torch.float64) / (thresholds + 1)
        self.tolerance, self.thinned = tolerance, thinned

    def update(
        self, probability: Tensor, boundaries: Tensor, *, valid: Tensor | None = None
    ) -> None:
        """Adds one image.

        Args:
            probability: (H, W), in [0, 1].
            boundaries: (A, H, W), bool, one map for each annotator.
            valid: (H, W), bool, True = counts; elsewhere neither predicted nor true pixels are
                seen, after thinning. None: all count.

        Raises:
            ModuleNotFoundError: SciPy is not installed.
            TypeError: boundaries or valid are not bool, or probability not floating point.
            ValueError: shapes do not fit, there is no annotator, or a probability is outside
                [0, 1] or NaN.

        Notes: runs on the CPU; seconds for an image of 321 x 481 pixels with 99 thresholds.
        """
        self._check_maps(probability, boundaries, valid)
        probability, boundaries = probability.detach().cpu().double(), boundaries.cpu()
        maps = probability >= self.thresholds[:, None, None]  # (T, H, W)
        if self.thinned:
            maps = thin(maps)
        if valid is not None:
            maps, boundaries = maps & valid.cpu(), boundaries & valid.cpu()
        height, width = probability.shape
        max_distance = self.tolerance * (height**2 + width**2) ** 0.5
        counts = torch.zeros(len(self.thresholds), 4, dtype=torch.int64)
        for row, map in zip(counts, maps, strict=True):
            right = torch.zeros_like(map)
            for truth in boundaries:
                match = match_boundaries(map, truth, max_distance=max_distance)
                row[0] += match.truth.sum()
                right |= match.prediction
            row[1], row[2], row[3] = boundaries.sum(), right.sum(), map.sum()
        for name, column in zip(("recalled", "true", "right", "predicted"), counts.T, strict=True):
            self._sums[name] += column
        best = _f_score(*_precision_recall(*counts.T)).argmax()
        self._sums["best"] += counts[best]

    def compute(self) -> BoundaryScores:
        """The scores of all images so far."""
        sums = self._sums
        precision, recall = _precision_recall(
            sums["recalled"], sums["true"], sums["right"], sums["predicted"]
        )
        best_precision, best_recall = _precision_recall(*sums["best"])
        f, threshold, at_precision, at_recall = _best_point(self.thresholds, precision, recall)
        return BoundaryScores(
            ods=f,
            ods_threshold=threshold,
            ods_precision=at_precision,
            ods_recall=at_recall,
            ois=_f_score(best_precision, best_recall).item(),
            average_precision=_average_precision(precision, recall),
            precision=precision,
            recall=recall,
            thresholds=self.thresholds.clone(),
        )

    def _settings(self) -> tuple[object, ...]:
        return (len(self.thresholds), self.tolerance, self.thinned)

    @staticmethod
    def _check_maps(probability: Tensor, boundaries: Tensor, valid: Tensor | None) -> None:
        if boundaries.dtype != torch.bool:
            raise TypeError(
                f"BoundaryMetric.update: boundaries must be bool, got {boundaries.dtype}. Give one "
                "map for each annotator."
            )
        if not probability.is_floating_point():
            raise TypeError(
                "BoundaryMetric.update: probability must be floating point, got "
                f"{probability.dtype}."
            )
        if boundaries.dim() != 3 or probability.shape != boundaries.shape[1:]:
            raise ValueError(
                "BoundaryMetric.update: probability must be (H, W) and boundaries (A, H, W), got "
                f"{tuple(probability.shape)} and {tuple(boundaries.shape)}. Give one image."
            )
        if valid is not None and valid.dtype != torch.bool:
            raise TypeError(
                f"BoundaryMetric.update: valid must be bool, got {valid.dtype}. True is a pixel "
                "that counts."
            )
        if valid is not None and valid.shape != probability.shape:
            raise ValueError(
                f"BoundaryMetric.update: valid must be (H, W) = {tuple(probability.shape)}, got "
                f"{tuple(valid.shape)}. Give one bool per pixel."
            )
        if not boundaries.size(0):
            raise ValueError(
                "BoundaryMetric.update: boundaries must hold the map of an annotator, got none. "
                "Leave images without truth out."
            )
        if not bool(((probability >= 0) & (probability <= 1)).all()):
            raise ValueError(
                "BoundaryMetric.update: probability must be in [0, 1], got other values. Apply a "
                "sigmoid to logits."
            )


def _precision_recall(
    recalled: Tensor, true: Tensor, right: Tensor, predicted: Tensor
) -> tuple[Tensor, Tensor]:
    return right.double() / predicted.clamp(min=1), recalled.double() / true.clamp(min=1)


def _f_score(precision: Tensor, recall: Tensor) -> Tensor:
    total = precision + recall
    return torch.where(total > 0, 2 * precision * recall / total, 0.0)


def _best_point(
    thresholds: Tensor, precision: Tensor, recall: Tensor
) -> tuple[float, float, float, float]:
    """F, threshold, precision and recall where F is largest; straight between thresholds."""
    share = torch.linspace(0, 1, STEPS_BETWEEN, dtype=torch.float64)
    curves = [
        torch.cat([curve[:1], torch.lerp(curve[:-1, None], curve[1:, None], share).flatten()])
        for curve in (thresholds, precision, recall)
    ]
    f = _f_score(curves[1], curves[2])
    best = f.argmax()
    return (f[best].item(), curves[0][best].item(), curves[1][best].item(), curves[2][best].item())


def _average_precision(precision: Tensor, recall: Tensor) -> float:
    """Precision over recall in steps of 0.01; straight between thresholds, 0 outside them."""
    recalls, which = recall.unique(return_inverse=True)
    if len(recalls) < 2:
        return 0.0
    # Of thresholds with the same recall the lowest counts.
    first = torch.zeros(len(recalls), dtype=torch.int64).scatter_reduce(
        0, which, torch.arange(len(recall)), "amin", include_self=False
    )
    values = precision[first]
    at = torch.arange(0, 101, dtype=torch.float64) * RECALL_STEP
    right = torch.searchsorted(recalls, at).clamp(1, len(recalls) - 1)
    left = right - 1
    share = (at - recalls[left]) / (recalls[right] - recalls[left])
    inside = (at >= recalls[0]) & (at <= recalls[-1])
    return (torch.lerp(values[left], values[right], share) * inside).sum().item() * RECALL_STEP
