"""Boundary scores: matching against networkx, scores by hand and written out, merging, refusals."""

import builtins
import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("scipy", reason="SciPy is not installed")

from perfconv.metrics import BoundaryMetric, match_boundaries, thin


def random_map(seed: int, density: float, size: tuple[int, int] = (14, 17)) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed)) < density


@pytest.mark.parametrize("max_distance", [0.0, 1.0, 1.5, 3.2])
@pytest.mark.parametrize("densities", [(0.1, 0.1), (0.05, 0.4), (0.5, 0.3)])
def test_matching_against_networkx(densities: tuple[float, float], max_distance: float) -> None:
    networkx = pytest.importorskip("networkx", reason="networkx is not installed")
    first, second = (random_map(seed, density) for seed, density in enumerate(densities))
    graph = networkx.Graph()
    left = [("a", *place) for place in first.nonzero().tolist()]
    graph.add_nodes_from(left)
    for _, *place in left:
        for other in second.nonzero().tolist():
            if math.dist(place, other) <= max_distance:
                graph.add_edge(("a", *place), ("b", *other))
    expected = len(networkx.bipartite.maximum_matching(graph, top_nodes=left)) // 2
    match = match_boundaries(first, second, max_distance=max_distance)
    assert match.prediction.sum() == match.truth.sum() == expected
    assert not (match.prediction & ~first).any()
    assert not (match.truth & ~second).any()


def test_matching_against_the_benchmark() -> None:
    """pyEdgeEval's matcher is the benchmark's; it is GPL and installed by hand only."""
    reason = "pyEdgeEval is not installed (pip install --no-deps pyEdgeEval)"
    native = pytest.importorskip("pyEdgeEval._lib", reason=reason)
    size = (40, 50)
    first, second = (thin(random_map(seed, 0.3, size)) for seed in (1, 2))
    distance = 0.0375 * math.hypot(*size)
    theirs = native.correspond_pixels(
        first.double().numpy(), second.double().numpy(), 0.0375, 100.0
    )
    match = match_boundaries(first, second, max_distance=distance)
    assert abs(int(match.truth.sum()) - int((theirs[1] > 0).sum())) <= 1


def test_two_predictions_share_no_truth() -> None:
    prediction = torch.zeros(5, 9, dtype=torch.bool)
    prediction[1], prediction[3] = True, True  # two lines
    truth = torch.zeros(5, 9, dtype=torch.bool)
    truth[2] = True  # one between them
    match = match_boundaries(prediction, truth, max_distance=2)
    assert match.truth.sum() == match.prediction.sum() == 9


def test_empty_maps() -> None:
    empty, full = torch.zeros(4, 4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool)
    for pair in ((empty, full), (full, empty), (empty, empty)):
        match = match_boundaries(*pair, max_distance=3)
        assert not match.prediction.any()
        assert not match.truth.any()


def two_lines() -> tuple[Tensor, Tensor]:
    """A prediction with a sure line at a true place and a weaker one elsewhere; 2 annotators.

    The image is 30 x 40, diagonal 50; the tolerance 0.04 is 2 pixels. Lines are 10 pixels long.
    """
    probability = torch.zeros(30, 40)
    probability[5, 10:20] = 0.8
    probability[25, 10:20] = 0.3
    truth = torch.zeros(2, 30, 40, dtype=torch.bool)
    truth[0, 5, 10:20] = True
    truth[1, 7, 10:20] = True  # 2 pixels off
    truth[1, 15, 10:20] = True
    return probability, truth


def test_by_hand() -> None:
    metric = BoundaryMetric(thresholds=9, tolerance=0.04)
    metric.update(*two_lines())
    scores = metric.compute()
    # Thresholds 0.1 .. 0.3 see both lines, 0.4 .. 0.8 the sure one, 0.9 none.
    assert scores.recall.tolist() == pytest.approx([2 / 3] * 8 + [0])
    assert scores.precision.tolist() == pytest.approx([0.5] * 3 + [1] * 5 + [0])
    assert scores.ods == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert scores.ois == pytest.approx(scores.ods)
    assert scores.ods_precision == pytest.approx(1)
    # From recall 0 (precision 0) to 2/3, where the lowest threshold's precision is 0.5.
    area = sum(0.5 * r / 100 / (2 / 3) for r in range(67)) / 100
    assert scores.average_precision == pytest.approx(area)


def test_strict_tolerance() -> None:
    metric = BoundaryMetric(thresholds=1, tolerance=0.0399)
    metric.update(*two_lines())
    assert metric.compute().recall.item() == pytest.approx(1 / 3)


def scene(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.zeros(3, 24, 32, dtype=torch.bool)
    for number, annotator in enumerate(truth):
        annotator[8 + number % 2, 3:28] = True
        annotator[4:20, 10 + number] = True
    blurred = torch.nn.functional.avg_pool2d(truth.float()[None], 3, 1, 1)[0].mean(0)
    noise = torch.rand(24, 32, generator=generator)
    return (0.8 * blurred + 0.3 * noise * (seed + 1) / 3).clamp(0, 1), truth


def metric_of(seeds: list[int]) -> BoundaryMetric:
    metric = BoundaryMetric(thresholds=19, tolerance=0.03)
    for seed in seeds:
        metric.update(*scene(seed))
    return metric


def test_written_out() -> None:
    """The sums of a set, kept in lists; F at a threshold, and each image's best."""
    rows: list[list[tuple[int, int, int, int]]] = []
    for seed in range(3):
        probability, truth = scene(seed)
        row = []
        for k in range(1, 20):
            map = thin(probability.double() >= k / 20)
            matches = [match_boundaries(map, one, max_distance=0.03 * 40) for one in truth]
            right = torch.stack([match.prediction for match in matches]).any(0)
            recalled = sum(int(match.truth.sum()) for match in matches)
            row.append((recalled, int(truth.sum()), int(right.sum()), int(map.sum())))
        rows.append(row)

    def f_score(recalled: int, true: int, right: int, predicted: int) -> float:
        precision, recall = right / max(predicted, 1), recalled / true
        return 2 * precision * recall / (precision + recall) if right else 0.0

    def total(parts: list[tuple[int, int, int, int]]) -> list[int]:
        return [sum(column) for column in zip(*parts, strict=True)]

    scores = metric_of([0, 1, 2]).compute()
    at_thresholds = [f_score(*total(list(column))) for column in zip(*rows, strict=True)]
    best = [max(row, key=lambda counts: f_score(*counts)) for row in rows]
    assert scores.ois == pytest.approx(f_score(*total(best)))
    assert max(at_thresholds) <= scores.ods <= max(at_thresholds) + 0.01
    assert 0 < scores.ods < scores.ois
    assert 0 < scores.average_precision < 1


def test_merging() -> None:
    first = metric_of([0])
    first.merge(metric_of([1, 2]))
    whole = metric_of([0, 1, 2])
    assert all(torch.equal(first.state()[name], sum) for name, sum in whole.state().items())
    with pytest.raises(ValueError, match="settings must be"):
        whole.merge(BoundaryMetric(thresholds=19))


def test_nothing_predicted() -> None:
    metric = BoundaryMetric(thresholds=3)
    metric.update(torch.zeros(9, 9), torch.eye(9, dtype=torch.bool)[None])
    scores = metric.compute()
    assert (scores.ods, scores.ois, scores.average_precision) == (0, 0, 0)


def test_only_valid_pixels_count() -> None:
    """What lies outside changes nothing: as if it were empty, in prediction and truth."""
    valid = torch.ones(9, 9, dtype=torch.bool)
    valid[:, 5:] = False
    row = torch.zeros(9, 9, dtype=torch.bool)
    row[4] = True  # predicted half as far as it goes
    masked, cut = BoundaryMetric(thresholds=3), BoundaryMetric(thresholds=3)
    masked.update(0.6 * (row & (torch.arange(9) < 7)), row[None], valid=valid)
    cut.update(0.6 * (row & valid), (row & valid)[None])
    assert all(torch.equal(masked.state()[name], sum) for name, sum in cut.state().items())
    assert masked.compute().ods == 1
    with pytest.raises(TypeError, match="valid must be bool"):
        masked.update(row.float(), row[None], valid=valid.float())
    with pytest.raises(ValueError, match=r"valid must be \(H, W\) = \(9, 9\), got \(9, 4\)"):
        masked.update(row.float(), row[None], valid=valid[:, 5:])


def test_refusals() -> None:
    line = torch.eye(4, dtype=torch.bool)
    metric = BoundaryMetric(thresholds=3)
    with pytest.raises(TypeError, match="boundaries must be bool"):
        metric.update(torch.zeros(4, 4), torch.zeros(1, 4, 4))
    with pytest.raises(TypeError, match="probability must be floating point"):
        metric.update(line, line[None])
    with pytest.raises(ValueError, match=r"probability must be \(H, W\) and boundaries"):
        metric.update(torch.zeros(4, 4), line)
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\]"):
        metric.update(torch.full((4, 4), 2.0), line[None])
    with pytest.raises(ValueError, match="must hold the map of an annotator, got none"):
        metric.update(torch.zeros(4, 4), line[None][:0])
    with pytest.raises(ValueError, match="thresholds must be 1 or more"):
        BoundaryMetric(thresholds=0)
    with pytest.raises(TypeError, match="match_boundaries: truth must be bool"):
        match_boundaries(line, line.float(), max_distance=1)
    with pytest.raises(ValueError, match="must have the same shape"):
        match_boundaries(line, line[:3], max_distance=1)
    with pytest.raises(ValueError, match="max_distance must be 0 or more"):
        match_boundaries(line, line, max_distance=-1)


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **options: object) -> object:
        if name.startswith("scipy"):
            raise ModuleNotFoundError("No module named 'scipy'", name="scipy")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    line = torch.eye(4, dtype=torch.bool)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'perfconv\[data\]'"):
        match_boundaries(line, line, max_distance=1)
