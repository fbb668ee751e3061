"""Angles of normals: known rotations, the histogram's median, merging, refusals."""

import math
import statistics

import pytest
import torch
from torch import Tensor

from perfconv.metrics import NormalsMetric


def turned(angles_deg: list[float]) -> tuple[Tensor, Tensor]:
    """Predictions turned by these angles, in various directions, and the truth."""
    angles = torch.tensor(angles_deg, dtype=torch.float64).deg2rad()
    direction = torch.linspace(0, 6, len(angles_deg), dtype=torch.float64)
    side = torch.stack([direction.cos(), direction.sin(), torch.zeros_like(direction)])
    truth = torch.zeros(3, len(angles_deg), dtype=torch.float64)
    truth[2] = 1
    prediction = angles.cos() * truth + angles.sin() * side
    return prediction.reshape(1, 3, 1, -1), truth.reshape(1, 3, 1, -1)


ANGLES = [0.0, 1.0, 11.0, 11.5, 20.0, 22.4, 22.6, 29.0, 31.0, 90.0, 180.0]


def test_known_angles() -> None:
    metric = NormalsMetric()
    metric.update(*turned(ANGLES))
    scores = metric.compute()
    assert scores.mean_deg == pytest.approx(statistics.mean(ANGLES))
    assert scores.rmse_deg == pytest.approx(math.sqrt(statistics.mean(a * a for a in ANGLES)))
    assert scores.median_deg == pytest.approx(22.4, abs=0.011)
    assert scores.within == pytest.approx((3 / 11, 6 / 11, 8 / 11))
    assert scores.pixels == 11


def test_median_of_many() -> None:
    generator = torch.Generator().manual_seed(0)
    angles = (torch.rand(5000, generator=generator, dtype=torch.float64) * 13).square()
    metric = NormalsMetric()
    metric.update(*turned(angles.tolist()))
    assert metric.compute().median_deg == pytest.approx(angles.quantile(0.5).item(), abs=0.05)


def test_missing_lengths_and_valid() -> None:
    prediction, truth = turned([5.0, 10.0, 40.0, 50.0])
    truth[..., 2] = 0
    valid = torch.tensor([True, True, True, False]).reshape(1, 1, 1, 4)
    metric = NormalsMetric()
    metric.update(3 * prediction.float(), truth.float(), valid=valid)
    assert metric.compute().mean_deg == pytest.approx(7.5, abs=1e-4)
    assert metric.compute().pixels == 2


def test_merging() -> None:
    whole, first, second = NormalsMetric(), NormalsMetric(), NormalsMetric()
    whole.update(*turned(ANGLES))
    first.update(*(part[..., :4] for part in turned(ANGLES)))
    second.update(*(part[..., 4:] for part in turned(ANGLES)))
    first.merge(second)
    assert first.compute().median_deg == whole.compute().median_deg
    assert first.compute().within == whole.compute().within
    assert first.compute().mean_deg == pytest.approx(whole.compute().mean_deg)


def test_refusals() -> None:
    metric = NormalsMetric()
    prediction, truth = turned(ANGLES)
    with pytest.raises(ValueError, match="prediction must be finite and not 0"):
        metric.update(torch.zeros_like(prediction), truth)
    with pytest.raises(ValueError, match=r"normals must be \(N, 3, H, W\)"):
        metric.update(prediction[0], truth[0])
    with pytest.raises(ValueError, match="must have the same shape"):
        metric.update(prediction[..., :1], truth)
    with pytest.raises(TypeError, match="valid must be bool"):
        metric.update(prediction, truth, valid=truth)
    assert math.isnan(metric.compute().mean_deg)
    assert math.isnan(metric.compute().median_deg)
