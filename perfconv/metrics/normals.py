"""Surface normals: mean and median angle, and the share of pixels within a few degrees."""

from dataclasses import dataclass

import torch
from torch import Tensor

from perfconv.metrics.state import Metric, check_pair, checked_valid

LIMITS_DEG = (11.25, 22.5, 30.0)
BINS_PER_DEG = 100
SHORTEST = 0.5  # squared length below which a true normal is missing


@dataclass(frozen=True)
class NormalsScores:
    """Pooled over the valid pixels of the set; NaN without one."""

    mean_deg: float
    median_deg: float  # to 0.01 degrees
    rmse_deg: float
    within: tuple[float, float, float]  # share below 11.25, 22.5 and 30 degrees
    pixels: int


class NormalsMetric(Metric):
    """Angles between predicted and true normals, pooled over pixels.

    The median is that of a histogram with 0.01 degrees a bin, which can be merged.

    Example:
        >>> metric = NormalsMetric()
        >>> up, right = torch.eye(3)[1].reshape(1, 3, 1, 1), torch.eye(3)[0].reshape(1, 3, 1, 1)
        >>> metric.update(up, right)
        >>> metric.compute().mean_deg
        90.0
    """

    def __init__(self) -> None:
        super().__init__(
            histogram=torch.zeros(180 * BINS_PER_DEG, dtype=torch.int64),
            within=torch.zeros(len(LIMITS_DEG), dtype=torch.int64),
            angles_deg=torch.zeros((), dtype=torch.float64),
            squares=torch.zeros((), dtype=torch.float64),
        )

    def update(self, prediction: Tensor, normals: Tensor, *, valid: Tensor | None = None) -> None:
        """Adds images.

        Args:
            prediction: (N, 3, H, W), any length but 0.
            normals: (N, 3, H, W), unit vectors; shorter than sqrt(0.5) = missing, not counted.
            valid: (N, 1, H, W), bool, True = counts.

        Raises:
            TypeError: ``valid`` is not bool.
            ValueError: shapes differ or are others, or a prediction that counts is 0 or not finite.

        Notes: syncs with the host.
        """
        check_pair("NormalsMetric", prediction, normals)
        if normals.dim() != 4 or normals.size(1) != 3:
            raise ValueError(
                f"NormalsMetric.update: normals must be (N, 3, H, W), got {tuple(normals.shape)}."
            )
        present = normals.double().square().sum(1, keepdim=True) > SHORTEST
        counts = checked_valid("NormalsMetric", valid, present).squeeze(1)  # (N, H, W)
        first = prediction.double().movedim(1, -1)[counts]  # (P, 3)
        second = normals.double().movedim(1, -1)[counts]
        length = torch.linalg.vector_norm(first, dim=1)
        if not bool((torch.isfinite(length) & (length > 0)).all()):
            raise ValueError(
                "NormalsMetric.update: prediction must be finite and not 0 where the truth is "
                "valid, got others. Normalise the network's output."
            )
        sine = torch.linalg.vector_norm(torch.linalg.cross(first, second), dim=1)
        angle_deg = torch.atan2(sine, (first * second).sum(1)).rad2deg().cpu()
        bins = (angle_deg * BINS_PER_DEG).long().clamp(max=180 * BINS_PER_DEG - 1)
        self._sums["histogram"] += torch.bincount(bins, minlength=180 * BINS_PER_DEG)
        self._sums["within"] += torch.stack([(angle_deg < limit).sum() for limit in LIMITS_DEG])
        self._sums["angles_deg"] += angle_deg.sum()
        self._sums["squares"] += angle_deg.square().sum()

    def compute(self) -> NormalsScores:
        """The scores of all images so far."""
        histogram = self._sums["histogram"]
        pixels = histogram.sum()
        first, second, third = (self._sums["within"].double() / pixels).tolist()
        return NormalsScores(
            mean_deg=(self._sums["angles_deg"] / pixels).item(),
            median_deg=_median_deg(histogram),
            rmse_deg=(self._sums["squares"] / pixels).sqrt().item(),
            within=(first, second, third),
            pixels=int(pixels),
        )


def _median_deg(histogram: Tensor) -> float:
    """Where half of the pixels lie below, straight within a bin."""
    below = histogram.cumsum(0).double()
    half = below[-1] / 2
    if not bool(half > 0):
        return torch.nan
    bin = int(torch.searchsorted(below, half))  # the first with at least half below its end
    share = 1 - (below[bin] - half) / histogram[bin]
    return (bin + share.item()) / BINS_PER_DEG
