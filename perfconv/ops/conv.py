"""perforated_conv2d: the convolution computed at the active pixels of a mask only."""

import torch
from torch import Tensor

from perfconv import _ext
from perfconv.ops.arguments import (
    IntPair,
    check_bool_mask,
    check_int,
    check_same_dtype,
    check_tensor,
    four_sided_padding,
    int_pair,
)
from perfconv.ops.conv_grad import differentiable_conv
from perfconv.ops.mask import ActivePixels

FILLS = ("zero", "nearest", "passthrough")
ACTIVATIONS = (None, "relu", "relu6", "silu", "hardswish")
ALGORITHMS = ("auto", "direct", "gather_gemm", "implicit_gemm", "dense")


def perforated_conv2d(
    input: Tensor,
    weight: Tensor,
    mask: Tensor | ActivePixels,
    bias: Tensor | None = None,
    *,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    fill: str = "zero",
    base: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None = None,
    activate_base: bool = False,
    expected_density: float | None = None,
    algorithm: str = "auto",
    packed_weight: Tensor | None = None,
) -> Tensor:
    """A 2-D convolution evaluated where ``mask`` is True.

    Active pixels hold ``activation(conv2d(input, weight, bias) + residual)``, exactly what the
    dense convolution holds there: the input is dense and every tap reads it, active or not.
    Inactive pixels hold what ``fill`` says: 0, the value of the nearest active pixel of the image
    (smallest squared distance, ties to the lowest flat index; 0 without any), or ``base``.

    Args:
        input: (N, C_in, H, W) or (C_in, H, W), float32 / float64 / bfloat16 / float16. Any memory
            format; channels_last needs no conversion.
        weight: (C_out, C_in / groups, K_h, K_w), dtype and device of ``input``.
        mask: (N or 1, 1, H_out, W_out), bool, True = compute, on the output grid; or the
            ActivePixels of one, made once for several layers. Not differentiable.
        bias: (C_out,) or None.
        stride, padding, dilation, groups: as in ``torch.nn.functional.conv2d``; pixels, (h, w).
        fill: "zero", "nearest" or "passthrough" (needs ``base``).
        base: (N, C_out, H_out, W_out), what inactive pixels hold under "passthrough".
        residual: (N, C_out, H_out, W_out), added at active pixels before the activation.
        activation: None, "relu", "relu6", "silu" or "hardswish".
        activate_base: also apply the activation to ``base``.
        expected_density: share of active pixels in [0, 1], a hint for devices that do not know
            the count on the host; never needed for a correct result.
        algorithm: "direct", "gather_gemm", "implicit_gemm", "dense", or "auto", which takes the
            dense convolution above the measured break-even density. Only "dense" reads inputs
            outside the active receptive field.
        packed_weight: what ``pack_weight`` made of ``weight``, to save packing it in the call.

    Returns:
        (N, C_out, H_out, W_out), or without N; dtype, device and memory format of ``input``.

    Raises:
        TypeError: a dtype or type above does not hold.
        ValueError: a shape, range or name above does not hold.

    Notes: differentiable in input, weight, bias, base and residual, twice. Deterministic for a
        given number of threads. MACs: density * dense MACs.
    Source: perforated convolution, Figurnov et al. 2016; passthrough fill, Kong and Fowlkes 2019.
    Example:
        >>> mask = torch.rand(1, 1, 8, 8) < 0.5
        >>> input, weight = torch.randn(1, 4, 8, 8), torch.randn(6, 4, 3, 3)
        >>> out = perforated_conv2d(input, weight, mask, padding=1)
        >>> out.shape, bool((out == 0).all(1, keepdim=True)[~mask].all())
        (torch.Size([1, 6, 8, 8]), True)
    """
    op = "perforated_conv2d"
    check_tensor(op, "input", input)
    check_tensor(op, "weight", weight)
    for name, value in (("bias", bias), ("base", base), ("residual", residual)):
        if value is not None:
            check_tensor(op, name, value)
    if packed_weight is not None:
        check_tensor(op, "packed_weight", packed_weight)
    if input.device.type != "meta" and torch.is_autocast_enabled(input.device.type):
        dtype = torch.get_autocast_dtype(input.device.type)
        input, weight = _cast(input, dtype), _cast(weight, dtype)
        bias, base, residual = (
            value if value is None else _cast(value, dtype) for value in (bias, base, residual)
        )
        packed_weight = packed_weight if weight.dtype == input.dtype else None
    for name, value in (("weight", weight), ("bias", bias), ("base", base), ("residual", residual)):
        check_same_dtype(op, name, value, input)
    _check_names(op, fill, activation, algorithm, groups, expected_density)
    if not isinstance(activate_base, bool):
        raise TypeError(
            f"{op}: activate_base must be a bool, got {type(activate_base).__name__}. "
            "Give True or False."
        )
    active_idx: Tensor | None = None
    count: Tensor | None = None
    if isinstance(mask, ActivePixels):
        active_idx, count, mask = mask.active_idx, mask.count, mask.mask
    check_bool_mask(op, mask)
    if weight.dim() != 4:
        raise ValueError(
            f"{op}: weight must be (C_out, C_in / groups, K_h, K_w), got {tuple(weight.shape)}. "
            "Reshape it."
        )
    is_unbatched = input.dim() == 3
    if is_unbatched:
        input, mask = input.unsqueeze(0), mask.unsqueeze(0) if mask.dim() == 3 else mask
        base = base if base is None else base.unsqueeze(0)
        residual = residual if residual is None else residual.unsqueeze(0)
    steps = int_pair(op, "stride", stride)
    spacing = int_pair(op, "dilation", dilation)
    output = differentiable_conv(
        input,
        weight,
        mask,
        bias,
        base,
        residual,
        active_idx,
        count,
        packed_weight,
        steps,
        four_sided_padding(op, padding, weight.shape[2:], spacing, steps),
        spacing,
        groups,
        fill,
        activation or "none",
        activate_base,
        expected_density,
        algorithm,
    )
    return output.squeeze(0) if is_unbatched else output


def explain(
    input: Tensor,
    weight: Tensor,
    mask: Tensor | ActivePixels,
    *,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    algorithm: str = "auto",
) -> list[tuple[str, bool, str]]:
    """Which algorithm ``perforated_conv2d`` would run, and why each other one would not.

    Args:
        input, weight, mask, stride, padding, dilation, groups, algorithm: as there.

    Returns:
        (algorithm, is_chosen, reason) for each algorithm, the chosen one first.

    Raises:
        TypeError, ValueError: as ``perforated_conv2d``.

    Notes: reads the mask (a host sync on CUDA).
    Example:
        >>> mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        >>> explain(torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3), mask, padding=1,
        ...         algorithm="direct")[0][:2]
        ('direct', True)
    """
    op = "explain"
    check_tensor(op, "input", input)
    check_same_dtype(op, "weight", weight, input)
    _check_names(op, "zero", None, algorithm, groups, None)
    mask = mask.mask if isinstance(mask, ActivePixels) else mask
    check_bool_mask(op, mask)
    images = input.unsqueeze(0) if input.dim() == 3 else input
    mask = mask.unsqueeze(0) if mask.dim() == 3 and input.dim() == 3 else mask
    with torch.no_grad():  # an empty mask: every rule is checked, nothing is multiplied
        shape = perforated_conv2d(
            images,
            weight,
            torch.zeros_like(mask),
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            algorithm="implicit_gemm",
        ).shape
    active = int(mask.sum()) * (images.size(0) // max(1, mask.size(0)))
    dtype = str(input.dtype).removeprefix("torch.")
    return _ext._C.explain_cpu(
        list(images.shape), list(weight.shape), list(shape), groups, dtype, active, algorithm
    )


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    """In the autocast dtype; float64 is left alone, as torch does."""
    return value if value.dtype == torch.float64 else value.to(dtype)


def _check_names(
    op: str,
    fill: str,
    activation: str | None,
    algorithm: str,
    groups: int,
    expected_density: float | None,
) -> None:
    for name, value, allowed in (
        ("fill", fill, FILLS),
        ("activation", activation, ACTIVATIONS),
        ("algorithm", algorithm, ALGORITHMS),
    ):
        if value not in allowed:
            raise ValueError(
                f"{op}: {name} must be one of {', '.join(map(repr, allowed))}, got {value!r}. "
                "Choose one of these."
            )
    check_int(op, "groups", groups)
    if expected_density is None:
        return
    if isinstance(expected_density, bool) or not isinstance(expected_density, int | float):
        raise TypeError(
            f"{op}: expected_density must be a number in [0, 1], got "
            f"{type(expected_density).__name__}. Give a number known on the host, or None."
        )
    if not 0 <= expected_density <= 1:
        raise ValueError(
            f"{op}: expected_density must be in [0, 1] (the share of active pixels), got "
            f"{expected_density}. Divide the number of active pixels by all pixels."
        )
