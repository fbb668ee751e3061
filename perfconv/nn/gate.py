"""Gates: modules that decide which pixels, or which images, a block computes."""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perfconv.nn.hooks import has_hooks
from perfconv.ops.arguments import IntPair, int_pair
from perfconv.ops.autograd import is_eager
from perfconv.ops.gate import gate_mask
from perfconv.ops.mask import ActivePixels, compact_mask

if TYPE_CHECKING:
    from perfconv.nn.gate_record import GateRecord

FORWARD_MODES = ("straight_through", "soft")
SKIP, COMPUTE = 0, 1  # the channels of the logits
CHECK_EVERY = 64  # training calls between two looks at the mean, each of which waits for the device
SATURATED = 1e-3  # a gate whose mean soft value is this close to 0 or 1 has hardly any gradient


class Gate(NamedTuple):
    """What a gate decided for one batch. H_out, W_out: the output grid of the block it gates."""

    logits: Tensor  # (N, 2, H_out, W_out) or (N, 2, 1, 1): skip, compute; without noise
    soft: Tensor  # (N, 1, H_out, W_out), P(compute); while training the relaxed noisy sample
    hard: Tensor  # (N, 1, H_out, W_out), 0 or 1, with the gradient of soft
    mask: Tensor  # (N, 1, H_out, W_out), bool, True = compute; hard as a bool


class NoisyGate(nn.Module):
    """What all gates have in common: Gumbel noise on logits while training, and its temperature.

    Attributes: those of :class:`BinaryGate` with these names.
    """

    def __init__(
        self, *, temperature: float, forward_mode: str, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        if forward_mode not in FORWARD_MODES:
            raise ValueError(
                f"{type(self).__name__}: forward_mode must be one of "
                f"{', '.join(map(repr, FORWARD_MODES))}, got {forward_mode!r}. Choose one of these."
            )
        self.temperature = temperature
        self.forward_mode = forward_mode
        self.generator = generator
        self._recorders: tuple[tuple[GateRecord, str], ...] = ()

    @property
    def temperature(self) -> float:
        return self._temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        if not value > 0:
            raise ValueError(
                f"{type(self).__name__}: temperature must be above 0, got {value}. End the "
                "schedule at a small positive number."
            )
        self._temperature = float(value)

    def noisy(self, logits: Tensor) -> Tensor:
        """Logits (N, K, ...) with Gumbel noise; their argmax is a sample of the softmax."""
        uniform = self._draw(logits, self.generator)
        if self.forward_mode == "soft":  # spec of the authors' layer, clamps included
            uniform = (uniform + 1e-5) / 1.001
            logits = ((logits.softmax(1) + 0.001) / 1.001).log()
        else:
            uniform = uniform.clamp(min=torch.finfo(uniform.dtype).tiny)
        return logits - torch.log(-torch.log(uniform))

    def _draw(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        """Uniform numbers in [0, 1), of the shape, dtype and device of ``like``."""
        if generator is not None and is_in_backward():
            raise RuntimeError(
                f"{type(self).__name__}: a checkpointed block is computed again, and the noise of "
                "an own generator cannot be drawn again, got a generator. Leave generator out "
                "and call torch.manual_seed."
            )
        return torch.rand(like.shape, generator=generator, dtype=like.dtype, device=like.device)


class BinaryGate(NoisyGate):
    """What gates have in common: from two logits per pixel or image to a decision.

    Training: Gumbel noise m, soft = softmax((logits + m) / temperature)[compute], and hard is the
    argmax of logits + m with the gradient of soft. Evaluation: no noise; soft = softmax(logits) and
    hard its argmax, ties to skip. A forced gate (``force_gates``) keeps logits and soft; hard and
    mask are what was asked for, without gradient.

    Attributes:
        temperature: of the relaxed sample, above 0; set it from a schedule.
        forward_mode: "straight_through", where blocks multiply by hard, or "soft", where they
            multiply by soft while training (the authors' code).
        generator: where the noise comes from; None is torch's global generator. Own generators
            work neither under ``torch.compile`` nor in a checkpointed block, which could not draw
            the same noise again: both raise.
        pixel_macs: MACs that one open pixel costs, set by the block that owns the gate.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        forward_mode: str = "straight_through",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(temperature=temperature, forward_mode=forward_mode, generator=generator)
        self.pixel_macs = 0
        self._forced_density: float | None = None
        self._forced_generator: torch.Generator | None = None
        self._training_calls = 0
        self._has_warned = False

    @property
    def is_relaxed(self) -> bool:
        """Whether blocks multiply by soft rather than by hard."""
        return self.training and self.forward_mode == "soft" and self._forced_density is None

    def active_pixels(self, input: Tensor) -> ActivePixels | None:
        """The decision alone, for callers that need no more of the :class:`Gate`.

        None where it cannot be had for less than the whole, or where somebody (a recorder, a hook)
        wants the whole: then call the gate.
        """
        return None

    def decision_weights(self, stride: tuple[int, int]) -> tuple[Tensor, Tensor | None] | None:
        """Weight and bias of the 1x1 convolution that alone makes the decision of this call.

        None where the decision comes about in another way, not at every ``stride``-th pixel, or
        somebody wants to see it.
        """
        return None

    @property
    def is_learning(self) -> bool:
        """Whether it is trained, so that its layer must give it a gradient."""
        return self.training and any(p.requires_grad for p in self.parameters())

    def decide(self, logits: Tensor, size: Sequence[int], mask: Tensor | None = None) -> Gate:
        """The decision for an output grid of ``size`` (H_out, W_out), told to every recorder.

        Args:
            logits: (N, 2, H_out, W_out), or (N, 2, 1, 1) for one decision per image.
            mask: what was decided in evaluation; None: the argmax of the logits.
        """
        values = logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
        if self._forced_density is not None:
            soft = _compute_share(values)
            hard = mask = self._forced_mask(soft, size)
        elif self.training:
            noisy = self.noisy(values)
            soft = _compute_share(noisy / self.temperature)
            mask = _is_open(noisy)
            hard = mask + (soft - soft.detach())  # exactly 0 or 1: the bracket is 0
            self._warn_if_saturated(soft)
        else:
            soft = _compute_share(values)
            mask = _is_open(values) if mask is None else mask
            hard = mask + (soft - soft.detach())
        gate = Gate(
            logits,
            self.spread(soft.to(logits.dtype), size),
            self.spread(hard.to(logits.dtype), size),
            self.spread(mask, size),
        )
        return self.tell(gate)

    def spread(self, decision: Tensor, size: Sequence[int]) -> Tensor:
        """A value per decision, (N, 1, h, w), on the output grid of ``size`` (H_out, W_out)."""
        return decision.expand(decision.size(0), 1, *size)

    def tell(self, gate: Gate) -> Gate:
        """Hands ``gate`` to every recorder."""
        for recorder, name in self._recorders:
            recorder.add(name, gate, self.pixel_macs)
        return gate

    @property
    def compute_bias(self) -> tuple[Tensor, int] | None:
        """The bias of the logit "compute": a parameter and a position in it; None without one."""
        return None

    def anchors(self, size: Sequence[int]) -> Tensor | None:
        """(1, 1, H_out, W_out), bool: output pixels that are open whatever it decides."""
        return None

    def _forced_mask(self, soft: Tensor, size: Sequence[int]) -> Tensor:
        density = self._forced_density
        assert density is not None
        if density in (0.0, 1.0):
            return torch.full(
                (soft.size(0), 1, *size), density == 1, dtype=torch.bool, device=soft.device
            )
        return self._draw(soft, self._forced_generator) < density

    def _warn_if_saturated(self, soft: Tensor) -> None:
        """One warning in the life of a gate; reads a mean on every 64th training call."""
        if self._has_warned or torch.compiler.is_compiling() or not _holds_numbers(soft):
            return
        self._training_calls += 1
        if self._training_calls % CHECK_EVERY != 1:
            return
        mean = soft.detach().mean().item()
        if soft.numel() == 0 or SATURATED <= mean <= 1 - SATURATED:
            return
        self._has_warned = True
        name = self._recorders[-1][1] if self._recorders else type(self).__name__
        warnings.warn(
            f"{name}: the gate is saturated, its mean P(compute) is {mean:.5f}: it will hardly "
            "learn any more. Lower the learning rate of the gates, raise the temperature, or "
            "increase the weight of the density loss.",
            stacklevel=2,
        )

    def extra_repr(self) -> str:
        parts = []
        if self.temperature != 1:
            parts.append(f"temperature={self.temperature:g}")
        if self.forward_mode != "straight_through":
            parts.append(f"forward_mode={self.forward_mode!r}")
        if self._forced_density is not None:
            parts.append(f"forced_density={self._forced_density:g}")
        return ", ".join(parts)


class PixelGate(BinaryGate):
    """One decision per output pixel: a 1x1 convolution of the block's input to two logits.

    Args:
        in_channels: of the input of the block that is gated.
        stride: of the block, so that the decision lies on its output grid.
        init_std: of the weights. The default starts near "compute everything"; the authors'
            release has ``init_std=1, init_bias=0``. With 0 a new gate is open for any input.
        init_bias: of the logit "compute".
        temperature, forward_mode, generator: see :class:`BinaryGate`.

    Source: Kong and Fowlkes 2019, pixel-wise attentional gating; departs from the released code in
        the straight-through default and the initial values.
    Example:
        >>> gate = PixelGate(8).eval()(torch.randn(1, 8, 6, 6))
        >>> gate.mask.shape, gate.mask.dtype, bool(gate.mask.all())
        (torch.Size([1, 1, 6, 6]), torch.bool, True)
    """

    def __init__(
        self,
        in_channels: int,
        *,
        stride: IntPair = 1,
        temperature: float = 1.0,
        forward_mode: str = "straight_through",
        generator: torch.Generator | None = None,
        init_std: float = 0.01,
        init_bias: float = 2.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(temperature=temperature, forward_mode=forward_mode, generator=generator)
        vertical, horizontal = int_pair("PixelGate", "stride", stride)
        self.conv = nn.Conv2d(
            in_channels, 2, 1, stride=(vertical, horizontal), device=device, dtype=dtype
        )
        start_open(self.conv, init_std, init_bias)

    @property
    def compute_bias(self) -> tuple[Tensor, int] | None:
        return bias_of(self.conv)

    def forward(self, input: Tensor) -> Gate:
        """The decision for each output pixel of ``input`` (N, C_in, H, W).

        Returns:
            A :class:`Gate` on the grid (ceil(H / stride), ceil(W / stride)).
        """
        logits = self.conv(input)
        size = logits.shape[2:]
        if self.training or self._forced_density is not None or not self._has_fused_decision():
            return self.decide(logits, size)
        return self.decide(logits, size, self._fused_decision(input).mask)

    def active_pixels(self, input: Tensor) -> ActivePixels | None:
        """The decision of evaluation, without logits: one operator, one read of ``input``.

        The same bits as the mask of ``forward``, which takes its decision from that operator too.
        """
        if self.training or self._recorders or has_hooks(self) or not self._has_fused_decision():
            return None
        if self._forced_density is None:
            return self._fused_decision(input)
        size = [
            (length - 1) // step + 1
            for length, step in zip(input.shape[2:], self.conv.stride, strict=True)
        ]
        wide = torch.promote_types(input.dtype, torch.float32)
        soft = input.new_empty((input.size(0), 1, *size), dtype=wide)
        return compact_mask(self._forced_mask(soft, size))

    def decision_weights(self, stride: tuple[int, int]) -> tuple[Tensor, Tensor | None] | None:
        conv: nn.Conv2d = self._modules["conv"]  # type: ignore[assignment]  # a frame less (K-028)
        if (
            self.training
            or self._recorders
            or self._forced_density is not None
            or conv.stride != stride
            or type(self)._fused_decision is not PixelGate._fused_decision
            or has_hooks(self)
            or not self._is_plain()
        ):
            return None
        return conv._parameters["weight"], conv._parameters["bias"]  # type: ignore[return-value]

    def _has_fused_decision(self) -> bool:
        """Whether ``gate_mask`` makes the decision."""
        return self._is_plain() and (torch.compiler.is_compiling() or is_eager())

    def _is_plain(self) -> bool:
        """Whether nothing but the plain 1x1 convolution and the argmax makes the decision."""
        conv = self._modules["conv"]
        return (
            type(self).forward is PixelGate.forward
            and type(self).decide is BinaryGate.decide
            and type(conv) is nn.Conv2d
            and (conv.kernel_size, conv.padding, conv.out_channels) == ((1, 1), (0, 0), 2)
            and not has_hooks(conv)
        )

    def _fused_decision(self, input: Tensor) -> ActivePixels:
        vertical, horizontal = self.conv.stride
        if (vertical, horizontal) != (1, 1):
            input = input[:, :, ::vertical, ::horizontal]
        with torch.no_grad():
            active, _ = gate_mask(input, self.conv.weight, self.conv.bias)
        return active


class LayerGate(BinaryGate):
    """One decision per image: global average, a small hidden layer, two logits.

    The baseline that skips whole layers. The decision is spread over the output grid, so that a
    block takes this gate as it takes a :class:`PixelGate`. Train it under the density loss's form
    "budget": the others, which have a target for each layer and image, leave it undecided.

    Args:
        in_channels: of the input of the block that is gated.
        stride: of the block.
        hidden_channels: of the layer between.
        init_std, init_bias: of the last layer, as for :class:`PixelGate`.
        temperature, forward_mode, generator: see :class:`BinaryGate`.

    Example:
        >>> gate = LayerGate(8, stride=2).eval()(torch.randn(3, 8, 7, 7))
        >>> gate.logits.shape, gate.mask.shape
        (torch.Size([3, 2, 1, 1]), torch.Size([3, 1, 4, 4]))
    """

    def __init__(
        self,
        in_channels: int,
        *,
        stride: IntPair = 1,
        hidden_channels: int = 16,
        temperature: float = 1.0,
        forward_mode: str = "straight_through",
        generator: torch.Generator | None = None,
        init_std: float = 0.01,
        init_bias: float = 2.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(temperature=temperature, forward_mode=forward_mode, generator=generator)
        self.stride = int_pair("LayerGate", "stride", stride)
        self.hidden = nn.Linear(in_channels, hidden_channels, device=device, dtype=dtype)
        self.classifier = nn.Linear(hidden_channels, 2, device=device, dtype=dtype)
        start_open(self.classifier, init_std, init_bias)

    @property
    def compute_bias(self) -> tuple[Tensor, int] | None:
        return bias_of(self.classifier)

    def forward(self, input: Tensor) -> Gate:
        """The decision for each image of ``input`` (N, C_in, H, W), on its output grid."""
        pooled = input.mean((2, 3))  # (N, C_in)
        logits = self.classifier(F.relu(self.hidden(pooled)))[:, :, None, None]  # (N, 2, 1, 1)
        height, width = input.shape[2:]
        size = (-(-height // self.stride[0]), -(-width // self.stride[1]))
        return self.decide(logits, size)


def is_in_backward() -> bool:
    """Whether a backward pass is running: what is computed now is a checkpoint's second time."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def start_open(layer: nn.Conv2d | nn.Linear, std: float, bias: float) -> None:
    nn.init.normal_(layer.weight, std=std)
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias[SKIP], layer.bias[COMPUTE] = 0, bias


def bias_of(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, int]:
    assert layer.bias is not None
    return layer.bias, COMPUTE


def _compute_share(logits: Tensor) -> Tensor:
    """(N, 1, ...): the softmax of the two logits at "compute"."""
    return logits.softmax(1)[:, COMPUTE:]


def _is_open(logits: Tensor) -> Tensor:
    return logits[:, COMPUTE:] > logits[:, :COMPUTE]


def _holds_numbers(value: Tensor) -> bool:
    """Not a fake or meta tensor, nor inside a transform of torch.func or the capture of a graph."""
    return (
        type(value) is Tensor
        and value.device.type != "meta"
        and not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())
        and not torch._C._functorch.is_functorch_wrapped_tensor(value)
    )
