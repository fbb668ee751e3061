"""The pictures and numbers of one prediction."""

import io
from pathlib import Path

import matplotlib  # noqa: F401  (where it is missing the command says so before it begins)
from torch import Tensor

from perfconv import viz
from perfconv.cli.predict.network import Network, Prediction
from perfconv.data import Sample
from perfconv.models import DepthAwareParser
from perfconv.models.heads import upsample
from perfconv.models.parsers import StageOutput
from perfconv.nn import DepthAwarePool
from perfconv.train.checkpoint import CheckpointError, replace_file

FILES = {"log_depth": "depth"}  # tasks whose files are called otherwise


def write_pictures(prediction: Prediction, sample: Sample, name: str, folder: Path) -> list[Path]:
    """<name>-<task>.png of every task, <name>-gates.png, <name>-loops.png; those that there are."""
    network = prediction.network
    written = []
    for task, map in shown(prediction).items():
        figure = viz.task_figure(
            task,
            map,
            image=sample.image,
            truth=truth(sample, task),
            classes=network.classes,
            found=prediction.found,
            title=name,
        )
        written.append(folder / f"{name}-{FILES.get(task, task)}.png")
        viz.save(figure, written[-1])
    if prediction.found is not None:
        figure = viz.gate_figure(prediction.found, image=sample.image[None], title=name)
        written.append(folder / f"{name}-gates.png")
        viz.save(figure, written[-1])
    if prediction.stages:
        assert network.classes is not None
        figure = viz.loop_figure(
            loop_pictures(prediction, sample),
            image=sample.image,
            dilations=_pool(network).dilations,
            classes=network.classes,
            title=name,
        )
        written.append(folder / f"{name}-loops.png")
        viz.save(figure, written[-1])
    return written


def write_arrays(prediction: Prediction, path: Path) -> Path:
    """labels (H, W) int16, depth_m (1, H, W), normals (3, H, W), boundary (1, H, W) float32."""
    import numpy as np

    arrays = {
        {"segmentation": "labels", "log_depth": "depth_m"}.get(task, task): map.numpy()
        for task, map in shown(prediction).items()
    }
    if "labels" in arrays:
        arrays["labels"] = arrays["labels"].astype(np.int16)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    try:
        replace_file(path, buffer.getvalue())
    except CheckpointError as error:
        raise OSError(str(error)) from error
    return path


def shown(prediction: Prediction) -> dict[str, Tensor]:
    """By task what people look at: labels, metres, unit vectors, probabilities."""
    maps = dict(prediction.maps)
    if "segmentation" in maps:
        maps["segmentation"] = maps["segmentation"].argmax(0)
    if "log_depth" in maps:
        maps["log_depth"] = maps["log_depth"].exp()
    return maps


def truth(sample: Sample, task: str) -> Tensor | None:
    """What the sample knows of a task, in the form of :func:`shown`."""
    if task == "segmentation":
        return sample.labels
    if task == "log_depth":
        return sample.depth_m
    return sample.normals if task == "normals" else sample.boundary_share


def loop_pictures(prediction: Prediction, sample: Sample) -> list[viz.LoopPictures]:
    """Ground truth, if there is any, the feed-forward pass, and every loop."""
    model = prediction.network.model
    assert isinstance(model, DepthAwareParser)
    rows = []
    if sample.labels is not None or sample.depth_m is not None:
        depth = sample.depth_m
        index = None if depth is None else _pool(prediction.network).bins.index(depth)[0]
        rows.append(viz.LoopPictures("ground truth", index, depth, sample.labels))
    for number, stage in enumerate(prediction.stages):
        name = f"loop {number}" if number else "feed-forward"
        rows.append(_stage_pictures(name, stage, model.stride, sample.size))
    return rows


def _stage_pictures(
    name: str, stage: StageOutput, stride: int, size: tuple[int, int]
) -> viz.LoopPictures:
    depth = None
    if stage.depth is not None and stage.depth.log_depth is not None:
        depth = upsample(stage.depth.log_depth.float(), stride, size)[0].exp().cpu()
    pooling = stage.pooling
    return viz.LoopPictures(
        name,
        None if pooling is None else pooling[0, 0].cpu(),
        depth,
        stage.segmentation[0].argmax(0).cpu(),
    )


def _pool(network: Network) -> DepthAwarePool:
    assert isinstance(network.model, DepthAwareParser)
    return network.model.pool
