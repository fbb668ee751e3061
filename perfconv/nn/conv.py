"""PerforatedConv2d, the drop-in layer, and prepack."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perfconv.nn.mask_state import MaskState
from perfconv.ops.arguments import IntPair
from perfconv.ops.conv import FILLS, perforated_conv2d
from perfconv.ops.conv_grad import output_size
from perfconv.ops.mask import ActivePixels
from perfconv.ops.pack import pack_weight

Model = TypeVar("Model", bound=nn.Module)


class PerforatedConv2d(nn.Conv2d):
    """``nn.Conv2d`` that can be computed at the active pixels of a mask only.

    The constructor, the parameters and the state dict are those of ``nn.Conv2d``; without a mask
    the layer is that convolution. An existing layer becomes perforated in place with
    ``layer.__class__ = PerforatedConv2d``.

    Args:
        fill: what inactive output pixels hold: "zero", "nearest" or "passthrough" (the input,
            which must then have the size of the output).
        mask_state: where ``forward`` finds its mask when none is given, or None.
        (all others): as in ``torch.nn.Conv2d``.

    Example:
        >>> layer = PerforatedConv2d(8, 8, 3, padding=1)
        >>> mask = torch.rand(1, 1, 16, 16) < 0.3
        >>> layer(torch.randn(1, 8, 16, 16), mask).shape
        torch.Size([1, 8, 16, 16])
    """

    # Class attributes, so that a layer whose __class__ was swapped has them too.
    fill: str = "zero"
    mask_state: MaskState | None = None
    _packed_weight: Tensor | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        fill: str = "zero",
        mask_state: MaskState | None = None,
    ) -> None:
        if fill not in FILLS:
            raise ValueError(
                f"PerforatedConv2d: fill must be one of {', '.join(map(repr, FILLS))}, got "
                f"{fill!r}. Choose one of these."
            )
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias,
            padding_mode, device, dtype,  # type: ignore[arg-type]
        )  # fmt: skip
        self.fill = fill
        self.mask_state = mask_state

    def forward(self, input: Tensor, mask: Tensor | ActivePixels | None = None) -> Tensor:
        """The convolution at active pixels, ``fill`` elsewhere.

        Args:
            input: (N, C_in, H, W) or (C_in, H, W).
            mask: (N or 1, 1, H_out, W_out), bool, or ActivePixels. None: the mask of
                ``mask_state`` for this output size; without one, the dense convolution.

        Returns:
            (N, C_out, H_out, W_out), or without N.

        Raises:
            TypeError, ValueError: as ``perfconv.perforated_conv2d``.
        """
        if mask is None and self.mask_state is not None:
            batch = input.size(0) if input.dim() == 4 else 1
            mask = self.mask_state.get(batch, *self.output_size(input.shape[-2:]))
        if mask is None:
            return super().forward(input)
        base = input if self.fill == "passthrough" else None
        padding: IntPair | str = self.padding
        if self.padding_mode != "zeros":
            input = F.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        return perforated_conv2d(
            input,
            self.weight,
            mask,
            self.bias,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            fill=self.fill,
            base=base,
            packed_weight=None if self.weight.requires_grad else self._packed_weight,
        )

    def output_size(self, size: Sequence[int]) -> list[int]:
        """[H_out, W_out] of an input of ``size`` (H, W), in pixels."""
        left, right, top, bottom = self._reversed_padding_repeated_twice
        return output_size(
            size, self.kernel_size, self.stride, [top, bottom, left, right], self.dilation
        )

    def train(self, mode: bool = True) -> "PerforatedConv2d":
        if mode:
            self._packed_weight = None
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self._packed_weight = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        state = dict(self.__dict__)
        state.pop("_packed_weight", None)  # holds for this machine only
        return state

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.fill == "zero" else f"{text}, fill={self.fill!r}"


def prepack(model: Model) -> Model:
    """Keeps packed weights in every perforated layer of an eval-mode model, for inference.

    The weights stop requiring gradients. A pack is dropped by ``train()``, ``to()`` and the like,
    and ignored once the weight differs from it: copying into a weight, loading a state dict or an
    optimiser step are all noticed, because every call compares 64 of its values. Single elements
    edited in place may be missed: call ``prepack`` again after such an edit.

    Args:
        model: any module in eval mode; changed in place.

    Returns:
        ``model``.

    Raises:
        ValueError: ``model`` is in training mode.
    """
    if model.training:
        raise ValueError(
            "prepack: the model must be in eval mode, got one in training mode. Call model.eval()."
        )
    for module in model.modules():
        if isinstance(module, PerforatedConv2d):
            module.weight.requires_grad_(False)
            module._packed_weight = pack_weight(module.weight, groups=module.groups)
    return model
