"""Heads: from a trunk's features to the map of one task, at the size of the image.

A head gets the features by name, never the trunk, and returns a dictionary of maps. The keys are
those of ``predict_augmented``: segmentation, log_depth, normals, boundary. ``reads`` says which
features, so that the others need no memory; a head without it gets all of them, and so does a
subclass of these with a ``forward`` of its own, unless it has a ``reads`` of its own too.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perfconv.models.resnet import FeatureInfo
from perfconv.nn.layers import conv_norm_relu

Size = tuple[int, int]


def upsample(map: Tensor, stride: int, size: Size) -> Tensor:
    """``map`` enlarged bilinearly by ``stride`` and cropped to ``size`` (H, W) at the top left.

    As the authors' transposed convolution with bilinear weights does; an image need not be a
    multiple of the stride.

    Args:
        map: (N, C, h, w) with h >= H / stride and w >= W / stride.
    """
    height, width = map.shape[2:]
    large = F.interpolate(
        map, size=(stride * height, stride * width), mode="bilinear", align_corners=False
    )
    return large[..., : size[0], : size[1]]


def blurred(map: Tensor, radius: int) -> Tensor:
    """The mean over squares of 2 * radius + 1 pixels, the border repeated: the deck's "-blur"."""
    if not radius:
        return map
    return F.avg_pool2d(F.pad(map, [radius] * 4, mode="replicate"), 2 * radius + 1, 1)


def features_read(head: nn.Module) -> Sequence[str] | None:
    """``reads`` of ``head``; None where it says nothing of the ``forward`` that runs."""
    if "reads" in head.__dict__:
        return head.__dict__["reads"]
    if "forward" in head.__dict__:
        return None
    for kind in type(head).__mro__:
        if "reads" in kind.__dict__:
            return head.reads  # type: ignore[return-value]
        if "forward" in kind.__dict__:
            return None
    return None


class SegmentationHead(nn.Module):
    """Convolution + BN + ReLU, dropout, 1x1 to the classes: logits under "segmentation".

    Args:
        feature: which feature to read.
        classes: without the one to ignore.
        hidden_channels, kernel_size: of the first convolution.
        dropout: before the classifier.
    """

    def __init__(
        self,
        feature: FeatureInfo,
        classes: int,
        *,
        hidden_channels: int = 512,
        kernel_size: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.feature = feature
        self.hidden = conv_norm_relu(feature.channels, hidden_channels, kernel_size)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(hidden_channels, classes, 1)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.feature.name,)

    def forward(self, features: Mapping[str, Tensor], size: Size) -> dict[str, Tensor]:
        # In one expression: no layer's output outlives the next one.
        logits = self.classifier(self.dropout(self.hidden(features[self.feature.name])))
        return {"segmentation": upsample(logits, self.feature.stride, size)}


class DepthHead(nn.Module):
    """Convolution + BN + ReLU, 3x3 to the natural log of metres under "log_depth".

    Args:
        feature: which feature to read.
        hidden_channels, kernel_size: of the first convolution.
        blur_radius: in evaluation the map is averaged over squares of 2 * radius + 1 pixels, the
            border repeated; 0 leaves it as it is.
    """

    def __init__(
        self,
        feature: FeatureInfo,
        *,
        hidden_channels: int = 512,
        kernel_size: int = 1,
        blur_radius: int = 0,
    ) -> None:
        super().__init__()
        self.feature = feature
        self.blur_radius = blur_radius
        self.hidden = conv_norm_relu(feature.channels, hidden_channels, kernel_size)
        self.regression = nn.Conv2d(hidden_channels, 1, 3, padding=1)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.feature.name,)

    def forward(self, features: Mapping[str, Tensor], size: Size) -> dict[str, Tensor]:
        log_depth = self.regression(self.hidden(features[self.feature.name]))
        log_depth = upsample(log_depth, self.feature.stride, size)
        if not self.training:
            log_depth = blurred(log_depth, self.blur_radius)
        return {"log_depth": log_depth}


class NormalsHead(nn.Module):
    """Two convolutions + BN + ReLU, 1x1 to three channels, of length 1, under "normals".

    Args:
        feature: which feature to read.
        hidden_channels: of the two hidden layers.
    """

    def __init__(
        self, feature: FeatureInfo, *, hidden_channels: tuple[int, int] = (512, 128)
    ) -> None:
        super().__init__()
        self.feature = feature
        self.layer1 = conv_norm_relu(feature.channels, hidden_channels[0], 1)
        self.layer2 = conv_norm_relu(hidden_channels[0], hidden_channels[1], 3)
        self.output = nn.Conv2d(hidden_channels[1], 3, 1)

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.feature.name,)

    def forward(self, features: Mapping[str, Tensor], size: Size) -> dict[str, Tensor]:
        vectors = self.output(self.layer2(self.layer1(features[self.feature.name])))
        return {"normals": F.normalize(upsample(vectors, self.feature.stride, size), dim=1)}


class BoundaryHead(nn.Module):
    """A 1x1 to one logit on every stage, and one that fuses them, under "boundary".

    In training "boundary_sides" holds the side outputs too, (N, stages, H, W), for a loss each.

    Args:
        features: the stages, res2 to res5.
    """

    def __init__(self, features: Sequence[FeatureInfo]) -> None:
        super().__init__()
        self.features = tuple(features)
        self.sides = nn.ModuleDict({info.name: nn.Conv2d(info.channels, 1, 1) for info in features})
        self.fuse = nn.Conv2d(len(self.features), 1, 1)
        nn.init.constant_(self.fuse.weight, 1 / len(self.features))
        assert self.fuse.bias is not None
        nn.init.zeros_(self.fuse.bias)

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(info.name for info in self.features)

    def forward(self, features: Mapping[str, Tensor], size: Size) -> dict[str, Tensor]:
        sides = torch.cat(
            [
                upsample(self.sides[info.name](features[info.name]), info.stride, size)
                for info in self.features
            ],
            1,
        )  # (N, stages, H, W)
        found = {"boundary": self.fuse(sides)}
        if self.training:
            found["boundary_sides"] = sides
        return found


TASKS = ("segmentation", "log_depth", "normals", "boundary")


def make_heads(
    features: Sequence[FeatureInfo], tasks: Sequence[str], *, classes: int = 40
) -> dict[str, nn.Module]:
    """A head for each task on the last of ``features`` (boundaries: on res2 to res5).

    Raises:
        ValueError: a task is unknown or there is none.
    """
    if not tasks or isinstance(tasks, str) or any(task not in TASKS for task in tasks):
        raise ValueError(
            f"make_heads: tasks must be a list of {', '.join(map(repr, TASKS))}, got {tasks!r}. "
            "Choose one or more."
        )
    last = features[-1]
    heads: dict[str, nn.Module] = {}
    for task in tasks:
        if task == "segmentation":
            heads[task] = SegmentationHead(last, classes)
        elif task == "log_depth":
            heads[task] = DepthHead(last)
        elif task == "normals":
            heads[task] = NormalsHead(last)
        else:
            heads[task] = BoundaryHead([info for info in features if info.name != "res6"])
    return heads
