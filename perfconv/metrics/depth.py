"""Monocular depth: threshold accuracies, absolute relative difference, rmse, log10."""

from dataclasses import dataclass

import torch
from torch import Tensor

from perfconv.metrics.state import Metric, check_pair, checked_valid

POWERS = (1, 2, 3)
BASE = 1.25


@dataclass(frozen=True)
class DepthScores:
    """Pooled over the valid pixels of the set; NaN without one."""

    delta: tuple[float, float, float]  # share with max(d / D, D / d) < 1.25, 1.25^2, 1.25^3
    abs_rel: float  # mean |d - D| / D
    rmse_m: float  # metres
    rmse_log: float  # of natural logarithms
    log10: float  # mean |log10 d - log10 D|
    silog: float  # standard deviation of log d - log D
    pixels: int


class DepthMetric(Metric):
    """Errors of predicted depth d against true depth D, pooled over pixels; no scale is fitted.

    Args:
        min_depth_m: pixels with a true depth of at most this do not count; predictions are
            raised to it.
        max_depth_m: pixels with a true depth above this do not count, and predictions are
            lowered to it; None: no limit.

    Example:
        >>> metric = DepthMetric()
        >>> metric.update(torch.tensor([2.0, 3.0, 9.0]), torch.tensor([2.0, 2.0, 0.0]))
        >>> scores = metric.compute()
        >>> scores.delta, scores.abs_rel, scores.pixels
        ((0.5, 1.0, 1.0), 0.25, 2)
    """

    def __init__(self, *, min_depth_m: float = 1e-3, max_depth_m: float | None = None) -> None:
        if not 0 < min_depth_m < (torch.inf if max_depth_m is None else max_depth_m):
            raise ValueError(
                "DepthMetric: 0 < min_depth_m < max_depth_m must hold, got "
                f"{min_depth_m} and {max_depth_m}."
            )
        super().__init__(
            within=torch.zeros(len(POWERS), dtype=torch.int64),
            pixels=torch.zeros((), dtype=torch.int64),
            errors=torch.zeros(5, dtype=torch.float64),  # in the order of update
        )
        self.min_depth_m, self.max_depth_m = min_depth_m, max_depth_m

    def update(self, depth_m: Tensor, truth_m: Tensor, *, valid: Tensor | None = None) -> None:
        """Adds images.

        Args:
            depth_m: predicted metres, any shape.
            truth_m: true metres, the same shape; not finite or outside the limits: not counted.
            valid: the same shape, bool, True = counts.

        Raises:
            TypeError: ``valid`` is not bool.
            ValueError: shapes differ, or a prediction that counts is not finite.

        Notes: syncs with the host.
        """
        check_pair("DepthMetric", depth_m, truth_m)
        highest = torch.inf if self.max_depth_m is None else self.max_depth_m
        counts = torch.isfinite(truth_m) & (truth_m > self.min_depth_m) & (truth_m <= highest)
        counts = checked_valid("DepthMetric", valid, counts)
        predicted, true = depth_m[counts].double(), truth_m[counts].double()
        if not bool(torch.isfinite(predicted).all()):
            raise ValueError(
                "DepthMetric.update: depth_m must be finite where the truth is valid, got "
                f"{int((~torch.isfinite(predicted)).sum())} other values. Check the network's "
                "output."
            )
        predicted = predicted.clamp(self.min_depth_m, self.max_depth_m)
        ratio = torch.maximum(predicted / true, true / predicted)
        logarithm = predicted.log() - true.log()
        errors = [
            (predicted - true).abs() / true,
            (predicted - true).square(),
            logarithm.square(),
            logarithm.abs(),
            logarithm,
        ]
        within = torch.stack([(ratio < BASE**power).sum() for power in POWERS])
        self._sums["within"] += within.cpu()
        self._sums["pixels"] += true.numel()
        self._sums["errors"] += torch.stack([error.sum() for error in errors]).cpu()

    def compute(self) -> DepthScores:
        """The scores of all images so far."""
        pixels = self._sums["pixels"]
        first, second, third = (self._sums["within"].double() / pixels).tolist()
        relative, square, log_square, log_abs, log_sum = self._sums["errors"] / pixels
        return DepthScores(
            delta=(first, second, third),
            abs_rel=relative.item(),
            rmse_m=square.sqrt().item(),
            rmse_log=log_square.sqrt().item(),
            log10=(log_abs / torch.tensor(10.0, dtype=torch.float64).log()).item(),
            silog=(log_square - log_sum.square()).clamp(min=0).sqrt().item(),
            pixels=int(pixels),
        )

    def _settings(self) -> tuple[object, ...]:
        return (self.min_depth_m, self.max_depth_m)
