"""Depth scores: written out over a list of pixels, limits, merging, refusals."""

import math
import statistics

import pytest
import torch
from torch import Tensor

from perfconv.metrics import DepthMetric, DepthScores


def images() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(3):
        truth = torch.rand(2, 1, 6, 7, generator=generator) * 9 + 0.5
        depth = truth * (torch.randn(2, 1, 6, 7, generator=generator) * 0.3).exp()
        truth[0, 0, 0, :4] = torch.tensor([0.0, -1.0, math.inf, math.nan])
        made.append((depth, truth))
    return made


def metric_of(pairs: list[tuple[Tensor, Tensor]], **options: float) -> DepthMetric:
    metric = DepthMetric(**options)
    for depth, truth in pairs:
        metric.update(depth, truth)
    return metric


def written_out(low: float, high: float) -> DepthScores:
    pixels = [
        (min(max(d, low), high), t)
        for depth, truth in images()
        for d, t in zip(depth.flatten().tolist(), truth.flatten().tolist(), strict=True)
        if low < t <= high and math.isfinite(t)
    ]
    logs = [math.log(d / t) for d, t in pixels]
    return DepthScores(
        delta=tuple(
            statistics.mean(max(d / t, t / d) < 1.25**k for d, t in pixels) for k in (1, 2, 3)
        ),
        abs_rel=statistics.mean(abs(d - t) / t for d, t in pixels),
        rmse_m=math.sqrt(statistics.mean((d - t) ** 2 for d, t in pixels)),
        rmse_log=math.sqrt(statistics.mean(x * x for x in logs)),
        log10=statistics.mean(abs(math.log10(d / t)) for d, t in pixels),
        silog=statistics.pstdev(logs),
        pixels=len(pixels),
    )


@pytest.mark.parametrize(("low", "high"), [(1e-3, None), (1.0, 5.0)])
def test_written_out(low: float, high: float | None) -> None:
    found = metric_of(images(), min_depth_m=low, max_depth_m=high).compute()
    expected = written_out(low, math.inf if high is None else high)
    assert expected.pixels > 50
    for name in DepthScores.__dataclass_fields__:
        assert getattr(found, name) == pytest.approx(getattr(expected, name)), name


def test_valid_leaves_pixels_out() -> None:
    truth = torch.tensor([1.0, 2.0])
    metric = DepthMetric()
    metric.update(torch.tensor([1.0, math.nan]), truth, valid=torch.tensor([True, False]))
    assert metric.compute().delta == (1.0, 1.0, 1.0)
    assert metric.compute().pixels == 1


def test_merging() -> None:
    pairs = images()
    first, second = metric_of(pairs[:1]), metric_of(pairs[1:])
    first.merge(second)
    assert first.compute().rmse_m == pytest.approx(metric_of(pairs).compute().rmse_m)
    assert first.compute().delta == metric_of(pairs).compute().delta
    with pytest.raises(ValueError, match="settings must be"):
        first.merge(DepthMetric(max_depth_m=10))


def test_refusals() -> None:
    metric = DepthMetric()
    with pytest.raises(ValueError, match="depth_m must be finite where the truth is valid, got 1"):
        metric.update(torch.tensor([math.nan, math.inf]), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="must have the same shape"):
        metric.update(torch.ones(3), torch.ones(2))
    with pytest.raises(TypeError, match="valid must be bool"):
        metric.update(torch.ones(2), torch.ones(2), valid=torch.ones(2))
    with pytest.raises(ValueError, match=r"valid must be \(2,\), got \(1,\)"):
        metric.update(torch.ones(2), torch.ones(2), valid=torch.ones(1, dtype=torch.bool))
    with pytest.raises(ValueError, match="0 < min_depth_m < max_depth_m must hold"):
        DepthMetric(min_depth_m=2, max_depth_m=1)
    assert math.isnan(metric.compute().abs_rel)
