"""perforated_conv2d: the convolution computed at the active pixels of a mask only."""

import torch
from torch import Tensor

from perfconv import _ext
from perfconv.ops import tuning
from perfconv.ops.arguments import (
    IntPair,
    are_alike,
    autocast,
    check_bool_mask,
    check_int,
    check_same_dtype,
    check_tensor,
    four_sided_padding,
    int_pair,
    is_autocast,
)
from perfconv.ops.autograd import is_eager
from perfconv.ops.conv_grad import differentiable_conv
from perfconv.ops.mask import ActivePixels

FILLS = ("zero", "nearest", "passthrough", "none")
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
    (smallest squared distance, ties to the lowest flat index; 0 without any), or ``base``. Under
    "none" they hold anything, for layers whose inactive outputs nobody reads: "dense" computes
    them, the other algorithms leave the memory as it was (NaN where torch fills new memory,
    ``torch.use_deterministic_algorithms``).

    Args:
        input: (N, C_in, H, W) or (C_in, H, W), float32 / float64 / bfloat16 / float16. Any memory
            format; channels_last needs no conversion.
        weight: (C_out, C_in / groups, K_h, K_w), dtype and device of ``input``.
        mask: (N or 1, 1, H_out, W_out), bool, True = compute, on the output grid; or the
            ActivePixels of one, made once for several layers. Not differentiable.
        bias: (C_out,) or None.
        stride, padding, dilation, groups: as in ``torch.nn.functional.conv2d``; pixels, (h, w).
        fill: "zero", "nearest", "passthrough" (needs ``base``) or "none".
        base: (N, C_out, H_out, W_out), what inactive pixels hold under "passthrough".
        residual: (N, C_out, H_out, W_out), added at active pixels before the activation.
        activation: None, "relu", "relu6", "silu" or "hardswish".
        activate_base: also apply the activation to ``base``.
        expected_density: share of active pixels in [0, 1], a hint for devices that do not know
            the count on the host; never needed for a correct result.
        algorithm: "direct", "gather_gemm", "implicit_gemm", "dense", or "auto", which takes the
            dense convolution above the measured break-even density. The weight gradient of "dense"
            multiplies inputs outside the active receptive field by 0, so that NaN there spreads:
            train what follows a "none" fill with another one.
        packed_weight: what ``pack_weight`` made of ``weight``, to save packing it in the call.

    Returns:
        (N, C_out, H_out, W_out), or without N; dtype, device and memory format of ``input``.

    Raises:
        TypeError: a dtype or type above does not hold.
        ValueError: a shape, range or name above does not hold.

    Notes: differentiable in input, weight, bias, base and residual, twice. Deterministic for a
        given number of threads. MACs: density * dense MACs. On CUDA float32 is multiplied in tf32
        where ``torch.backends.cudnn.conv.fp32_precision`` says so, as in torch's convolution.
    Source: perforated convolution, Figurnov et al. 2016; passthrough fill, Kong and Fowlkes 2019.
    Example:
        >>> mask = torch.rand(1, 1, 8, 8) < 0.5
        >>> input, weight = torch.randn(1, 4, 8, 8), torch.randn(6, 4, 3, 3)
        >>> out = perforated_conv2d(input, weight, mask, padding=1)
        >>> out.shape, bool((out == 0).all(1, keepdim=True)[~mask].all())
        (torch.Size([1, 6, 8, 8]), True)
    """
    tuning.follow_mode()
    if expected_density is None:
        done = _at_once(
            input, weight, mask, bias, stride, padding, dilation, groups, fill, base, residual,
            activation, activate_base, algorithm, packed_weight,
        )  # fmt: skip
        if done is not None:
            return done
    op = "perforated_conv2d"
    if not are_alike(input, weight, bias, base, residual) or is_autocast(input):
        check_tensor(op, "input", input)
        check_tensor(op, "weight", weight)
        for name, value in (("bias", bias), ("base", base), ("residual", residual)):
            if value is not None:
                check_tensor(op, name, value)
        input, weight, bias, base, residual = autocast(input, weight, bias, base, residual)
        check_same_dtype(op, "weight", weight, input)
        check_same_dtype(op, "bias", bias, input)
        check_same_dtype(op, "base", base, input)
        check_same_dtype(op, "residual", residual, input)
    if packed_weight is not None:
        check_tensor(op, "packed_weight", packed_weight)
    check_names(op, fill, activation, algorithm, groups, expected_density)
    if type(activate_base) is not bool:
        _refuse_flag(op, activate_base)
    mask, active_idx, count = mask_and_list(op, mask)
    check_weight_rank(op, weight)
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
        [padding] * 4
        if type(padding) is int and abs(padding) < 2**63  # the usual case
        else four_sided_padding(op, padding, weight.shape[2:], spacing, steps),
        spacing,
        groups,
        fill,
        activation or "none",
        activate_base,
        expected_density,
        algorithm,
        not input.is_cpu and torch_allows_tf32(),
    )
    return output.squeeze(0) if is_unbatched else output


def _at_once(
    input: Tensor, weight: Tensor, mask: Tensor | ActivePixels, bias: Tensor | None,
    stride: IntPair, padding: IntPair | str, dilation: IntPair, groups: int, fill: str,
    base: Tensor | None, residual: Tensor | None, activation: str | None, activate_base: bool,
    algorithm: str, packed_weight: Tensor | None,
) -> Tensor | None:  # fmt: skip
    """The usual eager call on the CPU, whose arguments the native operator checks; or None.

    A call that it refuses goes the long way after all, for the right kind of error. With cold
    caches the checks of ``perforated_conv2d`` cost as much as the operator (KERNELS.md K-031).
    """
    if not is_eager() or type(input) is not Tensor or not input.is_cpu or input.dim() != 4:
        return None
    if type(mask) is not Tensor:
        if not isinstance(mask, ActivePixels):
            return None
        mask = mask.mask  # the CPU makes its own list
    if (
        fill not in FILLS
        or activation not in ACTIVATIONS
        or algorithm not in ALGORITHMS
        or type(groups) is not int
        or type(activate_base) is not bool
        or torch.is_autocast_enabled("cpu")
    ):
        return None
    if type(stride) is type(padding) is type(dilation) is int:
        steps, sides, spacing = [stride, stride], [padding] * 4, [dilation, dilation]
    elif type(stride) is type(padding) is type(dilation) is tuple:
        numbers = stride + padding + dilation  # of a module: (h, w) each
        if len(padding) != 2 or {*map(type, numbers)} != {int}:
            return None
        above, left = padding
        steps, sides, spacing = [*stride], [above, above, left, left], [*dilation]
    else:
        return None
    try:
        return differentiable_conv.eager(
            input, weight, mask, bias, base, residual, None, None, packed_weight,
            steps, sides, spacing, groups, fill, activation or "none", activate_base, None,
            algorithm, False,
        )  # fmt: skip
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def explain(
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
) -> list[tuple[str, bool, str]]:
    """Which algorithm ``perforated_conv2d`` would run, and why each other one would not.

    Args:
        input, weight, mask, bias and all options: as there; checked as there. The choice depends
            on sizes, dtype, stride, padding, dilation, groups, density and ``algorithm``.

    Returns:
        (algorithm, is_chosen, reason) for each algorithm, the chosen one first. On CUDA the reason
        of implicit_gemm names its kernel, and says why the faster ones do not take the problem.

    Raises:
        TypeError, ValueError: as ``perforated_conv2d``.

    Notes: reads the mask on the CPU; on CUDA only its shape counts.
    Example:
        >>> mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        >>> explain(torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3), mask, padding=1,
        ...         algorithm="direct")[0][:2]
        ('direct', True)
    """
    op = "explain"
    check_tensor(op, "input", input)
    check_names(op, fill, activation, algorithm, groups, expected_density)
    mask = mask.mask if isinstance(mask, ActivePixels) else mask
    check_bool_mask(op, mask)
    images = input.unsqueeze(0) if input.dim() == 3 else input
    mask = mask.unsqueeze(0) if mask.dim() == 3 and input.dim() == 3 else mask
    base, residual = (
        value.unsqueeze(0) if value is not None and input.dim() == 3 else value
        for value in (base, residual)
    )
    with torch.no_grad():  # an empty mask: every rule is checked, nothing is multiplied
        output = perforated_conv2d(
            images,
            weight,
            torch.zeros_like(mask),
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            fill=fill,
            base=base,
            residual=residual,
            activation=activation,
            activate_base=activate_base,
            algorithm="implicit_gemm",
        )
    dtype = str(output.dtype).removeprefix("torch.")  # autocast may have chosen another
    sizes = list(images.shape), list(weight.shape), list(output.shape), groups, dtype
    if input.device.type == "cuda":
        is_aligned = all(starts_at_16_bytes(value) for value in (images, weight))
        major, minor = torch.cuda.get_device_capability(input.device)
        return _ext._C.explain_cuda(
            *sizes,
            torch_allows_tf32(),
            is_aligned,
            10 * major + minor,
            expected_density,
            algorithm,
        )
    active = int(mask.sum()) * (images.size(0) // max(1, mask.size(0)))
    return _ext._C.explain_cpu(*sizes, active, algorithm)


def starts_at_16_bytes(image: Tensor) -> bool:
    """Whether its rows of channels do: where they lie, or in the copy that the operator makes."""
    is_in_place = image.is_contiguous(memory_format=torch.channels_last)
    return not is_in_place or image.data_ptr() % 16 == 0


def torch_allows_tf32() -> bool:
    """Whether torch may multiply float32 convolutions in tf32; compiled code keeps the answer."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


# What torch.compiler.assume_constant_result sets, after importing the compiler, which takes longer
# than the rest of this package.
torch_allows_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def mask_and_list(
    op: str, mask: Tensor | ActivePixels
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The mask, and active_idx and count where it comes with them."""
    active_idx: Tensor | None = None
    count: Tensor | None = None
    if isinstance(mask, ActivePixels):
        active_idx, count, mask = mask.active_idx, mask.count, mask.mask
    check_bool_mask(op, mask)
    return mask, active_idx, count


def check_weight_rank(op: str, weight: Tensor) -> None:
    if weight.dim() != 4:
        raise ValueError(
            f"{op}: weight must be (C_out, C_in / groups, K_h, K_w), got {tuple(weight.shape)}. "
            "Reshape it."
        )


def check_names(
    op: str,
    fill: str,
    activation: str | None,
    algorithm: str,
    groups: int,
    expected_density: float | None,
) -> None:
    if fill not in FILLS or activation not in ACTIVATIONS or algorithm not in ALGORITHMS:
        _refuse_name(op, fill, activation, algorithm)
    if type(groups) is not int:
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


def _refuse_flag(op: str, activate_base: bool) -> None:
    raise TypeError(
        f"{op}: activate_base must be a bool, got {type(activate_base).__name__}. "
        "Give True or False."
    )


def _refuse_name(op: str, fill: str, activation: str | None, algorithm: str) -> None:
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
