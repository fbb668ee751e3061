"""PerforatedConv2d, the drop-in layer, and prepack."""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar, runtime_checkable

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


@runtime_checkable
class KeepsPack(Protocol):
    """A layer whose weight ``prepack`` packs."""

    weight: nn.Parameter
    _parameters: dict

    def keep_pack(self) -> None: ...


class PerforatedConv2d(nn.Conv2d):
    """``nn.Conv2d`` that can be computed at the active pixels of a mask only.

    The constructor, the parameters and the state dict are those of ``nn.Conv2d``; without a mask
    the layer is that convolution. An existing layer becomes perforated in place with
    ``layer.__class__ = PerforatedConv2d``.

    Args:
        fill: what inactive output pixels hold: "zero", "nearest", "passthrough" (the input,
            which must then have the size of the output) or "none" (whatever the memory held).
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
    _packed_version: int | None = None  # of the weight that was packed

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
            packed_weight=self.current_pack(),
        )

    def keep_pack(self) -> None:
        """Packs the weight for all later calls; ``prepack`` calls this."""
        self.weight.requires_grad_(False)
        self._packed_version = version(self.weight)
        self._packed_weight = pack_weight(self.weight, groups=self.groups)

    def current_pack(self) -> Tensor | None:
        """The kept pack, unless a gradient is wanted or the weight was edited in place since."""
        if self._packed_weight is None or self.weight.requires_grad:
            return None
        if not torch.compiler.is_compiling() and version(self.weight) != self._packed_version:
            return None
        return self._packed_weight

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
    and ignored once the weight has changed: autograd counts edits in place, loading a state dict
    among them; for those it does not see (``.data``, numpy, fused optimisers) every call compares
    64 values. Such an edit may be missed if it leaves most values as they were: call ``prepack``
    again after it. A compiled module compares the values only. So does a CUDA graph, which also
    reads its pack where it lay when it was captured: capture anew after ``prepack``, ``train()``,
    ``to()`` and after edits of the weights.

    Args:
        model: any module in eval mode; changed in place.

    Returns:
        ``model``.

    Raises:
        ValueError: ``model`` is in training mode, or a weight is computed from other parameters
            (a parametrization, pruning).
    """
    if model.training:
        raise ValueError(
            "prepack: the model must be in eval mode, got one in training mode. Call model.eval()."
        )
    layers = {
        name: module for name, module in model.named_modules() if isinstance(module, KeepsPack)
    }
    for name, layer in layers.items():
        if "weight" not in layer._parameters:
            raise ValueError(
                "prepack: each weight must be a parameter of its layer, got one that is computed "
                f"in layer {name!r}. Make it permanent: torch.nn.utils.parametrize."
                "remove_parametrizations, or torch.nn.utils.prune.remove."
            )
    for layer in layers.values():
        layer.keep_pack()
    return model


def version(weight: Tensor) -> int | None:
    """Autograd's count of the edits of ``weight``; None in an inference tensor, which has none."""
    return None if weight.is_inference() else weight._version
