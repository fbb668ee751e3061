"""A small network overfits all tasks at once, on made-up scenes: every part fits."""

import pytest
import torch
from torch import Tensor

from perfconv.data import Batch, PerspectiveScenes, Sample, collate
from perfconv.losses import boundary_loss, log_depth_loss, normals_loss, segmentation_loss
from perfconv.metrics import DepthMetric, NormalsMetric, SegmentationMetric
from perfconv.models import predict_augmented
from perfconv.models.builders import baseline_resnet50, resnet_trunk

TASKS = ("segmentation", "log_depth", "normals", "boundary")
SIZE = (40, 48)
STEPS = 60
LEAST_FALL = {"segmentation": 0.5, "log_depth": 0.5, "normals": 0.75, "boundary": 0.95}


def losses_of(outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    return {
        "segmentation": segmentation_loss(outputs["segmentation"], batch.labels),
        "log_depth": log_depth_loss(outputs["log_depth"], batch.depth_m, valid=batch.depth_valid),
        "normals": normals_loss(outputs["normals"], batch.normals, valid=batch.normals_valid),
        # Lines one pixel wide are hard for features an eighth as large: more weight.
        "boundary": 10 * boundary_loss(outputs["boundary"], batch.boundaries),
    }


def scores(predictions: dict[str, Tensor], batch: Batch) -> dict[str, float]:
    """A number for each of three tasks; higher is better."""
    classes = SegmentationMetric(predictions["segmentation"].size(1))
    classes.update(predictions["segmentation"].argmax(1), batch.labels)
    depth = DepthMetric()
    depth.update(predictions["log_depth"].exp(), batch.depth_m, valid=batch.depth_valid)
    normals = NormalsMetric()
    normals.update(predictions["normals"], batch.normals, valid=batch.normals_valid)
    return {
        "segmentation": classes.compute().pixel_accuracy,
        "log_depth": depth.compute().delta[0],
        "normals": -normals.compute().mean_deg,
    }


def from_scenes() -> tuple[list[Sample], int]:
    scenes = PerspectiveScenes(2, size=SIZE, noise=0.02)
    return [scenes[0], scenes[1]], len(scenes.classes)


@pytest.mark.slow
def test_a_small_network_overfits_every_task() -> None:
    torch.manual_seed(0)
    samples, classes = from_scenes()
    batch = collate(samples)
    network = baseline_resnet50(classes, tasks=TASKS, trunk=resnet_trunk(18)).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    before = evaluated(network, batch)
    history = []
    for _ in range(STEPS):
        losses = losses_of(network(batch.image), batch)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        history.append({task: loss.item() for task, loss in losses.items()})
    for task, share in LEAST_FALL.items():
        assert history[-1][task] < share * history[0][task], (task, history[0], history[-1])
    for task, score in evaluated(network, batch).items():
        assert score > before[task], task


def evaluated(network: torch.nn.Module, batch: Batch) -> dict[str, float]:
    network.eval()
    with torch.no_grad():
        predictions = predict_augmented(network, batch.image, flip=False)  # mirrors are unseen
    network.train()
    return scores(predictions, batch)
