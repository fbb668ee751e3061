"""The network of a checkpoint, or of a name and a state dict; running it on one image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from perfconv import viz
from perfconv.data import PerspectiveScenes, Sample
from perfconv.data.palette import palette
from perfconv.data.verify import DATASETS
from perfconv.models import DepthAwareParser, SceneParser, load_weights, predict_augmented
from perfconv.models.parsers import StageOutput
from perfconv.nn import DepthAwarePool, record_gates
from perfconv.train import build_network, load_model
from perfconv.train.checkpoint import CheckpointError, checkpoint_file
from perfconv.train.networks import tasks_of
from perfconv.train.shipped import SHIPPED


class NetworkError(ValueError):
    """A network cannot be built or used; the message says why and what to do."""


class Network(NamedTuple):
    """A network, and what its outputs mean."""

    name: str  # of its builder
    model: SceneParser | DepthAwareParser
    tasks: tuple[str, ...]
    classes: viz.Classes | None  # with segmentation


class Prediction(NamedTuple):
    """What a network says of one image, on the CPU."""

    network: Network
    # By task, at the size of the image: probabilities (C, H, W), log of metres (1, H, W), unit
    # vectors (3, H, W), probability (1, H, W).
    maps: dict[str, Tensor]
    stages: list[StageOutput]  # of depth-aware networks: feed-forward pass and loops
    found: viz.Decisions | None  # of gated networks


def open_network(
    checkpoint: Path | None,
    name: str | None,
    weights: Path | None,
    arguments: Mapping[str, object],
    dataset: str | None = None,
) -> Network:
    """A network with weights, in eval mode.

    Args:
        checkpoint: of ``perfconv train``, or the folder of a run; else the three others; without
            any of them the network that ships.
        name, arguments: of ``build_network``.
        weights: a state dict in a file.
        dataset: whose classes its labels are; None: what the checkpoint says, or numbers.

    Raises:
        NetworkError: neither or both are given, a file is missing or does not fit, or the network
            has another number of classes than ``dataset``.
    """
    if checkpoint is None and name is None and weights is None:
        checkpoint = SHIPPED
    if (checkpoint is None) == (name is None) or (name is None) != (weights is None):
        given = [
            option
            for option, value in (
                ("--checkpoint", checkpoint), ("--network", name), ("--weights", weights)
            )
            if value is not None
        ]  # fmt: skip
        raise NetworkError(
            "a network needs weights: give either --checkpoint, or --network and --weights, got "
            f"{' and '.join(given)}. perfconv train writes checkpoints."
        )
    names: Sequence[str] = ()
    try:
        if checkpoint is not None:
            loaded = load_model(checkpoint_file(checkpoint))
            model, name = loaded.model, str(loaded.config["model"]["name"])
            names = loaded.config.get("classes") or ()
        else:
            assert name is not None
            assert weights is not None
            model = build_network(name, arguments)
            load_weights(model, weights, ignored=())
    except FileNotFoundError as error:
        raise NetworkError(
            f"there is no file {error.filename or error}. Check the path."
        ) from error
    except (CheckpointError, ValueError, RuntimeError, TypeError, OSError) as error:
        raise NetworkError(str(error)) from error
    return Network(name, model.eval(), tasks_of(model), _classes(model, names, dataset))


def class_names(dataset: str) -> tuple[str, ...]:
    """The classes of a data set's labels; those of "scenes", too."""
    return PerspectiveScenes.classes if dataset == "scenes" else DATASETS[dataset].classes


def _pools(model: nn.Module) -> list[DepthAwarePool]:
    return [module for module in model.modules() if isinstance(module, DepthAwarePool)]


def _classes(
    model: SceneParser | DepthAwareParser, names: Sequence[str], dataset: str | None
) -> viz.Classes | None:
    """Names and colours: of ``dataset``, or else of whichever has these names."""
    if "segmentation" not in tasks_of(model):
        return None
    holder = model.heads["segmentation"] if isinstance(model, SceneParser) else model
    count = holder.get_submodule("classifier").weight.size(0)  # type: ignore[operator]
    if dataset is not None:
        names = class_names(dataset)
        if len(names) != count:
            raise NetworkError(
                f"the network must have the {len(names)} classes of {dataset}, got {count}. Give "
                "--names of the data set that it was trained on, or leave --dataset out."
            )
    if len(names) != count:
        names = [f"class {number}" for number in range(count)]
    known = (reader for reader in DATASETS.values() if tuple(reader.classes) == tuple(names))
    return viz.Classes(names, palette(getattr(next(known, None), "colours", None)))


class Predictor:
    """Runs a network on samples, with test-time augmentation.

    Args:
        network: moved to ``device``.
        device: "cpu", "cuda", "cuda:1".
        is_bf16: under bfloat16 autocast.
        scales, flip, merge: of ``predict_augmented``.
        merge_loops: of ``DepthAwareParser.merged``.

    Raises:
        NetworkError: the device is not there, or a scale is not above 0.
    """

    def __init__(
        self,
        network: Network,
        *,
        device: str = "cpu",
        is_bf16: bool = False,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        merge: str = "mean",
        merge_loops: str = "last",
    ) -> None:
        try:
            self.device = torch.device(device)
            network.model.to(self.device)
        except (RuntimeError, AssertionError) as error:
            raise NetworkError(
                f"--device must be one that torch can use here, got {device!r}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        if not all(scale > 0 for scale in scales):
            raise NetworkError(f"--scales must be above 0, got {list(scales)}.")
        self.needs_depth = any(p.weighting == "true_depth" for p in _pools(network.model))
        if self.needs_depth and (flip or tuple(scales) != (1.0,)):
            raise NetworkError(
                "a network that is given true depth must see the image as it is, got --flip or "
                "--scales. Leave them out."
            )
        self.network, self.is_bf16 = network, is_bf16
        self.scales, self.flip, self.merge, self.merge_loops = scales, flip, merge, merge_loops

    def __call__(self, sample: Sample) -> Prediction:
        """The prediction for one sample.

        Raises:
            NetworkError: the network needs a depth that the sample does not have, or its outputs
                are not finite.
        """
        model = self.network.model
        image = sample.image[None].to(self.device)
        depth = self._depth(sample)
        stages: list[StageOutput] = []
        found: list[viz.Decisions | None] = []

        def predict(images: Tensor) -> Mapping[str, Tensor]:
            with record_gates(model) as record:
                outputs = model(images) if depth is None else model(images, depth)
            if images is image:  # neither scaled nor mirrored: what pictures show
                found.append(viz.recorded(model, record, sample.size))
            if isinstance(model, SceneParser):
                return outputs
            if images is image:
                stages.extend(outputs)
            return model.merged(outputs, merging=self.merge_loops)

        with torch.no_grad(), torch.autocast(
            self.device.type, torch.bfloat16, enabled=self.is_bf16
        ):  # fmt: skip
            merged = predict_augmented(
                predict, image, scales=self.scales, flip=self.flip, merge=self.merge
            )
        maps = {task: map[0].cpu() for task, map in merged.items()}
        for task, map in maps.items():
            if not bool(map.isfinite().all()):
                raise NetworkError(
                    f"the network's {task} must be finite, got other values. Are its weights those "
                    "of a run that went wrong?"
                )
        return Prediction(self.network, maps, stages, found[0] if found else None)

    def _depth(self, sample: Sample) -> Tensor | None:
        if not self.needs_depth:
            return None
        if sample.depth_m is None:
            raise NetworkError(
                "this network pools by true depth, and the image has none. Give a data set with "
                "depth: --dataset."
            )
        return sample.depth_m[None].to(self.device)
