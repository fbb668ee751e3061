"""Segmentation scores: against torchmetrics and Cityscapes' own evaluation, merging, refusals."""

import importlib
import math
from pathlib import Path

import foreign
import numpy as np
import pytest
import torch
from torch import Tensor

from perfconv.metrics import InstanceMetric, SegmentationMetric

CLASSES = 6
IGNORE = 255


def images(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    """Predictions and labels, two thirds right; the last class never occurs."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        labels = torch.randint(0, CLASSES - 1, (12, 17), generator=generator)
        noise = torch.randint(0, CLASSES - 1, (12, 17), generator=generator)
        prediction = torch.where(
            torch.rand(12, 17, generator=generator) < 0.6, labels, noise
        ).clone()
        labels[torch.rand(12, 17, generator=generator) < 0.1] = IGNORE
        made.append((prediction, labels))
    return made


def metric_of(pairs: list[tuple[Tensor, Tensor]]) -> SegmentationMetric:
    metric = SegmentationMetric(CLASSES)
    for prediction, labels in pairs:
        metric.update(prediction, labels)
    return metric


def test_by_hand() -> None:
    metric = SegmentationMetric(3)
    metric.update(torch.tensor([[0, 0, 1, 1, 2]]), torch.tensor([[0, 1, 1, 1, IGNORE]]))
    scores = metric.compute()
    assert metric.confusion.tolist() == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    assert scores.class_iou[:2].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert scores.class_iou[2].isnan()
    assert scores.mean_iou == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metric.compute(absent="zero").mean_iou == pytest.approx((1 / 2 + 2 / 3) / 3)
    assert scores.pixel_accuracy == pytest.approx(3 / 4)
    assert scores.mean_accuracy == pytest.approx((1 + 2 / 3) / 2)


def test_against_torchmetrics() -> None:
    foreign.make_importable("torchvision", "torchmetrics")
    torchmetrics = importlib.import_module("torchmetrics.classification")
    options = {"num_classes": CLASSES, "ignore_index": IGNORE}
    iou = torchmetrics.MulticlassJaccardIndex(average="none", **options)
    accuracy = torchmetrics.MulticlassAccuracy(average="micro", **options)
    for prediction, labels in images():
        iou.update(prediction, labels)
        accuracy.update(prediction, labels)
    scores = metric_of(images()).compute()
    torch.testing.assert_close(scores.class_iou.nan_to_num(0).float(), iou.compute())
    assert scores.pixel_accuracy == pytest.approx(accuracy.compute().item())


def test_merged_saved_and_reset() -> None:
    pairs = images()
    whole, first, second = metric_of(pairs), metric_of(pairs[:1]), metric_of(pairs[1:])
    first.merge(second)
    assert torch.equal(first.confusion, whole.confusion)
    assert torch.equal(second.confusion, metric_of(pairs[1:]).confusion)
    loaded = SegmentationMetric(CLASSES)
    loaded.load_state(whole.state())
    assert loaded.compute().mean_iou == whole.compute().mean_iou
    whole.reset()
    assert math.isnan(whole.compute().mean_iou)
    assert loaded.confusion.sum() > 0


def test_refusals() -> None:
    metric = SegmentationMetric(3)
    labels = torch.zeros(2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\), got 0 \.\. 3"):
        metric.update(labels, torch.tensor([[0, 3], [IGNORE, 0]]))
    with pytest.raises(ValueError, match=r"prediction must be in \[0, 3\), got -1 \.\. -1"):
        metric.update(labels - 1, labels)
    with pytest.raises(ValueError, match="prediction and truth must have the same shape"):
        metric.update(labels[:1], labels)
    with pytest.raises(TypeError, match="prediction must be integers, got torch.float32"):
        metric.update(labels.float(), labels)
    with pytest.raises(ValueError, match="num_classes must be 1 or more"):
        SegmentationMetric(0)
    with pytest.raises(ValueError, match="absent must be 'skip' or 'zero'"):
        metric.compute(absent="nan")
    with pytest.raises(ValueError, match="settings must be"):
        metric.merge(SegmentationMetric(3, ignore_index=-1))
    with pytest.raises(TypeError, match="other must be of the same class"):
        metric.merge(InstanceMetric(3, instance_pixels={}))
    with pytest.raises(ValueError, match="sums must be"):
        metric.load_state(SegmentationMetric(4).state())
    with pytest.raises(ValueError, match="instance_pixels must map classes"):
        InstanceMetric(3)
    instances = InstanceMetric(3, instance_pixels={0: 4.0})
    with pytest.raises(ValueError, match=r"labels must be \(H, W\), got \(1, 2, 2\)"):
        instances.update(labels[None], labels[None], labels[None])
    with pytest.raises(TypeError, match="InstanceMetric.update: prediction must be integers"):
        instances.update(labels.float(), labels, labels)


def test_instances_by_hand() -> None:
    """Two cars of 2 and 6 pixels, average 4: weights 2 and 2/3."""
    metric = InstanceMetric(2, instance_pixels={1: 4.0})
    labels = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, IGNORE]])
    instances = torch.tensor([[1, 1, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0]])
    prediction = torch.tensor([[1, 0, 1, 1, 1, 0, 0, 0, 0, 1, 0, 1]])
    metric.update(prediction, labels, instances)
    right, missed, invented = 2 * 1 + 2 / 3 * 3, 2 * 1 + 2 / 3 * 3, 1
    scores = metric.compute()
    assert scores.class_iiou[1].item() == pytest.approx(right / (right + missed + invented))
    assert scores.class_iiou[0].isnan()
    assert scores.mean_iiou == pytest.approx(scores.class_iiou[1].item())


def cityscapes_scene(
    generator: torch.Generator, train_ids: dict[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction (train ids), label ids and instance ids of a small image."""
    blocks = torch.randint(0, 34, (6, 8), generator=generator)
    label_ids = blocks.repeat_interleave(5, 0).repeat_interleave(5, 1)
    number = torch.arange(48).reshape(6, 8).repeat_interleave(5, 0).repeat_interleave(5, 1)
    has_instances = (label_ids >= 24) & (label_ids <= 33) & (number % 5 > 0)
    instance_ids = torch.where(has_instances, label_ids * 1000 + number, label_ids)
    noise = torch.randint(0, 19, label_ids.shape, generator=generator)
    wanted = torch.tensor([train_ids[i] for i in label_ids.flatten().tolist()]).reshape(30, 40)
    is_right = (torch.rand(30, 40, generator=generator) < 0.7) & (wanted < 19) & (wanted >= 0)
    return torch.where(is_right, wanted, noise), label_ids, instance_ids


def test_against_cityscapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("cityscapesscripts", "pyquaternion"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    evaluation = importlib.import_module(
        "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling"
    )
    table = importlib.import_module("cityscapesscripts.helpers.labels")
    train_ids = {label.id: label.trainId for label in table.labels}
    of_train_id = {label.trainId: label.id for label in table.labels if 0 <= label.trainId < 19}
    generator = torch.Generator().manual_seed(0)
    ious, iious = SegmentationMetric(19), InstanceMetric()
    predictions, truths = [], []
    for number in range(3):
        prediction, label_ids, instance_ids = cityscapes_scene(generator, train_ids)
        stem = tmp_path / f"a_{number:06d}_000000"
        predicted_ids = torch.tensor([of_train_id[i] for i in prediction.flatten().tolist()])
        for suffix, ids, dtype in (
            ("pred", predicted_ids.reshape(30, 40), np.uint8),
            ("gtFine_labelIds", label_ids, np.uint8),
            ("gtFine_instanceIds", instance_ids, np.uint16),
        ):
            image.fromarray(ids.numpy().astype(dtype)).save(f"{stem}_{suffix}.png")
        predictions.append(f"{stem}_pred.png")
        truths.append(f"{stem}_gtFine_labelIds.png")
        labels = torch.tensor([train_ids[i] for i in label_ids.flatten().tolist()])
        labels = labels.reshape(30, 40)
        labels[labels < 0] = IGNORE
        ious.update(prediction, labels)
        iious.update(prediction, labels, torch.where(instance_ids >= 1000, instance_ids, 0))
    monkeypatch.setattr(np, "in1d", np.isin, raising=False)  # gone in NumPy 2.4
    args = evaluation.args
    args.JSONOutput, args.quiet, args.evalPixelAccuracy = False, True, False
    expected = evaluation.evaluateImgLists(predictions, truths, args)
    scores, instance_scores = ious.compute(), iious.compute()
    names = {label.trainId: label.name for label in table.labels if 0 <= label.trainId < 19}
    for label, name in names.items():
        assert scores.class_iou[label].item() == pytest.approx(expected["classScores"][name])
        assert instance_scores.class_iiou[label].item() == pytest.approx(
            expected["classInstScores"][name], nan_ok=True
        )
    assert scores.mean_iou == pytest.approx(expected["averageScoreClasses"])
    assert instance_scores.mean_iiou == pytest.approx(expected["averageScoreInstClasses"])
