"""GatedPoolBottleneck: a bottleneck whose middle is a pool over dilations, at a gate's pixels."""

from typing import cast

import torch
from torch import Tensor, nn

from perfconv.nn.batch_norm import activate, folded, freeze_statistics, normalized
from perfconv.nn.conv import PerforatedConv2d
from perfconv.nn.dilation_pool import MultiDilationPool
from perfconv.nn.gate import BinaryGate, PixelGate
from perfconv.nn.in_place import InPlaceBlock, added, is_inference
from perfconv.nn.stage_conv import as_bool, pack_of
from perfconv.ops.conv import perforated_conv2d
from perfconv.ops.conv_into import perforated_conv2d_into
from perfconv.ops.mask import ActivePixels


class GatedPoolBottleneck(InPlaceBlock):
    """The gate of a :class:`GatedBottleneck` on the block that holds a :class:`MultiDilationPool`.

    With I the input, G the gate's decision, P the pool with its BatchNorms and ReLUs:

        X = F1(I);   O = ReLU(I + G * F3(P(X)))                perforate_f3=True, the default
                     O = ReLU(I + F3((1 - G) * X + G * P(X)))  perforate_f3=False

    F1 is dense always: the gate of the pool reads X around every pixel, and the largest dilation
    nearly all of it. Where the gate learns every pixel of the branch is computed, for its exact
    straight-through gradient; otherwise P and F3 touch active pixels only. An inactive pixel of
    the first form is its input. BatchNorm statistics are those of evaluation always, affine
    parameters are trained.

    Args:
        block: a bottleneck without a projection whose ``conv2`` is the pool; its layers are taken
            over under their names, so that old state-dict keys stay.
        gate: of the block's input; default a new, open :class:`PixelGate`.
        perforate_f3: see above.

    Source: Kong and Fowlkes 2019; their released network leaves this block without a gate.
    """

    conv_norm_pairs = (("conv1", "bn1"), ("conv3", "bn3"))  # for fuse

    def __init__(
        self, block: nn.Module, *, gate: BinaryGate | None = None, perforate_f3: bool = True
    ) -> None:
        super().__init__()
        pool: object = getattr(block, "conv2", None)
        has_projection = getattr(block, "downsample", None) is not None
        if not isinstance(pool, MultiDilationPool) or has_projection:
            raise ValueError(
                "GatedPoolBottleneck: the block must be a bottleneck without a projection whose "
                f"conv2 is a MultiDilationPool, got a {type(block).__name__} with "
                f"{type(pool).__name__}. Use GatedBottleneck for others."
            )
        self.conv1 = cast(nn.Conv2d, block.get_submodule("conv1"))
        self.bn1 = block.get_submodule("bn1")
        self.conv2 = pool
        self.conv3 = cast(nn.Conv2d, block.get_submodule("conv3"))
        self.bn3 = block.get_submodule("bn3")
        if gate is None:
            weight = self.conv1.weight
            gate = PixelGate(
                self.conv1.in_channels, init_std=0.0, device=weight.device, dtype=weight.dtype
            )
        self.gate = gate
        self.perforate_f3 = perforate_f3
        # One branch of the pool, and F3 where that is perforated.
        channels = self.conv3.in_channels
        gate.pixel_macs = 9 * channels**2 + (self.conv3.weight.numel() if perforate_f3 else 0)
        self.train(block.training)

    def forward(self, input: Tensor, *, owns_input: bool = False) -> Tensor:
        """(N, C, H, W), the shape of ``input``; ``owns_input`` as in :class:`InPlaceBlock`."""
        active: Tensor | ActivePixels | None = None
        if not self.training:
            active = self.gate.active_pixels(input)
        reduced = normalized(self.bn1, self.conv1(input), None, "relu")  # X, (N, C / 4, H, W)
        if active is None:
            gate = self.gate(input)
            if self.gate.is_relaxed or (self.gate.is_learning and gate.hard.requires_grad):
                weight = gate.soft if self.gate.is_relaxed else gate.hard
                return self._dense(input, reduced, gate.mask, weight.to(reduced.dtype))
            active = gate.mask
        pooled = self.conv2(reduced, as_bool(active))
        if not self.perforate_f3:
            return activate(added(input, self.bn3(self.conv3(pooled)), owns_input), "relu")
        weight, bias = folded(self.conv3, self.bn3)
        pack = pack_of(self.conv3, weight)
        may_overwrite = owns_input and not self.training and is_inference()
        if may_overwrite and input.dtype == pooled.dtype == weight.dtype:
            return perforated_conv2d_into(
                input,
                pooled,
                weight,
                active,
                bias,
                activation="relu",
                adds_base=True,
                packed_weight=pack,
            )
        return perforated_conv2d(
            pooled,
            weight,
            active,
            bias,
            fill="passthrough",
            base=input,
            residual=input,
            activation="relu",
            packed_weight=pack,
        )

    def _dense(self, input: Tensor, reduced: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
        """Every pixel of the branch, times ``weight`` (N, 1, H, W)."""
        pooled = self.conv2(reduced)
        if not self.perforate_f3:
            mixed = (1 - weight) * reduced + weight * pooled
            return activate(input + self.bn3(self.conv3(mixed)), "relu")
        summed = input + weight * self.bn3(self.conv3(pooled))
        if self.gate.is_relaxed:
            return activate(summed, "relu")
        return torch.where(mask, activate(summed, "relu"), summed)

    def fuse_branches(self) -> None:
        """``perfconv.fuse`` calls this: F3 becomes a layer whose weight is packed."""
        if type(self.conv3) is nn.Conv2d:
            self.conv3.__class__ = PerforatedConv2d

    def train(self, mode: bool = True) -> "GatedPoolBottleneck":
        """As ever, but BatchNorms of the block stay in evaluation mode; the pool's are its own."""
        super().train(mode)
        freeze_statistics(self.bn1)
        freeze_statistics(self.bn3)
        return self

    def extra_repr(self) -> str:
        return "" if self.perforate_f3 else "perforate_f3=False"
