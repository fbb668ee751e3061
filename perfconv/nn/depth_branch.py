"""DepthBranch: depth from features, as bins and as log depth."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple


class DepthPrediction(NamedTuple):
    """What a depth branch says, at the resolution of its features."""

    logits: Tensor  # (N, K, h, w), of the bins, far to near
    log_depth: Tensor | None  # (N, 1, h, w), natural logarithm; None without a regression head


# So that exported programs that return it can be saved.
_register_namedtuple(DepthPrediction, serialized_type_name="perfconv.DepthPrediction")


class DepthBranch(nn.Module):
    """Convolution + BN + ReLU twice, then a classifier of depth bins and a regression head.

    Args:
        in_channels: of the features.
        bins: K.
        kernel_size: of the first convolution: 1 (NYUv2) or 3 (Cityscapes).
        has_regression: whether log depth is predicted too.
        widths: of the two hidden layers.
        dropout: before the classifier.

    Source: Kong and Fowlkes 2018, released code.
    Example:
        >>> found = DepthBranch(16).eval()(torch.rand(1, 16, 5, 6))
        >>> found.logits.shape, found.log_depth.shape
        (torch.Size([1, 5, 5, 6]), torch.Size([1, 1, 5, 6]))
    """

    conv_norm_pairs = (("conv1", "bn1"), ("conv2", "bn2"))  # for fuse

    def __init__(
        self,
        in_channels: int,
        bins: int = 5,
        *,
        kernel_size: int = 1,
        has_regression: bool = True,
        widths: tuple[int, int] = (128, 32),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, widths[0], kernel_size, padding=kernel_size // 2, bias=False
        )
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(widths[1])
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(widths[1], bins, 1)
        self.regression = nn.Conv2d(widths[1], 1, 3, padding=1) if has_regression else None
        for conv in (self.conv1, self.conv2):
            nn.init.normal_(conv.weight, std=(2 / conv.out_channels) ** 0.5 / conv.kernel_size[0])

    def forward(self, features: Tensor) -> DepthPrediction:
        """The depth of each pixel of ``features`` (N, C, h, w)."""
        hidden = F.relu(self.bn1(self.conv1(features)))
        hidden = F.relu(self.bn2(self.conv2(hidden)))
        log_depth = None if self.regression is None else self.regression(hidden)
        return DepthPrediction(self.classifier(self.dropout(hidden)), log_depth)
