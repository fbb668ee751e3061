"""Residual blocks that compute their branch at the active pixels of a gate only.

With I the input, S the shortcut, G the gate's decision and F1, F2, F3 convolution + BatchNorm
(+ ReLU), the branch of a bottleneck is (Kong and Fowlkes 2019, equations of the PAG unit)

    X = F1(I);   Y = F2(X);   Z = G * F3(Y)                        F3 perforated, the default
                              Z = F3((1 - G) * X + G * Y)          perforate_f3=False
    O = ReLU(S + Z)

that of a basic block Z = G * F2(F1(I)). An inactive pixel of an identity block is its input. An
inverted residual block has the branch of a bottleneck, F2 being depthwise, perhaps without F1, and
no activation after the sum: O = I + Z. A squeeze-excite scales Y by a function of the mean of
(1 - G) * X + G * Y; X is then dense.
"""

import torch
from torch import Tensor, nn

from perfconv.nn.batch_norm import activate
from perfconv.nn.gate import BinaryGate
from perfconv.nn.gated_block import GatedBlock


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

    depths = (3,)

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
        masks: list | None,
    ) -> Tensor:
        if self.perforate_f3:
            return super()._dense(input, shortcut, mask, weight, masks)
        reduced, processed = self._dense_inner(input, self._without_f1(masks))
        weight = weight.to(reduced.dtype)
        return self._expanded((1 - weight) * reduced + weight * processed, shortcut)

    def _sparse(
        self,
        input: Tensor,
        shortcut: Tensor,
        mask: Tensor,
        hard: Tensor | None,
        masks: list,
        may_overwrite: bool,
    ) -> Tensor:
        if self.perforate_f3:
            return super()._sparse(input, shortcut, mask, hard, masks, may_overwrite)
        first, second, _ = self.stages
        reduced = self._perforated(first, input, None)
        mixed = self._perforated(second, reduced, masks[1], reduced)
        if hard is not None:
            with torch.no_grad():
                is_dense = self.gate_grad == "dense"
                processed = self._dense_stage(1, reduced, masks) if is_dense else mixed
                gain = processed - reduced
            mixed = mixed + (hard - hard.detach()).to(gain.dtype) * gain
        return self._expanded(mixed, shortcut)

    @property
    def perforated_stages(self) -> list[str]:
        return super().perforated_stages if self.perforate_f3 else ["conv2"]

    def needed_masks(self, mask: Tensor, input: Tensor) -> list[Tensor | None]:
        return super().needed_masks(mask, input) if self.perforate_f3 else [None, mask, None]

    def _without_f1(self, masks: list | None) -> list | None:
        """F1 is dense, and its statistics are those of all pixels; those of F2 are its mask's."""
        return None if masks is None else [None, *masks[1:]]

    def _expanded(self, mixed: Tensor, shortcut: Tensor) -> Tensor:
        """ReLU(S + F3(mixed)), densely."""
        if self.structure.squeeze is not None:
            mixed = self._scaled(mixed, mixed)
        branch = self._dense_stage(-1, mixed, None)
        return activate(shortcut.to(branch.dtype) + branch, self.sum_activation)

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

    depths = (2,)


class GatedInvertedResidual(GatedBlock):
    """An inverted residual block that computes its branch at the gate's active pixels.

    Expand 1x1, depthwise, project 1x1, or the last two alone, and the input added; no activation
    after the sum. See :class:`GatedBlock` for the arguments.

    Example:
        >>> plain = nn.Sequential(
        ...     nn.Conv2d(8, 48, 1), nn.BatchNorm2d(48), nn.ReLU6(),
        ...     nn.Conv2d(48, 48, 3, padding=1, groups=48), nn.BatchNorm2d(48), nn.ReLU6(),
        ...     nn.Conv2d(48, 8, 1), nn.BatchNorm2d(8),
        ... )
        >>> block, images = GatedInvertedResidual(plain).eval(), torch.randn(1, 8, 6, 6)
        >>> perfconv.force_gates(block, 0.0)
        >>> torch.equal(block(images), images)
        True
    """

    depths = (2, 3)
    sum_activation = None
