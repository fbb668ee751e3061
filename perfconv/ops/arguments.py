"""Arguments as users write them to arguments as the native operators take them.

Types and dtypes are checked here (TypeError); shapes, ranges and devices are checked once, in the
native operators (csrc/core/checks.h, ValueError).
"""

import operator
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

IntPair = int | Sequence[int]  # one number for both sides, or (h, w)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def int_pair(op: str, name: str, value: IntPair) -> list[int]:
    """``value`` as [h, w]; an int stands for both."""
    if type(value) is int and abs(value) < 2**63:  # the usual cases, in every call
        return [value, value]
    if isinstance(value, tuple | list) and len(value) == 2:
        first, second = value
        if type(first) is type(second) is int and max(abs(first), abs(second)) < 2**63:
            return [first, second]
    sides: list = [*value] if isinstance(value, tuple | list) else [value]
    if len(sides) not in (1, 2) or not all(is_int(side) for side in sides):
        raise TypeError(
            f"{op}: {name} must be an int or two ints (h, w), got {value!r}. "
            "Give whole numbers, height first."
        )
    sides = [side if isinstance(side, torch.SymInt) else operator.index(side) for side in sides]
    if any(isinstance(side, int) and abs(side) >= 2**63 for side in sides):
        raise ValueError(f"{op}: {name} must fit into 64 bits, got {value!r}. Give it in pixels.")
    return [sides[0], sides[-1]]


def is_int(value: object) -> bool:
    """An integer, known (of numpy too) or symbolic; True and False are none."""
    if type(value) is int:  # the usual case
        return True
    return isinstance(value, Integral | torch.SymInt) and not isinstance(value, bool)


def check_int(op: str, name: str, value: int) -> None:
    """An integer."""
    if not is_int(value):
        raise TypeError(
            f"{op}: {name} must be an int, got {type(value).__name__}. Give a whole number."
        )


def four_sided_padding(
    op: str,
    padding: IntPair | str,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
) -> list[int]:
    """Padding as [top, bottom, left, right]; "same" puts an odd rest at the bottom and right."""
    if not isinstance(padding, str):
        vertical, horizontal = int_pair(op, "padding", padding)
        return [vertical, vertical, horizontal, horizontal]
    if padding == "valid":
        return [0, 0, 0, 0]
    if padding != "same":
        raise ValueError(
            f'{op}: padding must be an int, two ints (h, w), "same" or "valid", got {padding!r}. '
            "Give it in pixels, or one of these words."
        )
    if tuple(stride) != (1, 1):
        raise ValueError(
            f'{op}: padding="same" needs stride 1, got stride {tuple(stride)}. '
            "Give the padding as numbers."
        )
    sides = []
    for size, spacing in zip(kernel_size, dilation, strict=True):
        total = spacing * (size - 1)
        sides += [total // 2, total - total // 2]
    return sides


def check_tensor(op: str, name: str, value: Tensor) -> None:
    """A floating-point tensor of a supported dtype."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{op}: {name} must be a Tensor, got {type(value).__name__}. "
            "Convert it with torch.as_tensor."
        )
    if value.layout != torch.strided:
        raise TypeError(
            f"{op}: {name} must be a dense (strided) Tensor, got {value.layout}. "
            f"Convert it with {name}.to_dense()."
        )
    if value.dtype not in DTYPES:
        raise TypeError(
            f"{op}: {name} must be float32, float64, bfloat16 or float16, got {value.dtype}. "
            f"Convert it with {name}.float()."
        )


def are_alike(first: Tensor, *others: Tensor | None) -> bool:
    """Whether all are dense tensors of one supported dtype: one look for the usual call.

    Here and on the way to the operator, a Python frame less is a microsecond when caches are cold
    (KERNELS.md K-028).
    """
    if not isinstance(first, Tensor) or first.dtype not in DTYPES:
        return False
    dtype = first.dtype
    for value in others:
        if value is not None and not (
            isinstance(value, Tensor) and value.dtype is dtype and value.layout is torch.strided
        ):
            return False
    return first.layout is torch.strided


def check_same_dtype(op: str, name: str, value: Tensor | None, input: Tensor) -> None:
    """``value``, if there is one, has the dtype of ``input``."""
    if value is None:
        return
    check_tensor(op, name, value)
    if value.dtype != input.dtype:
        raise TypeError(
            f"{op}: {name} must have the dtype of input, {input.dtype}, got {value.dtype}. "
            f"Convert it with {name}.to(input.dtype), or use torch.autocast."
        )


def is_autocast(input: Tensor) -> bool:
    """Whether autocast is on for the device of ``input``."""
    device = input.device.type
    return device != "meta" and torch.is_autocast_enabled(device)


def autocast(input: Tensor, *others: Tensor | None) -> list:
    """The tensors in the autocast dtype, if autocast is on for the device of ``input``.

    float64 is left alone, as torch does.
    """
    values = [input, *others]
    if not is_autocast(input):
        return values
    dtype = torch.get_autocast_dtype(input.device.type)
    return [
        value if value is None or value.dtype == torch.float64 else value.to(dtype)
        for value in values
    ]


def check_bool_mask(op: str, mask: Tensor) -> None:
    """A bool tensor."""
    if not isinstance(mask, Tensor):
        raise TypeError(
            f"{op}: mask must be a bool Tensor or ActivePixels, got {type(mask).__name__}. "
            "Make one by comparing, such as scores > 0."
        )
    if mask.layout != torch.strided:
        raise TypeError(
            f"{op}: mask must be a dense (strided) Tensor, got {mask.layout}. "
            "Convert it with mask.to_dense()."
        )
    if mask.dtype != torch.bool:
        raise TypeError(
            f"{op}: mask must be bool (True = compute), got {mask.dtype}. "
            "Convert it with mask > 0; a soft mask multiplies the result instead."
        )


def check_mask_image(op: str, mask: Tensor) -> None:
    """A bool tensor (N, 1, H, W)."""
    check_bool_mask(op, mask)
    if mask.dim() != 4 or mask.size(1) != 1:
        raise ValueError(
            f"{op}: mask must be (N, 1, H, W), got {tuple(mask.shape)}. "
            "Give it one channel, as in mask[:, None]."
        )


def check_one_device(op: str, name: str, first: Tensor, **others: Tensor | None) -> None:
    """The others are on the device of ``first``, called ``name``.

    For the fake kernels: a call that mixes in a meta tensor arrives there.
    """
    for other, value in others.items():
        if value is not None and value.device != first.device:
            raise ValueError(
                f"{op}: {other} must be on the device of {name}, {first.device}, got "
                f"{value.device}. Move it with {other}.to({name}.device)."
            )


def check_own_memory(op: str, name: str, value: Tensor) -> None:
    """Each element has a place of its own, so that it can be written."""
    if 0 in value.stride() and any(
        step == 0 and size > 1 for step, size in zip(value.stride(), value.shape, strict=True)
    ):
        raise ValueError(
            f"{op}: {name} must have memory for each of its elements, got an expanded one with "
            f"strides {tuple(value.stride())}. Give it a copy: {name}.contiguous()."
        )


def is_channels_last(image: Tensor) -> bool:
    """The library's layout rule (csrc/cpu/images.h): the output follows the input."""
    return not image.is_contiguous() and image.size(1) > 1 and image.stride(1) == 1


def memory_format(channels_last: bool) -> torch.memory_format:
    """The torch name of a layout."""
    return torch.channels_last if channels_last else torch.contiguous_format
