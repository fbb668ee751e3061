"""Real samples: every named network trains a step and predicts, a small one overfits every task.

The training step is that of ``perfconv train``; images are reduced, labels thinned out.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from named_networks import VARIANTS, narrow_network, narrow_trunk
from real_samples import sample_folder
from torch import Tensor, nn

pytest.importorskip("scipy", reason="SciPy is not installed")
pytest.importorskip("PIL", reason="Pillow is not installed")

import perfconv
from perfconv.data import Batch, Sample, boundaries_from_labels, collate
from perfconv.data.bsds500 import BSDS500
from perfconv.data.nyuv2 import NYUv2
from perfconv.data.stanford import Stanford2D3D
from perfconv.metrics import DepthMetric, NormalsMetric, SegmentationMetric
from perfconv.models import DepthAwareParser, SceneParser, predict_augmented
from perfconv.models.builders import baseline_resnet50
from perfconv.train.config import Model, Stage
from perfconv.train.objective import outputs_of, task_losses

STAGE = Stage("test", Model("baseline_resnet50"))


def reduced(sample: Sample, step: int) -> Sample:
    """1 / step of the size: the mean of colours, boundaries where any pixel has one."""

    def thinned(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[..., ::step, ::step].contiguous()

    def pooled(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        return F.max_pool2d(tensor.float(), step, ceil_mode=True).bool()

    size = [-(-side // step) for side in sample.size]
    return Sample(
        image=F.interpolate(sample.image[None], size, mode="area")[0],
        name=sample.name,
        labels=thinned(sample.labels),
        depth_m=thinned(sample.depth_m),
        depth_valid=thinned(sample.depth_valid),
        normals=thinned(sample.normals),
        normals_valid=thinned(sample.normals_valid),
        boundaries=pooled(sample.boundaries),
    )


def nyuv2() -> Batch:
    """With normals from its depth, and boundaries between its labels."""
    sample = NYUv2(sample_folder("nyuv2"), "test", normals_radius=4).read("5017")
    sample = replace(sample, boundaries=boundaries_from_labels(sample.labels))
    return collate([reduced(sample, 8)])


def stanford() -> Batch:
    return collate([reduced(Stanford2D3D(sample_folder("stanford2d3d"))[0], 16)])


def bsds500() -> Batch:
    return collate([reduced(BSDS500(sample_folder("bsds500"))[0], 6)])


@pytest.fixture(scope="module")
def batch() -> Batch:
    return nyuv2()


# ---- every named network -------------------------------------------------------------------------


def tasks_of(network: nn.Module) -> tuple[str, ...]:
    return tuple(network.heads) if isinstance(network, SceneParser) else ("segmentation",)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.call)
def test_a_training_step_and_a_prediction(variant, batch: Batch) -> None:
    network = narrow_network(variant, 40).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    with perfconv.record_gates(network) as record:
        outputs = outputs_of(network, network, batch)
        losses = list(task_losses(outputs, network, batch, STAGE, tasks_of(network)).values())
        if record:
            losses.append(perfconv.losses.density_loss(record, 0.7))
    torch.stack(losses).sum().backward()
    optimizer.step()
    after = list(network.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    moved = sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert moved >= 0.8 * len(after)

    network.eval()
    predict = network.predict if isinstance(network, DepthAwareParser) else network
    inputs = (batch.image, batch.depth_m) if variant.needs_depth else (batch.image,)
    with torch.no_grad():
        found = predict(*inputs)
    for task, map in found.items():
        assert map.shape[2:] == batch.image.shape[2:], task
        assert map.isfinite().all(), task


# ---- overfitting ---------------------------------------------------------------------------------


def scores(network: nn.Module, batch: Batch) -> dict[str, float]:
    """A number for each task, higher is better; boundaries: mean probability on and off lines."""
    network.eval()
    with torch.no_grad():
        found = predict_augmented(network, batch.image, flip=False)
    network.train()
    result = {}
    if "segmentation" in found:
        metric = SegmentationMetric(found["segmentation"].size(1))
        metric.update(found["segmentation"].argmax(1), batch.labels)
        result["segmentation"] = metric.compute().pixel_accuracy
    if "log_depth" in found:
        metric = DepthMetric()
        metric.update(found["log_depth"].exp(), batch.depth_m, valid=batch.depth_valid)
        result["log_depth"] = metric.compute().delta[0]
    if "normals" in found:
        metric = NormalsMetric()
        metric.update(found["normals"], batch.normals, valid=batch.normals_valid)
        result["normals"] = -metric.compute().mean_deg
    if "boundary" in found:
        lines = batch.boundaries > 0
        result["boundary"] = (
            found["boundary"][lines].mean() - found["boundary"][~lines].mean()
        ).item()
    return result


@pytest.mark.parametrize(
    ("read", "classes", "least"),
    [
        (nyuv2, 40, {"segmentation": 0.8, "log_depth": 0.8, "normals": -30.0, "boundary": 0.1}),
        (stanford, 12, {"segmentation": 0.8, "log_depth": 0.8, "normals": -30.0}),
        (bsds500, 1, {"boundary": 0.1}),
    ],
    ids=["nyuv2", "stanford", "bsds500"],
)
def test_a_small_network_overfits(read, classes: int, least: dict[str, float]) -> None:
    batch, tasks = read(), tuple(least)
    trunk = narrow_trunk(depths=(1, 1, 1, 1))
    network = baseline_resnet50(classes, tasks=tasks, trunk=trunk).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    before = scores(network, batch)
    history = []
    for _ in range(80):
        losses = task_losses(network(batch.image), network, batch, STAGE, tasks)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        history.append({task: loss.item() for task, loss in losses.items()})
    after = scores(network, batch)
    for task, limit in least.items():
        assert after[task] > max(limit, before[task]), task
        assert history[-1][task] < history[0][task], task
