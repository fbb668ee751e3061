"""GatedConv2d: a convolution of a plain network with a gate of its own."""

import torch
from torch import Tensor, nn

from perfconv.nn.conv import PerforatedConv2d
from perfconv.nn.gate import BinaryGate, PixelGate
from perfconv.nn.gated_block import GATE_GRADS
from perfconv.nn.hooks import as_leaf
from perfconv.ops.mask import ActivePixels, compact_mask


class GatedConv2d(PerforatedConv2d):
    """A convolution that computes the pixels its gate opens; the others take a value from nearby.

    Made from a plain convolution, whose parameters it shares; the state dict has its keys and
    ``gate.*``. Unless ``fill`` says otherwise, inactive pixels hold the input where input and
    output have one shape ("passthrough"), else the value of the nearest active pixel ("nearest").

    The convolution runs at active pixels only, in training too, and is exact for weight, bias and
    input. The gate's straight-through gradient at a pixel is (computed - filled value): what is
    computed at inactive pixels comes from one dense pass without gradients. Under "nearest" an
    active pixel's filled value is that of the gate's nearest anchor; without anchors it has none,
    and its gate no gradient from the output.

    Args:
        conv: an ``nn.Conv2d``.
        gate: of the input, on the output grid; default a new, open :class:`PixelGate`.
        gate_grad: "dense", as above; "active", without the dense pass, at active pixels alone;
            "none", only the density loss.
        fill: of inactive pixels, "nearest", "zero" or "passthrough"; None chooses as above.

    Example:
        >>> layer = GatedConv2d(nn.Conv2d(4, 4, 3, padding=1))
        >>> perfconv.force_gates(layer, 0.0)
        >>> images = torch.rand(1, 4, 6, 6)
        >>> layer.fill, torch.equal(layer(images), images)
        ('passthrough', True)
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        *,
        gate: BinaryGate | None = None,
        gate_grad: str = "dense",
        fill: str | None = None,
    ) -> None:
        if type(conv) not in (nn.Conv2d, PerforatedConv2d):
            raise TypeError(
                f"GatedConv2d: conv must be an nn.Conv2d, got {type(conv).__name__}. Leave other "
                "layers as they are."
            )
        if gate_grad not in GATE_GRADS:
            raise ValueError(
                f"GatedConv2d: gate_grad must be one of {', '.join(map(repr, GATE_GRADS))}, got "
                f"{gate_grad!r}. Choose one of these."
            )
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride,  # type: ignore[arg-type]
            conv.padding, conv.dilation, conv.groups, conv.bias is not None,  # type: ignore[arg-type]
            conv.padding_mode, "meta",
        )  # fmt: skip
        self.weight, self.bias = conv.weight, conv.bias
        has_same_channels = conv.in_channels == conv.out_channels
        keeps_size = self.stride == (1, 1) and self.output_size((99, 99)) == [99, 99]
        can_pass = has_same_channels and keeps_size
        if fill not in (None, "zero", "nearest", "passthrough") or (
            fill == "passthrough" and not can_pass
        ):
            raise ValueError(
                'GatedConv2d: fill must be "nearest", "zero", or, where input and output have one '
                f'shape, "passthrough", got {fill!r} for {conv.in_channels} to '
                f"{conv.out_channels} channels. None chooses."
            )
        self.fill = fill or ("passthrough" if can_pass else "nearest")
        self.gate_grad = gate_grad
        if gate is None:
            gate = PixelGate(
                conv.in_channels,
                stride=self.stride,
                init_std=0.0,
                device=conv.weight.device,
                dtype=conv.weight.dtype,
            )
        gate.pixel_macs = conv.weight.numel()
        self.gate = gate
        self._plain = (conv,)  # in a tuple, which registers nothing
        self.train(conv.training)

    def to_plain(self) -> nn.Module:
        """The convolution this one was made from, with the parameters this one has now."""
        (plain,) = self._plain
        plain.weight, plain.bias = self.weight, self.bias
        return plain.train(self.training)

    def forward(self, input: Tensor, mask: Tensor | ActivePixels | None = None) -> Tensor:
        """The convolution at active pixels, ``fill`` elsewhere.

        Args:
            input: (N, C_in, H, W).
            mask: in the place of the gate's, (N or 1, 1, H_out, W_out), bool, or ActivePixels.

        Raises:
            ValueError: the gate's mask is not on the output grid, or the gate is in "soft" mode.
        """
        if mask is not None:
            return super().forward(input, mask)
        if isinstance(input, torch.fx.Proxy):
            return as_leaf(self, input)
        active = None if self.training else self.gate.active_pixels(input)
        if active is not None:
            self._check(active.mask, input)
            return super().forward(input, active)
        gate = self.gate(input)
        self._check(gate.mask, input)
        if self.gate.is_relaxed:
            raise ValueError(
                'GatedConv2d: the gate must be in forward_mode "straight_through", got "soft". '
                "Only gated blocks mix every pixel."
            )
        output = super().forward(input, compact_mask(gate.mask))
        if not self.gate.is_learning or self.gate_grad == "none" or not gate.hard.requires_grad:
            return output
        with torch.no_grad():
            gain = self._gain(input, output, gate.mask)
        return output + (gate.hard - gate.hard.detach()).to(gain.dtype) * gain

    def _check(self, mask: Tensor, input: Tensor) -> None:
        size = self.output_size(input.shape[2:])
        if list(mask.shape[2:]) != size:
            raise ValueError(
                f"GatedConv2d: the gate's mask must be (N, 1, {size[0]}, {size[1]}) for this "
                f"input, got {tuple(mask.shape)}. A gate follows strides; the convolution's "
                "padding must keep the rest of the size."
            )

    def _gain(self, input: Tensor, output: Tensor, mask: Tensor) -> Tensor:
        """Computed minus filled value, 0 where one of them is not known."""
        filled = self._filled(input, output, mask)
        if self.gate_grad == "active":
            return torch.where(mask, output - filled, 0)
        return self._conv_forward(input, self.weight, self.bias) - filled

    def _filled(self, input: Tensor, output: Tensor, mask: Tensor) -> Tensor:
        """What each pixel holds while its gate is closed; of an active one, what is known of it."""
        if self.fill == "passthrough":
            return input
        if self.fill == "zero":
            return torch.zeros_like(output)
        anchors = self.gate.anchors(output.shape[2:])
        if anchors is None:
            return output
        return torch.where(mask, super().forward(input, anchors), output)
