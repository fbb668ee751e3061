"""RecurrentRefinement: depth and labels refined in loops that share their parameters."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from perfconv.nn.depth_bins import NYUV2_M, DepthBins
from perfconv.nn.depth_branch import DepthBranch, DepthPrediction
from perfconv.nn.depth_pool import DepthAwarePool
from perfconv.nn.layers import conv_norm_relu

MERGES = ("last", "mean", "max")


class LoopOutput(NamedTuple):
    """What one loop says, at the resolution of the features."""

    logits: Tensor  # (N, classes, h, w)
    depth: DepthPrediction | None  # with predicted depth
    choice: Tensor | None  # (N, 1, h, w), int64, the dilation index of each pixel, if hard
    hidden: Tensor  # (N, channels, h, w), what the next loop gets
    weights: Tensor | None = None  # (N, K, h, w), of the dilations, if soft


class RecurrentRefinement(nn.Module):
    """Loops over [concatenate features and hidden, 3x3, depth-aware pool, 1x1, classifier].

    Loop t sees the trunk's features, which are computed once, and the hidden feature of loop t - 1;
    a feature goes round, not a label map. Every loop has the same parameters and outputs of its
    own, each for a loss; gradients pass through all loops.

    Args:
        feature_channels: of the trunk's features (res6).
        classes: of the classifier.
        channels: of hidden features.
        loops: how many.
        weighting: of the pool: "predicted_depth", "true_depth", "attention", "average", or "none",
            a plain 3x3 in its place.
        assignment, tied, dilations, bins: as for :class:`DepthAwarePool`.
        has_regression: whether the depth branch predicts log depth too (NYUv2).
        depth_kernel: of the depth branch's first layer: 1 (NYUv2) or 3 (Cityscapes).
        dropout: before the classifier.

    Source: Kong and Fowlkes 2018, recurrent refining module, released code.
    Example:
        >>> module = RecurrentRefinement(8, 4, channels=8, loops=2).eval()
        >>> outputs = module(torch.rand(1, 8, 5, 6), torch.rand(1, 8, 5, 6))
        >>> [output.logits.shape[1] for output in outputs]
        [4, 4]
    """

    def __init__(
        self,
        feature_channels: int,
        classes: int,
        *,
        channels: int = 512,
        loops: int = 2,
        weighting: str = "predicted_depth",
        assignment: str = "soft",
        tied: bool = False,
        dilations: Sequence[int] = (1, 2, 4, 8, 16),
        bins: DepthBins = NYUV2_M,
        has_regression: bool = True,
        depth_kernel: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        _check_loops(loops)
        self.loops = loops
        self.block1 = conv_norm_relu(feature_channels + channels, channels, 3)
        self.pool: nn.Module
        if weighting == "none":
            self.pool = conv_norm_relu(channels, channels, 3)
        else:
            branch = None
            if weighting == "predicted_depth":
                branch = DepthBranch(
                    channels,
                    len(dilations),
                    kernel_size=depth_kernel,
                    has_regression=has_regression,
                    dropout=dropout,
                )
            self.pool = DepthAwarePool(
                channels, dilations, weighting, assignment, tied, bins=bins, depth_branch=branch
            )
        self.block3 = conv_norm_relu(channels, channels, 1)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(
        self,
        features: Tensor,
        hidden: Tensor,
        depth: Tensor | None = None,
        *,
        loops: int | None = None,
    ) -> list[LoopOutput]:
        """The outputs of every loop, first to last.

        Args:
            features: (N, feature_channels, h, w).
            hidden: (N, channels, h, w), of the network before the first loop.
            depth: (N, 1, H, W), for true depth.
            loops: instead of the constructor's.
        """
        count = self.loops if loops is None else loops
        _check_loops(count)
        outputs = []
        for _ in range(count):
            mixed = self.block1(torch.cat([features, hidden], 1))
            predicted = choice = weights = None
            if isinstance(self.pool, DepthAwarePool):
                pooled = self.pool(mixed, depth)
                mixed, predicted, choice = pooled.features, pooled.depth, pooled.choice
                weights = pooled.weights
            else:
                mixed = self.pool(mixed)
            hidden = self.dropout(self.block3(mixed))
            outputs.append(LoopOutput(self.classifier(hidden), predicted, choice, hidden, weights))
        return outputs


def merge(logits: Sequence[Tensor], how: str = "last") -> Tensor:
    """One probability map out of several outputs, (N, classes, H, W).

    Args:
        logits: (N, classes, H, W) each, of the feed-forward network and the loops.
        how: "last", the softmax of the last one; "mean" or "max" of the softmax maps; the maximum
            does not add up to 1.
    """
    if how not in MERGES:
        raise ValueError(
            f"merge: how must be one of {', '.join(map(repr, MERGES))}, got {how!r}. Choose one of "
            "these."
        )
    if how == "last":
        return logits[-1].softmax(1)
    maps = torch.stack([one.softmax(1) for one in logits])
    return maps.mean(0) if how == "mean" else maps.amax(0)


def _check_loops(loops: int) -> None:
    if loops < 1:
        raise ValueError(
            f"RecurrentRefinement: loops must be 1 or more, got {loops}. Use the network before "
            "the loops instead."
        )
