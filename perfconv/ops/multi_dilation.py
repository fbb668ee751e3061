"""multi_dilation_conv2d: a convolution whose dilation is chosen pixel by pixel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from perfconv import _ext  # noqa: F401  (loads the operators)
from perfconv.ops.arguments import autocast, check_same_dtype, check_tensor, is_int
from perfconv.ops.conv import ACTIVATIONS, FILLS, torch_allows_tf32
from perfconv.ops.multi_dilation_grad import differentiable_multi_dilation

INDEX_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def multi_dilation_conv2d(
    input: Tensor,
    weight: Tensor,
    choice: Tensor,
    bias: Tensor | None = None,
    *,
    dilations: Sequence[int],
    activation: str | None = None,
    fill: str = "zero",
    base: Tensor | None = None,
    packed_weight: Tensor | None = None,
) -> Tensor:
    """A 2-D convolution, stride 1 and same padding, with one dilation for each pixel.

    A pixel that chose branch k holds ``activation(conv2d(input, weight_k, bias_k,
    dilation=dilations[k]))``, exactly what the dense convolution with that dilation holds there.
    Dilation 0 copies the input pixel as it is: weight, bias and activation have no part in it.
    Inactive pixels hold what ``fill`` says, as in ``perforated_conv2d``.

    Args:
        input: (N, C_in, H, W), float32 / float64 / bfloat16 / float16. Any memory format.
        weight: (C_out, C_in, k, k) for all branches, or (K, C_out, C_in, k, k); k is odd.
        choice: (N, 1, H, W), integers: an index into ``dilations``, or -1 for an inactive pixel.
            Not differentiable. Other values are an error on the CPU and -1 on CUDA.
        bias: (C_out,) for all branches, (K, C_out), or None.
        dilations: K numbers, 0 or more; 0 needs C_in = C_out.
        activation: None, "relu", "relu6", "silu" or "hardswish".
        fill: "zero", "nearest", "passthrough" or "none".
        base: (N, C_out, H, W), what inactive pixels take with fill="passthrough".
        packed_weight: what ``pack_weight`` made of ``weight``, to save packing it in the call.

    Returns:
        (N, C_out, H, W), dtype, device and memory format of ``input``.

    Raises:
        TypeError: a dtype or type above does not hold.
        ValueError: a shape, range or name above does not hold.

    Notes: differentiable in input, weight, bias and base, twice. Deterministic. MACs: those of one
        dense convolution, times the share of pixels that chose a dilation above 0.
    Source: pixel-wise attentional gating, Kong and Fowlkes 2019, multi-scale pooling.
    Example:
        >>> choice = torch.tensor([[[[0, 1], [-1, 1]]]])
        >>> input, weight = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 3)
        >>> multi_dilation_conv2d(input, weight, choice, dilations=(0, 1)).tolist()
        [[[[1.0, 4.0], [0.0, 4.0]]]]
    """
    op = "multi_dilation_conv2d"
    for name, value in (
        ("input", input), ("weight", weight), ("bias", bias), ("base", base),
        ("packed_weight", packed_weight),
    ):  # fmt: skip
        if value is not None or name in ("input", "weight"):
            check_tensor(op, name, value)  # type: ignore[arg-type]
    input, weight, bias, base = autocast(input, weight, bias, base)
    for name, value in (("weight", weight), ("bias", bias), ("base", base)):
        check_same_dtype(op, name, value, input)
    for name, word, allowed in (("fill", fill, FILLS), ("activation", activation, ACTIVATIONS)):
        if word not in allowed:
            raise ValueError(
                f"{op}: {name} must be one of {', '.join(map(repr, allowed))}, got {word!r}. "
                "Choose one of these."
            )
    if not isinstance(dilations, tuple | list) or not all(is_int(step) for step in dilations):
        raise TypeError(
            f"{op}: dilations must be a list of ints, got {dilations!r}. "
            "Give one whole number for each branch."
        )
    if not isinstance(choice, Tensor) or choice.dtype not in INDEX_DTYPES:
        kind = choice.dtype if isinstance(choice, Tensor) else type(choice).__name__
        raise TypeError(
            f"{op}: choice must be a Tensor of integers, got {kind}. "
            "Make one such as scores.argmax(1, keepdim=True)."
        )
    if choice.dtype == torch.int64:  # without wrapping what is out of range
        choice = choice.clamp(-2, len(dilations))
    return differentiable_multi_dilation(
        input, weight, choice.int(), bias, base, list(dilations), fill, activation or "none",
        torch_allows_tf32(), packed_weight,
    )  # fmt: skip
