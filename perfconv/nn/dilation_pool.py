"""MultiDilationPool: a 3x3 convolution whose receptive field is chosen for each pixel."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from perfconv.nn.dilation_branches import (
    INACTIVE,
    BranchPool,
    DilationBranches,
    check_branches,
)
from perfconv.nn.gated_block import EXECUTIONS
from perfconv.nn.scale_gate import ScaleChoice, ScaleGate

POOL_WEIGHTINGS = ("pag", "attention", "average")


class MultiDilationPool(BranchPool):
    """The sum over dilations of a_k * B_k, B_k = ReLU(BN(conv3x3 of dilation d_k)), B_0 the input.

    ``weighting`` says what the a_k are: "pag", one-hot per pixel, chosen by a :class:`ScaleGate`;
    "attention", the softmax of the same gate without noise; "average", 1 / K.

    "pag" has **two executions with the same numbers**. "sparse" is one launch of
    ``multi_dilation_conv2d``, the cost of one dense 3x3. "dense" computes every branch and
    multiplies by the gate's one-hot: the straight-through gradient needs the branches that were not
    chosen. "auto" is dense while the gate learns or BatchNorm statistics do, and sparse otherwise.

    Args:
        channels: of input and output.
        dilations: all different; 0 copies the input.
        weighting: "pag", "attention" or "average".
        tied: one kernel and one BatchNorm for all dilations, instead of one each.
        gate: of the input; default a new ``ScaleGate``. None for "average".
        execution: "auto", "dense" or "sparse", of "pag"; sparse training of the gate computes the
            branches densely once more, without gradients.
        batch_norm: "frozen", statistics of evaluation always, affine parameters trained; or
            "active", training statistics, of "pag" over the pixels that chose the branch. The
            gate's own BatchNorms are ordinary ones.

    Source: Kong and Fowlkes 2019, MultiPool and its gate; departs from the released code in an
        explicit branch for dilation 1 and the straight-through default.
    Example:
        >>> pool = MultiDilationPool(8, (0, 1, 2)).eval()
        >>> pool(torch.rand(1, 8, 6, 6)).shape
        torch.Size([1, 8, 6, 6])
    """

    def __init__(
        self,
        channels: int,
        dilations: Sequence[int] = (0, 1, 2, 4, 6, 8, 10),
        weighting: str = "pag",
        tied: bool = False,
        *,
        gate: ScaleGate | None = None,
        execution: str = "auto",
        batch_norm: str = "frozen",
    ) -> None:
        super().__init__(DilationBranches(channels, dilations, tied=tied), batch_norm)
        for argument, value, allowed in (
            ("weighting", weighting, POOL_WEIGHTINGS),
            ("execution", execution, EXECUTIONS),
        ):
            if value not in allowed:
                raise ValueError(
                    f"MultiDilationPool: {argument} must be one of "
                    f"{', '.join(map(repr, allowed))}, got {value!r}. Choose one of these."
                )
        self.weighting = weighting
        self.execution = execution
        has_gate = weighting != "average"
        self.gate = gate or ScaleGate(channels, len(dilations)) if has_gate else None
        if self.gate is not None:
            given = self.gate.classifier.out_channels
            check_branches("MultiDilationPool", "gate", given, len(dilations))

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        norm: nn.Module | None = None,
        dilations: Sequence[int] = (0, 1, 2, 4, 6, 8, 10),
        weighting: str = "pag",
        tied: bool = False,
        *,
        gate: ScaleGate | None = None,
        execution: str = "auto",
        batch_norm: str = "frozen",
    ) -> "MultiDilationPool":
        """A pool whose branches all start at a pretrained ``conv`` and its BatchNorm ``norm``.

        Raises:
            ValueError: ``conv`` is not a 3x3 of stride 1 with as many channels out as in.
        """
        is_plain = (conv.kernel_size, conv.stride, conv.groups) == ((3, 3), (1, 1), 1)
        if not is_plain or conv.in_channels != conv.out_channels:
            raise ValueError(
                "MultiDilationPool: the convolution must be a 3x3 of stride 1 with C_in = C_out, "
                f"got {conv}. Choose the middle one of a bottleneck."
            )
        pool = cls(
            conv.in_channels, dilations, weighting, tied,
            gate=gate, execution=execution, batch_norm=batch_norm,
        )  # fmt: skip
        assert isinstance(pool.branches, DilationBranches)
        pool.to(conv.weight.device, conv.weight.dtype)
        pool.branches.copy_from(conv, norm)
        pool.train(conv.training)
        return pool

    def forward(self, input: Tensor, mask: Tensor | None = None) -> Tensor:
        """The pooled features of ``input`` (N, C, H, W), the same shape.

        Args:
            mask: (N or 1, 1, H, W), bool, True = compute; inactive pixels hold the input. The one
                launch of "pag" skips them; whatever computes all branches computes them too. None:
                all are active.
        """
        if mask is not None and not self._is_one_launch():
            return torch.where(mask, self(input), input)
        if self.gate is None:
            maps = self.branches.maps(input)
            return torch.stack(maps).mean(0)
        if self.weighting == "attention":
            return weighted_sum(self.branches.maps(input), self.gate.logits(input).softmax(1))
        chosen = self.gate(input)
        if mask is not None:
            return self.branches.chosen(input, torch.where(mask, chosen.choice, INACTIVE))
        if self.gate.is_relaxed:
            return weighted_sum(self.branches.maps(input), chosen.soft)
        learns = self.training and chosen.hard.requires_grad
        learns = learns and any(p.requires_grad for p in self.gate.parameters())
        hard = chosen.hard if learns else chosen.hard.detach()
        is_foldable = self.branches.has_fixed_statistics()
        wants_dense = self.execution == "dense" or (self.execution == "auto" and learns)
        if wants_dense or not is_foldable:
            return weighted_sum(self.branches.maps(input, chosen.choice), hard)
        output = self.branches.chosen(input, chosen.choice)
        return self._with_gate_gradient(output, input, chosen) if learns else output

    def _is_one_launch(self) -> bool:
        """Whether "pag" computes the branch that each pixel chose and no other."""
        if self.weighting != "pag" or self.execution == "dense" or self.training:
            return False
        return self.branches.has_fixed_statistics()

    def _with_gate_gradient(self, output: Tensor, input: Tensor, chosen: ScaleChoice) -> Tensor:
        """``output`` itself; its gradient reaches the gate as it does in dense execution."""
        with torch.no_grad():
            maps = self.branches.maps(input)
        return output + weighted_sum(maps, chosen.hard - chosen.hard.detach())

    def extra_repr(self) -> str:
        text = f"weighting={self.weighting!r}"
        return text if self.execution == "auto" else f"{text}, execution={self.execution!r}"


def weighted_sum(maps: list[Tensor], weights: Tensor) -> Tensor:
    """(N, C, H, W): the sum of K maps, each times its channel of ``weights`` (N, K, H, W)."""
    total = maps[0] * weights[:, :1].to(maps[0].dtype)
    for index in range(1, len(maps)):
        total = total + maps[index] * weights[:, index : index + 1].to(maps[index].dtype)
    return total
