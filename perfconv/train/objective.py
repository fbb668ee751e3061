"""What a step minimises: the losses of every task, each the mean over the images of a batch.

The mean is over images, not over the labelled pixels of the batch, so that a batch may be divided
among processes and micro-batches without changing it; the authors' batches are of one image.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perfconv.data import Batch
from perfconv.losses import (
    NYUV2_WEIGHTS,
    StageWeights,
    boundary_loss,
    density_loss,
    log_depth_loss,
    normals_loss,
    refinement_loss,
    segmentation_loss,
)
from perfconv.models import DepthAwareParser, StageOutput
from perfconv.nn import DepthAwarePool, DepthBins, GateCall
from perfconv.schedules import density_ramp
from perfconv.train.config import Stage
from perfconv.train.networks import Network

TARGETS = {
    "segmentation": "labels",
    "log_depth": "depth_m",
    "normals": "normals",
    "boundary": "boundaries",
}


def outputs_of(model: nn.Module, network: Network, batch: Batch) -> object:
    """``model`` (the network, or what wraps it) on a batch; true depth goes where it is used."""
    if isinstance(network, DepthAwareParser):
        return model(batch.image, batch.depth_m)
    return model(batch.image)


def task_losses(
    outputs: object, network: Network, batch: Batch, stage: Stage, tasks: tuple[str, ...]
) -> dict[str, Tensor]:
    """Losses by name, weighted: their sum is what the step minimises (without the density loss).

    Raises:
        ValueError: the batch lacks what a task needs.
    """
    for task in tasks:
        if getattr(batch, TARGETS[task]) is None:
            raise ValueError(
                f"task {task} needs {TARGETS[task]}, which these samples do not have. Choose "
                "other tasks or another data set (docs/datasets.md)."
            )
    if isinstance(network, DepthAwareParser):
        assert isinstance(outputs, list)
        return _refinement_losses(outputs, _bins(network), batch, stage)
    assert isinstance(outputs, dict)
    weights = {task: float(stage.task_weights.get(task, 1.0)) for task in tasks}
    return {task: weights[task] * _task_loss(task, outputs, batch, stage) for task in tasks}


def scheduled_density_loss(
    calls: Sequence[GateCall], stage: Stage, step: int, steps: int
) -> Tensor:
    """The density loss of a step, weighted; its target may fall from 1 first."""
    assert stage.target_density is not None
    target = stage.target_density
    if stage.density_ramp:
        ramp = max(1, round(stage.density_ramp * steps))
        target = density_ramp(step, ramp, target_density=target)
    return stage.density_weight * density_loss(calls, target, form=stage.density_form)


def _task_loss(task: str, outputs: dict[str, Tensor], batch: Batch, stage: Stage) -> Tensor:
    form = stage.loss_form
    found = outputs[task]
    if task == "segmentation":
        labels = _present(batch.labels)
        return _image_mean(lambda i: segmentation_loss(found[i], labels[i], form=form), len(batch))
    if task == "log_depth":
        depth, valid = _present(batch.depth_m), _present(batch.depth_valid)
        return _image_mean(
            lambda i: log_depth_loss(found[i], depth[i], valid=valid[i], form=form), len(batch)
        )
    if task == "normals":
        normals, valid = _present(batch.normals), _present(batch.normals_valid)
        return _image_mean(
            lambda i: normals_loss(found[i], normals[i], valid=valid[i], form=form), len(batch)
        )
    sides = outputs.get("boundary_sides")
    maps = [found] if sides is None else [found, *sides.split(1, 1)]
    return boundary_loss(maps, _present(batch.boundaries))


def _refinement_losses(
    stages: list[StageOutput], bins: DepthBins, batch: Batch, stage: Stage
) -> dict[str, Tensor]:
    """The weighted sum of all stages, and the last stage's segmentation for the log."""
    labels, depth = _present(batch.labels), batch.depth_m
    form = stage.loss_form
    found: list[dict[str, Tensor]] = []
    for output in stages:
        logits = output.segmentation
        terms = {
            "segmentation": _image_mean(
                lambda i, x=logits: segmentation_loss(x[i], labels[i], form=form),  # type: ignore[misc]
                len(batch),
            )
        }
        if output.depth is not None and depth is not None:
            terms |= _depth_terms(output.depth.logits, output.depth.log_depth, bins, depth, form)
        found.append(terms)
    weights: tuple[StageWeights, ...] = NYUV2_WEIGHTS
    if stage.stage_weights:
        weights = tuple(StageWeights(*factors) for factors in stage.stage_weights)
    return {"segmentation": refinement_loss(found, weights)}


def _depth_terms(
    logits: Tensor, log_depth: Tensor | None, bins: DepthBins, depth: Tensor, form: str
) -> dict[str, Tensor]:
    """Bins and log depth at the resolution of the features, as for NYUv2."""
    size = logits.shape[2:]
    small = F.interpolate(depth, size=size, mode="nearest-exact")
    index = bins.index(small)[:, 0]  # -1 where there is no depth
    images = len(depth)

    def of_bins(i: slice) -> Tensor:
        return segmentation_loss(logits[i], index[i], ignore_index=-1, form=form)

    terms = {"depth_bins": _image_mean(of_bins, images)}
    if log_depth is not None:
        terms["depth"] = _image_mean(
            lambda i: log_depth_loss(log_depth[i], small[i], form=form), images
        )
    return terms


def _image_mean(loss: Callable[[slice], Tensor], images: int) -> Tensor:
    return torch.stack([loss(slice(i, i + 1)) for i in range(images)]).mean()


def _bins(network: DepthAwareParser) -> DepthBins:
    assert isinstance(network.pool, DepthAwarePool)
    return network.pool.bins


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
