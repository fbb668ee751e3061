"""CellGate: one decision per cell of pixels, seen with its surroundings; SharedGate repeats it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perfconv.nn.gate import COMPUTE, BinaryGate, Gate, bias_of, start_open
from perfconv.nn.gate_record import GateRecord
from perfconv.ops.arguments import IntPair, int_pair


class CellGate(BinaryGate):
    """One decision per square cell of output pixels, from the cell and its eight neighbours.

    The input's mean over a cell, as asinh(mean), standardised over the channels, goes through a 1x1
    convolution, a leaky ReLU, and a 3x3 convolution to two logits. Active pixels then come in
    blobs: a convolution at the rim of the active region reads filled values, and blobs have little
    rim. ``context`` puts dilated 3x3 convolutions between, so that a decision sees farther than the
    neighbours; there are few cells, so that they cost little.

    Every ``anchor_stride``-th pixel of both directions is an anchor, active whatever is decided.
    With the fill "nearest" no value then comes from farther away than half of that, and a smooth
    region is computed at a lower resolution instead of being painted over from its border.

    Args:
        in_channels: of the input of the layer or block that is gated.
        cell: side of a cell, output pixels.
        stride: of the layer or block.
        hidden_channels: of the layers between.
        context: dilations, in cells, of 3x3 convolutions between, each with a leaky ReLU and added
            to what it reads.
        anchor_stride: output pixels; None for no anchors.
        density: in [0, 1]; in evaluation, the density of each image's mask, anchors included, as
            near as whole cells come to it: the cells with the highest logits are open, ties closed;
            anchors stay. None: the logits decide. Can be set later.
        init_std, init_bias: of the last layer, as for :class:`PixelGate`.
        temperature, forward_mode, generator: see :class:`BinaryGate`.

    Example:
        >>> gate = CellGate(8, cell=4, anchor_stride=4, init_bias=-2.0).eval()
        >>> decision = gate(torch.randn(1, 8, 10, 16))
        >>> decision.logits.shape, decision.mask.shape, int(decision.mask.sum())
        (torch.Size([1, 2, 3, 4]), torch.Size([1, 1, 10, 16]), 8)
    """

    def __init__(
        self,
        in_channels: int,
        *,
        cell: int,
        stride: IntPair = 1,
        hidden_channels: int = 16,
        context: Sequence[int] = (),
        anchor_stride: int | None = None,
        density: float | None = None,
        temperature: float = 1.0,
        forward_mode: str = "straight_through",
        generator: torch.Generator | None = None,
        init_std: float = 0.01,
        init_bias: float = 2.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(temperature=temperature, forward_mode=forward_mode, generator=generator)
        for name, value in (("cell", cell), ("anchor_stride", anchor_stride)):
            if value is not None and value < 1:
                raise ValueError(
                    f"CellGate: {name} must be 1 or more output pixels, got {value}. Give the side "
                    "of a cell, or None for no anchors."
                )
        if any(dilation < 1 for dilation in context):
            raise ValueError(
                f"CellGate: context must be dilations of 1 or more cells, got {tuple(context)}. "
                "Give () for the neighbours alone."
            )
        self.cell = cell
        self.stride = int_pair("CellGate", "stride", stride)
        self.anchor_stride = anchor_stride
        self.density = density
        self.hidden = nn.Conv2d(in_channels, hidden_channels, 1, device=device, dtype=dtype)
        self.context = nn.ModuleList(
            nn.Conv2d(
                hidden_channels, hidden_channels, 3, padding=dilation, dilation=dilation,
                device=device, dtype=dtype,
            )
            for dilation in context
        )  # fmt: skip
        self.classifier = nn.Conv2d(hidden_channels, 2, 3, padding=1, device=device, dtype=dtype)
        start_open(self.classifier, init_std, init_bias)

    @property
    def compute_bias(self) -> tuple[Tensor, int] | None:
        return bias_of(self.classifier)

    def forward(self, input: Tensor) -> Gate:
        """The decision for each cell of ``input`` (N, C_in, H, W), spread over the output grid."""
        window = (self.cell * self.stride[0], self.cell * self.stride[1])
        means = F.avg_pool2d(input, window, ceil_mode=True, count_include_pad=False)
        features = means.asinh()  # unbounded features, on a scale of magnitudes
        mean, variance = features.mean(1, keepdim=True), features.var(1, keepdim=True, correction=0)
        features = (features - mean) * torch.rsqrt(variance + 1e-6)
        features = F.leaky_relu(self.hidden(features), 0.1)  # (N, hidden_channels, h, w)
        for layer in self.context:
            features = features + F.leaky_relu(layer(features), 0.1)
        logits = self.classifier(features)  # (N, 2, h, w)
        has_density = self.density is not None and not self.training
        mask = self._best_cells(logits) if has_density and self._forced_density is None else None
        height, width = input.shape[2:]
        size = (-(-height // self.stride[0]), -(-width // self.stride[1]))
        return self.decide(logits, size, mask)

    def _best_cells(self, logits: Tensor) -> Tensor:
        """(N, 1, h, w), bool: as many cells of each image as the density asks for."""
        assert self.density is not None
        if not 0 <= self.density <= 1:
            raise ValueError(
                f"CellGate: density must be in [0, 1], got {self.density}. None leaves the "
                "decision to the logits."
            )
        odds = logits[:, COMPUTE:] - logits[:, :COMPUTE]  # (N, 1, h, w)
        cells = odds.shape[2:].numel()
        of_anchors = 0.0 if self.anchor_stride is None else self.anchor_stride**-2
        share = (self.density - of_anchors) / (1 - of_anchors) if of_anchors < 1 else 1.0
        closed = cells - round(max(share, 0.0) * cells)
        if closed == 0:
            return torch.ones_like(odds, dtype=torch.bool)
        best_closed = odds.flatten(1).kthvalue(closed, 1).values  # (N,)
        return odds > best_closed[:, None, None, None]

    def spread(self, decision: Tensor, size: Sequence[int]) -> Tensor:
        if self._forced_density is not None and decision.shape[2:] == tuple(size):
            return decision  # a forced mask, without anchors
        pixels = decision.repeat_interleave(self.cell, 2).repeat_interleave(self.cell, 3)
        pixels = pixels[:, :, : size[0], : size[1]]
        anchors = self.anchors(size)
        return pixels if anchors is None else pixels.masked_fill(anchors.to(pixels.device), 1)

    def anchors(self, size: Sequence[int]) -> Tensor | None:
        if self.anchor_stride is None:
            return None
        device = self.classifier.weight.device
        rows, columns = (
            torch.arange(length, device=device) % self.anchor_stride == self.anchor_stride // 2
            for length in size
        )
        return (rows[:, None] & columns)[None, None]  # (1, 1, H_out, W_out)


class _Latest(GateRecord):
    """Holds the last decision of a leader for one follower."""

    gate: Gate | None = None

    def add(self, name: str, gate: Gate, pixel_macs: int) -> None:
        self.gate = gate

    def __getstate__(self) -> dict:
        return {}  # a decision, with its graph, is neither copied nor saved


class SharedGate(BinaryGate):
    """Repeats what another gate decided earlier in the same pass; has no parameters.

    For layers in a row on one grid: an active pixel of the first is active in all of them.

    Args:
        leader: the gate to repeat; a part of the same model, whose layer runs before this one's.

    Example:
        >>> leader = CellGate(4, cell=2)
        >>> first = perfconv.nn.GatedConv2d(nn.Conv2d(4, 6, 3, padding=1), gate=leader)
        >>> second = perfconv.nn.GatedConv2d(nn.Conv2d(6, 6, 3, padding=1), gate=SharedGate(leader))
        >>> second(first(torch.rand(1, 4, 8, 8))).shape
        torch.Size([1, 6, 8, 8])
    """

    def __init__(self, leader: BinaryGate) -> None:
        super().__init__()
        self._leader = (leader,)  # in a tuple, which registers nothing
        self._heard = _Latest()
        leader._recorders = (*leader._recorders, (self._heard, type(leader).__name__))

    @property
    def is_learning(self) -> bool:
        return self._leader[0].is_learning

    def anchors(self, size: Sequence[int]) -> Tensor | None:
        return self._leader[0].anchors(size)

    def forward(self, input: Tensor) -> Gate:
        """The leader's last decision, which is handed out once.

        Raises:
            RuntimeError: the leader has decided nothing since the last call.
        """
        gate, self._heard.gate = self._heard.gate, None
        if gate is None:
            raise RuntimeError(
                "SharedGate: the leader must decide before each call, got none of its decisions. "
                "Share the gate of a layer that runs earlier in the same pass."
            )
        return self.tell(gate)
