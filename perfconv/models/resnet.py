"""ResNet trunks for dense prediction, with the parameter names of torchvision.

The whole geometry of the output stride is in ``stage_geometry``; weights are read by
``models/weights.py``.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perfconv.models.normalization import Normalization
from perfconv.nn.batch_norm import freeze_statistics
from perfconv.nn.dilation_pool import MultiDilationPool
from perfconv.nn.gated_chain import steps_of
from perfconv.nn.hooks import has_global_hooks, has_hooks, names_argument
from perfconv.nn.in_place import InPlaceBlock, added
from perfconv.nn.layers import conv_norm_relu

STEMS = ("7x7", "three_convs")
STAGES = ("res2", "res3", "res4", "res5")


class FeatureInfo(NamedTuple):
    """What ``forward`` returns under one name."""

    name: str  # "res2" to "res5", "res6"
    channels: int
    stride: int  # input pixels per feature pixel


class StageGeometry(NamedTuple):
    """Stride of the first block, dilation of its 3x3, dilation of those after it."""

    stride: int
    first_dilation: int
    dilation: int


def stage_geometry(output_stride: int) -> list[StageGeometry]:
    """Strides and dilations of res2 to res5: what lies beyond ``output_stride`` is dilated.

    As in torchvision, the first 3x3 of a stage whose stride was taken away keeps the dilation of
    the stage before.

    Raises:
        ValueError: ``output_stride`` is not 8, 16 or 32.
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(
            f"ResNet: output_stride must be 8, 16 or 32, got {output_stride}. Choose one of these."
        )
    geometry, stride, dilation = [StageGeometry(1, 1, 1)], 4, 1
    for _ in STAGES[1:]:
        before = dilation
        if stride < output_stride:
            stride *= 2
            geometry.append(StageGeometry(2, before, dilation))
        else:
            dilation *= 2
            geometry.append(StageGeometry(1, before, dilation))
    return geometry


class BasicBlock(InPlaceBlock):
    """3x3, 3x3 and a shortcut; without a 1x1, ``stride_in_1x1`` changes nothing."""

    expansion = 1
    conv_norm_pairs = (("conv1", "bn1"), ("conv2", "bn2"))  # for fuse

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, width, 3, stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _projection(in_channels, width, stride)

    def forward(self, input: Tensor, *, owns_input: bool = False) -> Tensor:
        shortcut = input if self.downsample is None else self.downsample(input)
        features = self.relu(self.bn1(self.conv1(input)))
        branch = self.bn2(self.conv2(features))
        return self.relu(added(shortcut, branch, owns_input and self.downsample is None))


class Bottleneck(InPlaceBlock):
    """1x1, 3x3, 1x1 and a shortcut."""

    expansion = 4
    conv_norm_pairs = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        out_channels = self.expansion * width
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2: nn.Module = nn.Conv2d(
            width, width, 3, second, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2: nn.Module = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, out_channels, stride)

    def forward(self, input: Tensor, *, owns_input: bool = False) -> Tensor:
        shortcut = input if self.downsample is None else self.downsample(input)
        features = self.relu(self.bn1(self.conv1(input)))
        features = self.bn2(self.conv2(features))
        if not (isinstance(self.conv2, MultiDilationPool) and isinstance(self.bn2, nn.Identity)):
            features = self.relu(features)
        elif torch.is_grad_enabled():
            # Nothing of what a pool gives is below 0: only the slope at 0, for its gate. Its own
            # gradient needs what it gave, so nothing is written over it.
            features = F.relu(features)
        branch = self.bn3(self.conv3(features))
        return self.relu(added(shortcut, branch, owns_input and self.downsample is None))


class ResNet(nn.Module):
    """A residual trunk; ``forward`` returns the features of its stages by name.

    The state dict has the keys of torchvision's networks of the same depth, without ``fc``;
    ``res6`` and the three-conv stem (timm's layout) have keys of their own.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``.
        depths: blocks of res2 to res5.
        output_stride: of res5, 8, 16 or 32; stages beyond it are dilated.
        stem: "7x7", or "three_convs" (3x3 with stride 2, 3x3, 3x3; 128 channels).
        stride_in_1x1: the stride of a bottleneck in its first 1x1, as the authors have it, instead
            of its 3x3.
        normalization: of the images, which are RGB in [0, 1]; see :class:`Normalization`.
        res6_channels: of a further convolution + BN + ReLU on res5; None for none.
        res6_kernel: its kernel size.
        frozen_norms: prefixes of the names of BatchNorms that use stored statistics in training
            too ("" for all, "layer1" for those of res2); their affine parameters are trained.
        width: of the 3x3 convolutions of res2, doubled from stage to stage, and of the stem.

    Attributes:
        feature_info: a :class:`FeatureInfo` for every feature, finest first.

    Example:
        >>> trunk = ResNet(BasicBlock, (1, 1, 1, 1), output_stride=8).eval()
        >>> features = trunk(torch.rand(1, 3, 33, 48))
        >>> [info.name for info in trunk.feature_info], features["res5"].shape
        (['res2', 'res3', 'res4', 'res5'], torch.Size([1, 512, 5, 6]))
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        output_stride: int = 32,
        stem: str = "7x7",
        stride_in_1x1: bool = False,
        normalization: str = "imagenet",
        res6_channels: int | None = None,
        res6_kernel: int = 3,
        frozen_norms: Sequence[str] = (),
        width: int = 64,
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise ValueError(
                f"ResNet: stem must be one of {', '.join(map(repr, STEMS))}, got {stem!r}. "
                "Choose one of these."
            )
        if isinstance(frozen_norms, str):
            raise TypeError(
                f"ResNet: frozen_norms must be a list of prefixes, got {frozen_norms!r}. Put the "
                "prefix into a tuple."
            )
        self.normalization = Normalization(normalization)
        self.frozen_norms = tuple(frozen_norms)
        channels = width if stem == "7x7" else 2 * width
        self.conv1 = _stem(stem, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        last = f"conv1.{len(self.conv1) - 1}" if isinstance(self.conv1, nn.Sequential) else "conv1"
        self.conv_norm_pairs = ((last, "bn1"),)  # for fuse
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        infos, stride = [], 4
        for index, geometry in enumerate(stage_geometry(output_stride)):
            blocks = []
            for number in range(depths[index]):
                is_first = number == 0
                blocks.append(
                    block(
                        channels,
                        width * 2**index,
                        stride=geometry.stride if is_first else 1,
                        dilation=geometry.first_dilation if is_first else geometry.dilation,
                        stride_in_1x1=stride_in_1x1,
                    )
                )
                channels = block.expansion * width * 2**index
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            stride *= geometry.stride
            infos.append(FeatureInfo(STAGES[index], channels, stride))
        self.res6 = None
        if res6_channels is not None:
            self.res6 = conv_norm_relu(channels, res6_channels, res6_kernel)
            infos.append(FeatureInfo("res6", res6_channels, stride))
        self.feature_info = tuple(infos)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self._freeze()

    def forward(self, images: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """The features of ``images`` (N, 3, H, W), RGB in [0, 1], by name.

        Args:
            names: of the features that are asked for, None for all. The memory of the others is
                free as soon as the next stage has read them.

        Returns:
            (N, channels, ceil(H / stride), ceil(W / stride)) for each of ``feature_info`` or of
            ``names``.

        Raises:
            ValueError: there is no feature of such a name.
        """
        known = [info.name for info in self.feature_info]
        for name in names or ():
            if name not in known:
                raise ValueError(
                    f"ResNet: names must be among {', '.join(known)}, got {name!r}. Choose of "
                    "these, or build the trunk with res6_channels."
                )
        features = self.maxpool(self.relu(self.bn1(self.conv1(self.normalization(images)))))
        found = {}
        for index, name in enumerate(STAGES):
            for step in steps_of(self.get_submodule(f"layer{index + 1}"), features):
                features = step(features)
            if names is None or name in names:
                found[name] = features
        if self.res6 is not None and (names is None or "res6" in names):
            found["res6"] = self.res6(features)
        return found

    def train(self, mode: bool = True) -> "ResNet":
        """As ever, but frozen BatchNorms stay in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        for name, module in self.named_modules():
            if name.startswith(self.frozen_norms):
                freeze_statistics(module)


def features_of(
    trunk: nn.Module, images: Tensor, names: Collection[str] | None
) -> dict[str, Tensor]:
    """The features that somebody reads: ``names``, None for all.

    All too if a hook looks on, or of a trunk whose ``forward`` has no ``names``.
    """
    is_watched = has_hooks(trunk) or has_global_hooks()
    if names is None or is_watched or not names_argument(trunk, "names"):
        return trunk(images)
    return trunk(images, names)


# Depth in the name: kind of block, and how many of them in res2 to res5.
DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


def _stem(kind: str, channels: int) -> nn.Module:
    if kind == "7x7":
        return nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)
    half = channels // 2
    return nn.Sequential(
        *conv_norm_relu(3, half, 3, stride=2),
        *conv_norm_relu(half, half, 3),
        nn.Conv2d(half, channels, 3, padding=1, bias=False),
    )
