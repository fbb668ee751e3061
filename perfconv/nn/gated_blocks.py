"""Residual blocks that compute their branch at the active pixels of a gate only.

With I the input, S the shortcut, G the gate's decision and F1, F2, F3 convolution + BatchNorm
(+ ReLU), the branch of a bottleneck is (Kong and Fowlkes 2019, equations of the PAG unit)

    X = F1(I);   Y = F2(X);   Z = G * F3(Y)                        F3 perforated, the default
                              Z = F3((1 - G) * X + G * Y)          perforate_f3=False
    O = ReLU(S + Z)

and that of a basic block Z = G * F2(F1(I)). An inactive pixel of an identity block is its input.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perfconv.nn.batch_norm import active_batch_norm, folded
from perfconv.nn.block_structure import Stage
from perfconv.nn.gate import BinaryGate
from perfconv.nn.gated_block import GatedBlock, convolve


class GatedBottleneck(GatedBlock):
    """A bottleneck (1x1, 3x3, 1x1) that computes its branch at the gate's active pixels.

    See :class:`GatedBlock` for the other arguments and the module's head for the equations.

    Args:
        perforate_f3: True: the last 1x1 runs at active pixels only, and an inactive pixel of an
            identity block is its input. False, as in the released graph: F1 and F3 are dense, and
            F3 sees X where the gate is closed; the 3x3 must then have stride 1.

    Example:
        >>> plain = nn.ModuleDict({
        ...     "conv1": nn.Conv2d(16, 4, 1), "bn1": nn.BatchNorm2d(4),
        ...     "conv2": nn.Conv2d(4, 4, 3, padding=1), "bn2": nn.BatchNorm2d(4),
        ...     "conv3": nn.Conv2d(4, 16, 1), "bn3": nn.BatchNorm2d(16),
        ... })
        >>> block, images = GatedBottleneck(plain).eval(), torch.rand(1, 16, 8, 8)
        >>> perfconv.force_gates(block, 0.0)
        >>> torch.equal(block(images), images)
        True
    """

    stages = (Stage("conv1", "bn1"), Stage("conv2", "bn2"), Stage("conv3", "bn3"))

    def __init__(
        self,
        block: nn.Module,
        *,
        gate: BinaryGate | None = None,
        perforate_f3: bool = True,
        execution: str = "auto",
        gate_grad: str = "dense",
        batch_norm: str = "frozen",
    ) -> None:
        super().__init__(
            block, gate=gate, execution=execution, gate_grad=gate_grad, batch_norm=batch_norm
        )
        self.perforate_f3 = perforate_f3
        middle = self._conv(self.stages[1])
        if not perforate_f3 and (
            middle.stride != (1, 1) or middle.in_channels != middle.out_channels
        ):
            raise ValueError(
                "GatedBottleneck: perforate_f3=False mixes input and output of the 3x3, which must "
                f"have the same shape, got stride {middle.stride}, {middle.in_channels} to "
                f"{middle.out_channels} channels. Leave perforate_f3 out."
            )

    def _dense(
        self,
        input: Tensor,
        shortcut: Tensor,
        mask: Tensor,
        weight: Tensor,
        masks: list[Tensor] | None,
    ) -> Tensor:
        if self.perforate_f3:
            return super()._dense(input, shortcut, mask, weight, masks)
        reduced = self._reduced(input)
        weight = weight.to(reduced.dtype)
        mixed = (1 - weight) * reduced + weight * self._processed(reduced, mask)
        return self._expanded(mixed, shortcut)

    def _sparse(
        self,
        input: Tensor,
        shortcut: Tensor,
        mask: Tensor,
        hard: Tensor | None,
        masks: list[Tensor],
        may_overwrite: bool,
    ) -> Tensor:
        if self.perforate_f3:
            return super()._sparse(input, shortcut, mask, hard, masks, may_overwrite)
        reduced = self._reduced(input)
        conv, norm = self._conv(self.stages[1]), self._norm(self.stages[1])
        if norm.training:
            processed = self._perforated(self.stages[1], reduced, masks[1])
            mixed = torch.where(mask, processed, reduced)
        else:
            mixed = convolve(
                conv, reduced, masks[1], *folded(conv, norm), fill="passthrough",
                activation="relu", base=reduced,
            )  # fmt: skip
        if hard is not None:
            with torch.no_grad():
                is_dense = self.gate_grad == "dense"
                gain = (self._processed(reduced, mask) if is_dense else mixed) - reduced
            mixed = mixed + (hard - hard.detach()).to(gain.dtype) * gain
        return self._expanded(mixed, shortcut)

    @property
    def perforated_stages(self) -> list[str]:
        return super().perforated_stages if self.perforate_f3 else ["conv2"]

    def needed_masks(self, mask: Tensor, input: Tensor) -> list[Tensor | None]:
        return super().needed_masks(mask, input) if self.perforate_f3 else [None, mask, None]

    def _reduced(self, input: Tensor) -> Tensor:
        """X, densely."""
        conv, norm = self._conv(self.stages[0]), self._norm(self.stages[0])
        return F.relu(norm(conv(input)))

    def _processed(self, reduced: Tensor, mask: Tensor) -> Tensor:
        """Y, densely; statistics, if active, over the mask."""
        conv, norm = self._conv(self.stages[1]), self._norm(self.stages[1])
        return F.relu(active_batch_norm(norm, conv(reduced), mask))

    def _expanded(self, mixed: Tensor, shortcut: Tensor) -> Tensor:
        """ReLU(S + F3(mixed)), densely."""
        conv, norm = self._conv(self.stages[2]), self._norm(self.stages[2])
        return F.relu(shortcut + norm(conv(mixed)))

    def extra_repr(self) -> str:
        parts = [super().extra_repr()] if super().extra_repr() else []
        return ", ".join(parts if self.perforate_f3 else [*parts, "perforate_f3=False"])


class GatedBasicBlock(GatedBlock):
    """A basic block (3x3, 3x3) that computes its branch at the gate's active pixels.

    See :class:`GatedBlock` for the arguments. The first 3x3 runs on the halo of the second.

    Example:
        >>> plain = nn.ModuleDict({
        ...     "conv1": nn.Conv2d(8, 8, 3, padding=1), "bn1": nn.BatchNorm2d(8),
        ...     "conv2": nn.Conv2d(8, 8, 3, padding=1), "bn2": nn.BatchNorm2d(8),
        ... })
        >>> list(GatedBasicBlock(plain).state_dict())[-2:]
        ['gate.conv.weight', 'gate.conv.bias']
    """

    stages = (Stage("conv1", "bn1"), Stage("conv2", "bn2"))
