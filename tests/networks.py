"""Small residual networks with the names of torchvision's, and gated blocks written out densely."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut; the stride in the 3x3 or, as in older ones, the first 1x1."""

    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int = 1, *, dilation: int = 1,
        is_stride_first: bool = False, groups: int = 1, squeeze: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        out_channels = self.expansion * width
        first, second = (stride, 1) if is_stride_first else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride=first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, dilation, dilation, groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.se = SqueezeExcite(width, squeeze) if squeeze else nn.Identity()
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride)

    def forward(self, input: Tensor) -> Tensor:
        shortcut = input if self.downsample is None else self.downsample(input)
        features = self.relu(self.bn1(self.conv1(input)))
        features = self.se(self.relu(self.bn2(self.conv2(features))))
        return self.relu(self.bn3(self.conv3(features)) + shortcut)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project and the input; without the expansion where the width is 1x."""

    def __init__(
        self, channels: int, expansion: int, kernel_size: int = 3, *, squeeze: int = 0,
        activation: type[nn.Module] = nn.ReLU6,
    ) -> None:  # fmt: skip
        super().__init__()
        width = expansion * channels
        if expansion > 1:
            self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(
            width, width, kernel_size, padding=kernel_size // 2, groups=width, bias=False
        )
        self.bn2 = nn.BatchNorm2d(width)
        self.se = SqueezeExcite(width, squeeze) if squeeze else nn.Identity()
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.act = activation(inplace=True)
        self.downsample = None

    def forward(self, input: Tensor) -> Tensor:
        features = self.act(self.bn1(self.conv1(input))) if hasattr(self, "conv1") else input
        features = self.se(self.act(self.bn2(self.conv2(features))))
        return input + self.bn3(self.conv3(features))


class SqueezeExcite(nn.Module):
    """Channels scaled by a function of their means."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, width, 1)
        self.act = nn.SiLU()
        self.expand = nn.Conv2d(width, channels, 1)
        self.gate = nn.Hardsigmoid()

    def scale(self, mean: Tensor) -> Tensor:
        return self.gate(self.expand(self.act(self.reduce(mean))))

    def forward(self, input: Tensor) -> Tensor:
        return input * self.scale(input.mean((2, 3), keepdim=True))


class BasicBlock(nn.Module):
    """3x3, 3x3 and a shortcut."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, width, stride)

    def forward(self, input: Tensor) -> Tensor:
        shortcut = input if self.downsample is None else self.downsample(input)
        features = self.relu(self.bn1(self.conv1(input)))
        return self.relu(self.bn2(self.conv2(features)) + shortcut)


class ResNet(nn.Module):
    """Stem, stages of residual blocks, classifier."""

    def __init__(self, kind: type, blocks: tuple[int, ...] = (2, 2), width: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        channels = 8
        for index, count in enumerate(blocks):
            layers = []
            for number in range(count):
                stride = 2 if index and not number else 1
                layers.append(kind(channels, width * 2**index, stride))
                channels = getattr(kind, "func", kind).expansion * width * 2**index
            setattr(self, f"layer{index + 1}", nn.Sequential(*layers))
        self.stages = len(blocks)
        self.fc = nn.Linear(channels, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(images)))
        for index in range(self.stages):
            features = getattr(self, f"layer{index + 1}")(features)
        return self.fc(features.mean((2, 3)))


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
    )


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights of unit gain, and BatchNorms whose statistics and affine are none of the defaults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.normal_(generator=generator).mul_((2 / fan_in) ** 0.5)
            elif isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(generator=generator).mul_(0.2)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(generator=generator).mul_(0.2)
    return model
