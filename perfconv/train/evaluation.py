"""Every metric of every task over a test set, image by image; and pictures of some of them."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from perfconv import flops
from perfconv.data import Sample, collate
from perfconv.metrics import (
    BoundaryMetric,
    DepthMetric,
    InstanceMetric,
    Metric,
    NormalsMetric,
    SegmentationMetric,
)
from perfconv.models import DepthAwareParser, predict_augmented
from perfconv.nn import record_gates
from perfconv.train.datasets import Samples, share
from perfconv.train.distributed import Process
from perfconv.train.networks import Network

CITYSCAPES_CLASSES = 19
COUNTED_IMAGES = 4  # whose MACs are counted


def predict(
    network: Network,
    image: Tensor,
    depth_m: Tensor | None = None,
    *,
    scales: Sequence[float] = (),
    merging: str = "last",
) -> dict[str, Tensor]:
    """The maps of one batch: class probabilities, log depth, normals, boundary probabilities.

    Args:
        network: in eval mode.
        image: (N, 3, H, W), RGB in [0, 1].
        depth_m: (N, 1, H, W), true depth, for networks that pool by it; not with scales.
        scales: of ``predict_augmented``, mirrored too; empty: the image as it is.
        merging: of a recurrent network's stages.

    Raises:
        ValueError: scales for a network that pools by true depth.
    """

    def run(images: Tensor, depth: Tensor | None = None) -> dict[str, Tensor]:
        if isinstance(network, DepthAwareParser):
            return network.predict(images, depth, merging=merging)
        return network(images)

    if scales:
        return predict_augmented(run, image, scales=scales)
    maps = dict(run(image, depth_m))
    if "segmentation" in maps:
        maps["segmentation"] = maps["segmentation"].float().softmax(1)
    if "boundary" in maps:
        maps["boundary"] = maps["boundary"].float().sigmoid()
    return maps


@torch.no_grad()
def evaluate(
    network: Network,
    samples: Samples,
    tasks: Sequence[str],
    *,
    process: Process | None = None,
    scales: Sequence[float] = (),
    merging: str = "last",
    thresholds: int = 99,
) -> dict:
    """The scores of ``network`` on ``samples``, as plain numbers.

    Under torchrun every process takes its share of the images; all of them return the same.

    Args:
        network: left in the mode it was in; its masks are noise-free.
        samples: a data set.
        tasks: those of which a sample has the truth are scored.
        process: of a run of several.
        scales, merging: see :func:`predict`.
        thresholds: of boundary detection, where a fraction of 99 is faster.

    Returns:
        {"images": ..., task: {score: number}, "density": {layer: mean}, "macs": {...}}; no
        "density" without gates. A score that is not a number is None.

    Raises:
        ValueError: there are fewer images than processes.
    """
    process = process or Process(0, 1, next(network.parameters()).device)
    if len(samples) < process.ranks:
        raise ValueError(
            f"evaluate: there must be an image for each process, got {len(samples)} for "
            f"{process.ranks}. Start fewer processes or name another split."
        )
    metrics = _metrics(tasks, len(samples.classes), thresholds)
    densities: dict[str, float] = {}
    was_training = network.training
    network.eval()
    indices = share(len(samples), process.rank, process.ranks)
    for index in indices:
        sample = samples[index]
        batch = collate([sample]).to(process.device)
        with record_gates(network) as record:
            maps = predict(network, batch.image, batch.depth_m, scales=scales, merging=merging)
        for name, values in record.densities().items():
            densities[name] = densities.get(name, 0.0) + float(values.mean())
        for task in tasks:
            _update(metrics, task, maps[task][0].cpu(), sample)
    network.train(was_training)
    for metric in metrics.values():
        if process.ranks > 1:
            metric.all_reduce()
    results: dict = {"images": len(samples)}
    for name, metric in metrics.items():
        results[name] = _plain(dataclasses.asdict(metric.compute()))  # type: ignore[attr-defined]
    if densities:
        sums = process.mean(torch.tensor(list(densities.values()), device=process.device))
        scale = process.ranks / len(samples)
        results["density"] = {
            name: total * scale for name, total in zip(densities, sums.tolist(), strict=True)
        }
    results["macs"] = _macs(network, samples, process)
    return results


def _metrics(tasks: Sequence[str], classes: int, thresholds: int) -> dict[str, Metric]:
    found: dict[str, Metric] = {}
    for task in tasks:
        if task == "segmentation":
            found[task] = SegmentationMetric(classes)
            if classes == CITYSCAPES_CLASSES:
                found["instances"] = InstanceMetric()
        elif task == "log_depth":
            found[task] = DepthMetric()
        elif task == "normals":
            found[task] = NormalsMetric()
        else:
            found[task] = BoundaryMetric(thresholds=thresholds)
    return found


def _update(metrics: dict[str, Metric], task: str, map: Tensor, sample: Sample) -> None:
    """Adds one image, if it has the truth of the task."""
    metric = metrics[task]
    if isinstance(metric, SegmentationMetric) and sample.labels is not None:
        prediction = map.argmax(0)
        metric.update(prediction, sample.labels)
        instances = metrics.get("instances")
        if isinstance(instances, InstanceMetric) and sample.instances is not None:
            instances.update(prediction, sample.labels, sample.instances)
    elif isinstance(metric, DepthMetric) and sample.depth_m is not None:
        metric.update(map.float().exp(), sample.depth_m, valid=sample.depth_valid)
    elif isinstance(metric, NormalsMetric) and sample.normals is not None:
        assert sample.normals_valid is not None
        metric.update(map[None].float(), sample.normals[None], valid=sample.normals_valid[None])
    elif isinstance(metric, BoundaryMetric) and sample.boundaries is not None:
        metric.update(map[0].clamp(0, 1), sample.boundaries)


def _macs(network: Network, samples: Samples, process: Process) -> dict[str, float]:
    """Mean MACs of an image over the first few; gates included."""
    counts = []
    was_training = network.training
    network.eval()
    for index in range(min(COUNTED_IMAGES, len(samples))):
        batch = collate([samples[index]]).to(process.device)
        inputs = [batch.image]
        if isinstance(network, DepthAwareParser) and batch.depth_m is not None:
            inputs.append(batch.depth_m)
        counts.append(flops.count(network, *inputs))
    network.train(was_training)
    return {
        "active": sum(count.active_macs for count in counts) / len(counts),
        "executed": sum(count.executed_macs for count in counts) / len(counts),
        "dense": sum(count.dense_macs for count in counts) / len(counts),
    }


def _plain(value: object) -> object:
    """Numbers, lists and dictionaries; what is not a number is None."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@torch.no_grad()
def draw_samples(
    network: Network, samples: Samples, tasks: Sequence[str], folder: Path, *, count: int
) -> list[Path]:
    """Pictures of the first samples: truth above prediction, and what the gates decide.

    Files are ``samples.png`` and ``gates.png`` (only with gates and matplotlib). Needs Pillow.

    Returns:
        The files that were written.
    """
    from perfconv.train.pictures import save_gates, save_sheet

    was_training = network.training
    network.eval()
    device = next(network.parameters()).device
    rows: list[Sample] = []
    for index in range(min(count, len(samples))):
        sample = samples[index]
        batch = collate([sample]).to(device)
        maps = predict(network, batch.image, batch.depth_m)
        rows += _truth_and_prediction(sample, {task: maps[task][0].cpu() for task in tasks})
    written = []
    if rows:
        written.append(save_sheet(rows, samples, folder / "samples.png"))
        path = save_gates(network, samples[0], folder / "gates.png")
        written += [path] if path is not None else []
    network.train(was_training)
    return written


def _truth_and_prediction(sample: Sample, maps: dict[str, Tensor]) -> list[Sample]:
    """Two samples with the same fields: those that are predicted."""
    truth: dict[str, Tensor | None] = {}
    found: dict[str, Tensor] = {}
    if "segmentation" in maps and sample.labels is not None:
        truth["labels"], found["labels"] = sample.labels, maps["segmentation"].argmax(0)
    if "log_depth" in maps and sample.depth_m is not None:
        truth["depth_m"], truth["depth_valid"] = sample.depth_m, sample.depth_valid
        found["depth_m"] = maps["log_depth"].float().exp()
    if "normals" in maps and sample.normals is not None:
        truth["normals"], truth["normals_valid"] = sample.normals, sample.normals_valid
        found["normals"] = maps["normals"].float()
    if "boundary" in maps and sample.boundaries is not None:
        truth["boundaries"], found["boundaries"] = sample.boundaries, maps["boundary"] >= 0.5
    image = sample.image
    return [
        Sample(image, sample.name, **truth),  # type: ignore[arg-type]
        Sample(image, f"{sample.name} predicted", **found),  # type: ignore[arg-type]
    ]
