"""EfficientNet-lite0: inverted residual blocks with ReLU6, for images of 1000 classes.

A stem, 16 blocks in seven stages, a 1x1 head and a classifier. Strided convolutions pad as
TensorFlow does, so that its weights give what they gave there. Names are those of timm's
tf_efficientnet_lite0, whose checkpoints load.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 1000
INPUT_SIZE = 224  # pixels that the weights were trained for
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
EPSILON = 1e-3  # of every BatchNorm


class StageShape(NamedTuple):
    """Blocks of one stage; the stride is that of its first block."""

    blocks: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    StageShape(1, 3, 1, 1, 16),
    StageShape(2, 3, 2, 6, 24),
    StageShape(2, 5, 2, 6, 40),
    StageShape(3, 3, 2, 6, 80),
    StageShape(3, 5, 1, 6, 112),
    StageShape(4, 5, 2, 6, 192),
    StageShape(1, 3, 1, 6, 320),
)


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise, project 1x1, and the input added where its shape is the output's.

    Args:
        in_channels, out_channels: of the block.
        kernel_size: of the depthwise convolution, odd.
        stride: of the depthwise convolution.
        expansion: channels between over ``in_channels``; 1 leaves the first 1x1 out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        expansion: int = 6,
    ) -> None:
        super().__init__()
        width = expansion * in_channels
        layers: list[tuple[str, int, int, int]] = []  # name, in, out, groups
        if expansion != 1:
            layers.append(("conv_pw", in_channels, width, 1))
        layers.append(("conv_dw", width, width, width))
        layers.append(("conv_pwl" if expansion != 1 else "conv_pw", width, out_channels, 1))
        for number, (name, before, after, groups) in enumerate(layers, 1):
            is_depthwise = name == "conv_dw"
            conv = convolution(
                before,
                after,
                kernel_size if is_depthwise else 1,
                stride if is_depthwise else 1,
                groups,
            )
            self.add_module(name, conv)
            self.add_module(f"bn{number}", nn.BatchNorm2d(after, eps=EPSILON))
            if number < len(layers):
                self.add_module(f"act{number}", nn.ReLU6(inplace=True))
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, input: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, ceil(H / stride), ceil(W / stride))."""
        features = input
        for layer in self.children():
            features = layer(features)
        return input + features if self.has_shortcut else features


class EfficientNetLite0(nn.Module):
    """EfficientNet-lite0 with random weights; see :func:`efficientnet_lite0_imagenet`.

    Args:
        classes: of the classifier.

    Example:
        >>> model = EfficientNetLite0().eval()
        >>> model(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """

    def __init__(self, *, classes: int = CLASSES) -> None:
        super().__init__()
        self.conv_stem = convolution(3, STEM_CHANNELS, 3, 2, 1)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS, eps=EPSILON)
        channels = STEM_CHANNELS
        stages = []
        for shape in STAGES:
            blocks = []
            for number in range(shape.blocks):
                block = InvertedResidual(
                    channels,
                    shape.channels,
                    kernel_size=shape.kernel_size,
                    stride=1 if number else shape.stride,
                    expansion=shape.expansion,
                )
                blocks.append(block)
                channels = shape.channels
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        self.conv_head = convolution(channels, HEAD_CHANNELS, 1, 1, 1)
        self.bn2 = nn.BatchNorm2d(HEAD_CHANNELS, eps=EPSILON)
        self.classifier = nn.Linear(HEAD_CHANNELS, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch.

        Args:
            images: (N, 3, H, W) from :func:`square_input`, 224x224 or any other size.

        Returns:
            (N, classes).
        """
        features = F.relu6(self.bn1(self.conv_stem(images)))
        features = F.relu6(self.bn2(self.conv_head(self.blocks(features))))
        return self.classifier(features.mean((2, 3)))  # (N, classes)


class SamePaddedConv2d(nn.Conv2d):
    """A strided convolution padded as TensorFlow does: the odd pixel goes to the end."""

    def forward(self, input: Tensor) -> Tensor:
        sides = []
        for size, kernel, step in zip(
            input.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            total = max((-(-size // step) - 1) * step + kernel - size, 0)
            sides += [total // 2, total - total // 2]
        return self._conv_forward(F.pad(input, sides), self.weight, self.bias)


def convolution(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, groups: int
) -> nn.Conv2d:
    """Without bias; the output has ceil(H / stride) rows."""
    if stride == 1:
        return nn.Conv2d(
            in_channels, out_channels, kernel_size, 1, kernel_size // 2, groups=groups, bias=False
        )
    return SamePaddedConv2d(
        in_channels, out_channels, kernel_size, stride, groups=groups, bias=False
    )


def square_input(pixels: Tensor, *, size: int = INPUT_SIZE) -> Tensor:
    """A whole photo as the network expects it, whatever its shape: scaled to a square.

    Args:
        pixels: (N, 3, H, W), red, green, blue in [0, 1].
        size: side of the result, pixels.

    Returns:
        (N, 3, size, size), in [-1, 1].
    """
    scaled = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True)
    return scaled.clamp(0, 1) * 2 - 1
