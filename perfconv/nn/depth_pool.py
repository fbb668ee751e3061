"""DepthAwarePool: the size of the receptive field follows depth, large where the scene is near."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from perfconv.nn.depth_bins import NYUV2_M, DepthBins, hard_bins, soft_bins
from perfconv.nn.depth_branch import DepthBranch, DepthPrediction
from perfconv.nn.dilation_branches import BranchPool, DilationBranches, check_branches
from perfconv.nn.dilation_pool import weighted_sum
from perfconv.nn.scale_gate import ScaleGate

DEPTH_WEIGHTINGS = ("true_depth", "predicted_depth", "attention", "average")
ASSIGNMENTS = ("soft", "hard")


class DepthPooled(NamedTuple):
    """What a depth-aware pool returns, on the grid of its input."""

    features: Tensor  # (N, C, h, w)
    weights: Tensor | None  # (N, K, h, w), of the branches; None with a hard assignment
    choice: Tensor | None  # (N, 1, h, w), int64, the branch of each pixel; None with a soft one
    depth: DepthPrediction | None  # with predicted depth


class DepthAwarePool(BranchPool):
    """The sum over dilations of w_k * ReLU(BN_k(conv3x3 of dilation d_k)).

    ``weighting`` says where the w_k come from: "true_depth", the bins of a given depth map;
    "predicted_depth", the softmax of a :class:`DepthBranch`; "attention", a softmax without
    anything to do with depth; "average", 1 / K. Dilations are ordered far to near.

    ``assignment="soft"`` sums all branches. "hard" takes one branch per pixel, the bin itself or
    the largest weight, in **one** ``multi_dilation_conv2d`` launch; only while a predictor of the
    weights learns are all branches computed, for its straight-through gradient. Where depth is
    missing, soft gives 1 / K to each, hard takes the bin of the nearest pixel that has one, or
    dilation 1 in an image without any.

    Args:
        channels: of input and output.
        dilations: K of them, ascending.
        weighting, assignment: see above; "average" is soft only.
        tied: one kernel and one BatchNorm for all dilations.
        bins: how true depth is divided, into K bins: those of "true_depth", and what the classes
            of "predicted_depth" are.
        depth_branch: for "predicted_depth"; default a new one of the input, with K bins.
        gate: for "attention"; default a new ``ScaleGate``, used without noise.
        batch_norm: "frozen", statistics of evaluation always; or "active", ordinary ones.

    Source: Kong and Fowlkes 2018, depth-aware gating.
    Example:
        >>> pool = DepthAwarePool(8, weighting="true_depth", assignment="hard").eval()
        >>> depth_mm = torch.rand(1, 1, 48, 64) * 6000
        >>> pool(torch.rand(1, 8, 6, 8), depth_mm).features.shape
        torch.Size([1, 8, 6, 8])
    """

    def __init__(
        self,
        channels: int,
        dilations: Sequence[int] = (1, 2, 4, 8, 16),
        weighting: str = "predicted_depth",
        assignment: str = "soft",
        tied: bool = False,
        *,
        bins: DepthBins = NYUV2_M,
        depth_branch: DepthBranch | None = None,
        gate: ScaleGate | None = None,
        batch_norm: str = "active",
    ) -> None:
        super().__init__(DilationBranches(channels, dilations, tied=tied), batch_norm)
        for argument, value, allowed in (
            ("weighting", weighting, DEPTH_WEIGHTINGS),
            ("assignment", assignment, ASSIGNMENTS),
        ):
            if value not in allowed:
                raise ValueError(
                    f"DepthAwarePool: {argument} must be one of {', '.join(map(repr, allowed))}, "
                    f"got {value!r}. Choose one of these."
                )
        if (weighting, assignment) == ("average", "hard"):
            raise ValueError(
                'DepthAwarePool: weighting "average" must have assignment "soft", got "hard". No '
                "branch is larger than the others."
            )
        if weighting in ("true_depth", "predicted_depth") and bins.bins != len(dilations):
            raise ValueError(
                f"DepthAwarePool: bins must be as many as dilations, {len(dilations)}, got "
                f"{bins.bins}. Give thresholds for each dilation."
            )
        self.weighting, self.assignment = weighting, assignment
        self.bins = bins
        self.depth_branch = self.gate = None
        if weighting == "predicted_depth":
            self.depth_branch = depth_branch or DepthBranch(channels, len(dilations))
            given = self.depth_branch.classifier.out_channels
            check_branches("DepthAwarePool", "depth_branch", given, len(dilations))
        elif weighting == "attention":
            self.gate = gate or ScaleGate(channels, len(dilations))
            given = self.gate.classifier.out_channels
            check_branches("DepthAwarePool", "gate", given, len(dilations))

    def forward(
        self, input: Tensor, depth: Tensor | None = None, *, depth_features: Tensor | None = None
    ) -> DepthPooled:
        """Pools ``input`` (N, C, h, w).

        Args:
            depth: (N, 1, H, W), in the unit of ``bins``, at any resolution; for "true_depth". The
                default, ``NYUV2_M``, takes metres, as ``depth_m`` of ``perfconv.data``; ``NYUV2``
                takes millimetres, ``CITYSCAPES`` raw disparity.
            depth_features: (N, C', h, w), what the depth branch sees; default ``input``.

        Raises:
            ValueError: "true_depth" without a depth map.
        """
        if self.weighting == "true_depth":
            return self._with_true_depth(input, depth)
        if self.weighting == "average":
            maps = self.branches.maps(input)
            weights = input.new_full((input.size(0), len(maps), *input.shape[2:]), 1 / len(maps))
            return DepthPooled(torch.stack(maps).mean(0), weights, None, None)
        predicted = None
        if self.depth_branch is not None:
            predicted = self.depth_branch(input if depth_features is None else depth_features)
            logits = predicted.logits
        else:
            assert self.gate is not None
            logits = self.gate.logits(input)
        soft = logits.softmax(1)
        if self.assignment == "soft":
            return DepthPooled(weighted_sum(self.branches.maps(input), soft), soft, None, predicted)
        choice = logits.argmax(1, keepdim=True)
        if self.training and soft.requires_grad:
            hard = torch.zeros_like(soft).scatter(1, choice, 1.0) + (soft - soft.detach())
            features = weighted_sum(self.branches.maps(input, choice), hard)
        else:
            features = self._chosen(input, choice)
        return DepthPooled(features, None, choice, predicted)

    def _with_true_depth(self, input: Tensor, depth: Tensor | None) -> DepthPooled:
        if depth is None or depth.dim() != 4 or depth.shape[:2] != (input.size(0), 1):
            given = "none" if depth is None else tuple(depth.shape)
            raise ValueError(
                f"DepthAwarePool: true_depth needs a depth map ({input.size(0)}, 1, H, W), got "
                f'{given}. Give depth, or choose weighting="predicted_depth".'
            )
        index = self.bins.index(depth)
        if self.assignment == "hard":
            choice = hard_bins(index, input.shape[2:])
            return DepthPooled(self._chosen(input, choice), None, choice, None)
        weights = soft_bins(index, self.bins.bins, input.shape[2:]).to(input.dtype)
        return DepthPooled(weighted_sum(self.branches.maps(input), weights), weights, None, None)

    def _chosen(self, input: Tensor, choice: Tensor) -> Tensor:
        """One launch, unless BatchNorm statistics are taken over what each branch computes."""
        if self.branches.has_fixed_statistics():
            return self.branches.chosen(input, choice)
        hard = torch.zeros(
            (input.size(0), len(self.dilations), *input.shape[2:]),
            dtype=input.dtype,
            device=input.device,
        ).scatter(1, choice, 1.0)
        return weighted_sum(self.branches.maps(input, choice), hard)

    def extra_repr(self) -> str:
        return f"weighting={self.weighting!r}, assignment={self.assignment!r}"
