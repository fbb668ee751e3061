"""Depth in bins, one for each dilation: what is near gets the large receptive field."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from perfconv.ops.conv_grad import differentiable_nearest_fill

INVALID = -1  # the bin of a pixel without depth


@dataclass(frozen=True)
class DepthBins:
    """How a data set's raw depth is divided.

    Bin k holds the values above ``thresholds[k - 1]`` up to ``thresholds[k]``; one more bin holds
    what is above the last. Values up to ``lowest_valid`` and those that are not finite are invalid.

    Args:
        thresholds: ascending, K - 1 of them, in units of the value that is divided.
        near_first: True where small values are near (depth), False for disparity. Bins of
            ``index`` are ordered from far (dilation 1) to near.
        lowest_valid: raw values must be above it.
        uses_log2: the value is log2 of the raw one.
    """

    thresholds: tuple[float, ...]
    near_first: bool = True
    lowest_valid: float = 0.0
    uses_log2: bool = False

    def __post_init__(self) -> None:
        if list(self.thresholds) != sorted(set(self.thresholds)):
            raise ValueError(
                f"DepthBins: thresholds must ascend, got {self.thresholds}. Sort them."
            )

    @property
    def bins(self) -> int:
        return len(self.thresholds) + 1

    def index(self, raw: Tensor) -> Tensor:
        """The bin of each raw value, int64, 0 the farthest; -1 where there is no depth."""
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        is_valid = (raw > self.lowest_valid) & raw.isfinite()
        value = raw.clamp(min=1).log2() if self.uses_log2 else raw
        found = torch.zeros_like(value, dtype=torch.int64)
        for limit in self.thresholds:  # a tensor of them would be copied to a GPU in every call
            found = found + (value > limit)
        if self.near_first:
            found = self.bins - 1 - found
        return torch.where(is_valid, found, INVALID)


def quantile_bins(depth: Tensor, bins: int = 5) -> DepthBins:
    """Bins that hold equal numbers of the valid pixels of ``depth`` (> 0, any shape).

    For data sets without published thresholds: give the depth of the training set.

    Notes: reads values (a host sync on CUDA).
    """
    valid = depth[(depth > 0) & depth.isfinite()].double()
    if valid.numel() < bins:
        raise ValueError(
            f"quantile_bins: depth must have at least {bins} valid pixels, got {valid.numel()}. "
            "Give depth above 0."
        )
    ordered = valid.flatten().sort().values
    ends = [round(k * ordered.numel() / bins) - 1 for k in range(1, bins)]  # of bins, inclusive
    thresholds = tuple(float(ordered[end]) for end in ends)
    if len(set(thresholds)) < len(thresholds):
        raise ValueError(
            f"quantile_bins: depth must have values enough for {bins} bins, got equal ones at the "
            f"limits, {thresholds}. Ask for fewer bins."
        )
    return DepthBins(thresholds)


# Millimetres, and log2 of the raw 16-bit disparity: the authors' released thresholds.
NYUV2 = DepthBins((1500.0, 2100.0, 3000.0, 4700.0), lowest_valid=1.0)
CITYSCAPES = DepthBins((11.0, 12.5, 13.2, 13.9), False, lowest_valid=10.0, uses_log2=True)
# The same for metres, as the readers of ``perfconv.data`` give them; Cityscapes with the usual
# focal length (2262.52 pixels) and baseline (0.209313 m): depth = product / ((raw - 1) / 256).
NYUV2_M = DepthBins((1.5, 2.1, 3.0, 4.7))
CITYSCAPES_M = DepthBins((7.9312, 12.884, 20.933, 59.21))


def soft_bins(index: Tensor, bins: int, size: Sequence[int]) -> Tensor:
    """Weights of the bins on a coarser grid, (N, K, h, w), which add up to 1.

    One-hot at the resolution of ``index``, resized bicubically with antialiasing (every pixel of a
    cell counts), clamped and divided by their sum; a pixel without depth is 1 / K in every bin.

    Args:
        index: (N, 1, H, W) of ``DepthBins.index``.
        bins: K.
        size: (h, w).

    Source: Kong and Fowlkes 2018, released code.
    """
    numbers = torch.arange(bins, device=index.device)[:, None, None]
    shared = (index == numbers).float() + (index == INVALID).float() / bins  # (N, K, H, W)
    resized = F.interpolate(
        shared, size=tuple(size), mode="bicubic", align_corners=False, antialias=True
    ).clamp(min=0)
    return resized / resized.sum(1, keepdim=True)


def hard_bins(index: Tensor, size: Sequence[int]) -> Tensor:
    """The bin of each pixel of a coarser grid, (N, 1, h, w), int64.

    The bin at the nearest place of ``index`` (N, 1, H, W); where that is invalid, the one of the
    nearest pixel of the coarse grid that is valid; in an image without depth bin 0, dilation 1.
    """
    nearest = F.interpolate(index.float(), size=tuple(size), mode="nearest-exact")
    return differentiable_nearest_fill(nearest, nearest != INVALID).long()  # 0 without any
