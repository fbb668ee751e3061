"""Shapes, gradients and batching of the perforated convolution.

With p over active pixels, t over taps: out[p] = act(sum_t W_t in[p + t] + bias + residual[p]).
dgrad, wgrad and the sum over active pixels are operators of their own, and all three at once are
another one; each is linear in its arguments, so their own gradients are again these operators, and
the convolution can be differentiated as often as wanted.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from perfconv import _ext  # noqa: F401  (loads the operators)
from perfconv.ops.arguments import check_one_device, is_channels_last, memory_format
from perfconv.ops.autograd import Context, Differentiable, differentiable, loop_over

# Argument positions of perfconv::perforated_conv2d that the gradients need by number.
INPUT, WEIGHT, MASK, BIAS, BASE, RESIDUAL = range(6)
ARGUMENTS = 19


def output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """(H_out, W_out); padding is [top, bottom, left, right]."""
    return [
        (size[axis] + padding[2 * axis] + padding[2 * axis + 1]
         - dilation[axis] * (kernel[axis] - 1) - 1) // stride[axis] + 1
        for axis in (0, 1)
    ]  # fmt: skip


@torch.library.register_fake("perfconv::perforated_conv2d")
def _conv_fake(
    input: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None,
    base: Tensor | None = None, residual: Tensor | None = None, active_idx: Tensor | None = None,
    count: Tensor | None = None, packed_weight: Tensor | None = None,
    stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1), groups: int = 1, fill: str = "zero",
    activation: str = "none", activate_base: bool = False, expected_density: float | None = None,
    algorithm: str = "auto", allow_tf32: bool = False,
) -> Tensor:  # fmt: skip
    check_one_device(
        "perforated_conv2d", "input", input, weight=weight, mask=mask, bias=bias, base=base,
        residual=residual, active_idx=active_idx, count=count, packed_weight=packed_weight,
    )  # fmt: skip
    size = output_size(input.shape[2:], weight.shape[2:], stride, padding, dilation)
    return torch.empty(
        (input.size(0), weight.size(0), *size),
        dtype=input.dtype,
        device=input.device,
        memory_format=memory_format(is_channels_last(input)),
    )


@torch.library.register_fake("perfconv::perforated_conv2d_dgrad")
def _dgrad_fake(
    grad_output: Tensor, weight: Tensor, mask: Tensor, active_idx: Tensor | None,
    count: Tensor | None, input_size: Sequence[int], channels_last: bool, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int, algorithm: str = "auto",
    allow_tf32: bool = False,
) -> Tensor:  # fmt: skip
    check_one_device(
        "perforated_conv2d_dgrad", "grad_output", grad_output, weight=weight, mask=mask,
        active_idx=active_idx, count=count,
    )  # fmt: skip
    return torch.empty(
        (grad_output.size(0), weight.size(1) * groups, *input_size),
        dtype=grad_output.dtype,
        device=grad_output.device,
        memory_format=memory_format(channels_last),
    )


@torch.library.register_fake("perfconv::perforated_conv2d_wgrad")
def _wgrad_fake(
    grad_output: Tensor, input: Tensor, mask: Tensor, active_idx: Tensor | None,
    count: Tensor | None, kernel_size: Sequence[int], stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int], groups: int, algorithm: str = "auto",
    allow_tf32: bool = False,
) -> Tensor:  # fmt: skip
    check_one_device(
        "perforated_conv2d_wgrad", "grad_output", grad_output, input=input, mask=mask,
        active_idx=active_idx, count=count,
    )  # fmt: skip
    return input.new_empty((grad_output.size(1), input.size(1) // groups, *kernel_size))


@torch.library.register_fake("perfconv::perforated_conv2d_backward")
def _backward_fake(
    grad_output: Tensor, input: Tensor, weight: Tensor, mask: Tensor, active_idx: Tensor | None,
    count: Tensor | None, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    groups: int, wants_bias: bool, algorithm: str = "auto", allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    check_one_device(
        "perforated_conv2d_backward", "grad_output", grad_output, input=input, weight=weight,
        mask=mask, active_idx=active_idx, count=count,
    )  # fmt: skip
    grads = [
        torch.empty(
            value.shape,
            dtype=value.dtype,
            device=value.device,
            memory_format=memory_format(is_channels_last(value)),
        )
        for value in (input, weight)
    ]
    return grads[0], grads[1], grad_output.new_empty(weight.size(0) if wants_bias else 0)


@torch.library.register_fake("perfconv::active_sum")
def _active_sum_fake(values: Tensor, mask: Tensor) -> Tensor:
    check_one_device("active_sum", "values", values, mask=mask)
    return values.new_empty((values.size(1),))


@torch.library.register_fake("perfconv::nearest_fill")
@torch.library.register_fake("perfconv::nearest_fill_grad")
def _nearest_fake(values: Tensor, mask: Tensor) -> Tensor:
    check_one_device("nearest_fill", "values", values, mask=mask)
    return torch.empty(
        values.shape,
        dtype=values.dtype,
        device=values.device,
        memory_format=memory_format(is_channels_last(values)),
    )


# ---- the convolution -----------------------------------------------------------------------------


def _conv_setup(ctx: Context, inputs: tuple, output: Tensor) -> None:
    input, weight, mask, _, base, residual, active_idx, count, _, *options = inputs
    stride, padding, dilation, groups, fill, activation, activate_base, _, *choice = options
    # relu and relu6 know their slope from the output; the others compute their input again.
    keeps_output = activation in ("relu", "relu6")
    recomputes = activation in ("silu", "hardswish")
    ctx.save_for_backward(
        input,
        weight,
        mask,
        active_idx,
        count,
        output if keeps_output else None,
        inputs[BIAS] if recomputes else None,
        residual if recomputes else None,
        base if activate_base else None,
    )
    ctx.options = (list(stride), list(padding), list(dilation), groups)
    ctx.fill, ctx.activation, ctx.choice = fill, activation, choice  # algorithm, allow_tf32
    ctx.activate_base = activate_base
    ctx.has = (inputs[BIAS] is not None, base is not None, residual is not None)


def _conv_backward(ctx: Context, grad: Tensor) -> tuple:
    input, weight, mask, active_idx, count, output, bias, residual, base = ctx.saved_tensors
    stride, padding, dilation, groups = ctx.options
    needs = ctx.needs_input_grad
    grads: list[Tensor | None] = [None] * ARGUMENTS
    has_bias, has_base, has_residual = ctx.has
    if has_base and needs[BASE]:
        slope_of = ctx.activation if ctx.activate_base else "none"
        grads[BASE] = torch.where(mask, 0, activation_grad(grad, slope_of, base))
    if ctx.fill == "nearest":
        grad = differentiable_nearest_grad(grad, mask)
    if ctx.activation != "none":
        value = output
        if value is None:
            value = differentiable_conv(
                input, weight, mask, bias, None, residual, active_idx, count, None,
                stride, padding, dilation, groups, "zero", "none", False, None, *ctx.choice,
            )  # fmt: skip
        grad = activation_grad(grad, ctx.activation, value)
    if has_residual and needs[RESIDUAL]:
        grads[RESIDUAL] = torch.where(mask, grad, 0)
    if needs[INPUT] and needs[WEIGHT] and grad.device.type == "cpu":
        wants_bias = has_bias and needs[BIAS]
        grads[INPUT], grads[WEIGHT], bias_grad = differentiable_backward(
            grad, input, weight, mask, active_idx, count,
            stride, padding, dilation, groups, wants_bias, *ctx.choice,
        )  # fmt: skip
        if wants_bias:
            grads[BIAS] = bias_grad
        return tuple(grads)
    if needs[INPUT]:
        grads[INPUT] = differentiable_dgrad(
            grad, weight, mask, active_idx, count, list(input.shape[2:]), is_channels_last(input),
            stride, padding, dilation, groups, *ctx.choice,
        )  # fmt: skip
    if needs[WEIGHT]:
        grads[WEIGHT] = differentiable_wgrad(
            grad, input, mask, active_idx, count, list(weight.shape[2:]),
            stride, padding, dilation, groups, *ctx.choice,
        )  # fmt: skip
    if has_bias and needs[BIAS]:
        grads[BIAS] = differentiable_active_sum(grad, mask)
    return tuple(grads)


def activation_grad(grad: Tensor, activation: str, value: Tensor | None) -> Tensor:
    """grad times the slope of the activation at its input ``value`` (relu, relu6: or output)."""
    if activation == "none" or value is None:
        return grad
    if activation == "relu":
        return torch.where(value <= 0, 0, grad)  # a NaN passes the gradient, as in torch
    if activation == "relu6":
        return torch.where((value > 0) & (value < 6), grad, 0)
    wide = value.to(torch.promote_types(value.dtype, torch.float32))  # 16 bits would round thrice
    if activation == "silu":
        gate = torch.sigmoid(wide)
        slope = gate * (1 + wide * (1 - gate))
    else:  # hardswish
        inside = torch.where(wide < -3, 0, wide / 3 + 0.5)
        slope = torch.where(wide > 3, 1, inside)
    return (grad * slope).to(grad.dtype)


def _fold(value: Tensor | None, dim: int | None, count: int) -> Tensor | None:
    """A mapped dimension folded into the batch; an unmapped tensor repeated."""
    if value is None:
        return None
    mapped = value.expand(count, *value.shape) if dim is None else value.movedim(dim, 0)
    return mapped.flatten(0, 1)


def _conv_vmap(info: Context, in_dims: tuple, *arguments: Any) -> tuple[Tensor, int]:
    """One call over the folded batch where weight, bias and list are shared, else one a sample."""
    is_shared = all(in_dims[index] is None for index in (WEIGHT, BIAS, 6, 7, 8))
    if not is_shared or info.batch_size == 0:
        return loop_over(lambda *slice: differentiable_conv(*slice))(info, in_dims, *arguments)
    folded = list(arguments)
    for index in (INPUT, BASE, RESIDUAL):
        folded[index] = _fold(arguments[index], in_dims[index], info.batch_size)
    batch = folded[INPUT].size(0) // info.batch_size
    mask = arguments[MASK]
    if in_dims[MASK] is not None:
        mask = mask.movedim(in_dims[MASK], 0)  # (B, N or 1, 1, H_out, W_out)
        mask = mask.expand(-1, batch, -1, -1, -1).flatten(0, 1)
    elif mask.size(0) != 1:
        mask = mask.repeat(info.batch_size, 1, 1, 1)
    folded[MASK] = mask
    folded[6] = folded[7] = None  # the list is of one sample's mask
    output = differentiable_conv(*folded)
    return output.unflatten(0, (info.batch_size, batch)), 0


# ---- its gradients -------------------------------------------------------------------------------


def _dgrad_setup(ctx: Context, inputs: tuple, output: Tensor) -> None:
    grad_output, weight, mask, active_idx, count, _, _, *options = inputs
    ctx.save_for_backward(grad_output, weight, mask, active_idx, count)
    ctx.options = options


def _dgrad_backward(ctx: Context, grad: Tensor) -> tuple:
    grad_output, weight, mask, active_idx, count = ctx.saved_tensors
    output_grad = weight_grad = None
    if ctx.needs_input_grad[0]:
        output_grad = _zero_filled(grad, weight, mask, active_idx, count, ctx.options)
    if ctx.needs_input_grad[1]:
        weight_grad = differentiable_wgrad(
            grad_output, grad, mask, active_idx, count, list(weight.shape[2:]), *ctx.options
        )
    return output_grad, weight_grad, *[None] * 11


def _wgrad_setup(ctx: Context, inputs: tuple, output: Tensor) -> None:
    grad_output, input, mask, active_idx, count, _, *options = inputs
    ctx.save_for_backward(grad_output, input, mask, active_idx, count)
    ctx.options = options


def _wgrad_backward(ctx: Context, grad: Tensor) -> tuple:
    grad_output, input, mask, active_idx, count = ctx.saved_tensors
    output_grad = input_grad = None
    if ctx.needs_input_grad[0]:
        output_grad = _zero_filled(input, grad, mask, active_idx, count, ctx.options)
    if ctx.needs_input_grad[1]:
        input_grad = differentiable_dgrad(
            grad_output, grad, mask, active_idx, count, list(input.shape[2:]),
            is_channels_last(input), *ctx.options,
        )  # fmt: skip
    return output_grad, input_grad, *[None] * 10


def _backward_setup(ctx: Context, inputs: tuple, output: tuple) -> None:
    *tensors, stride, padding, dilation, groups, ctx.wants_bias, algorithm, allow_tf32 = inputs
    ctx.save_for_backward(*tensors)
    ctx.options = [stride, padding, dilation, groups, algorithm, allow_tf32]
    ctx.set_materialize_grads(False)


def _backward_backward(
    ctx: Context, of_input: Tensor | None, of_weight: Tensor | None, of_bias: Tensor | None
) -> tuple:
    """The three results are linear in grad_output, and each but the last in one more argument."""
    grad_output, input, weight, mask, active_idx, count = ctx.saved_tensors
    needs = ctx.needs_input_grad
    output_grads: list[Tensor] = []
    input_grad = weight_grad = None
    if of_input is not None:
        if needs[0]:
            output_grads.append(
                _zero_filled(of_input, weight, mask, active_idx, count, ctx.options)
            )
        if needs[2]:
            weight_grad = differentiable_wgrad(
                grad_output, of_input, mask, active_idx, count, list(weight.shape[2:]), *ctx.options
            )
    if of_weight is not None:
        if needs[0]:
            output_grads.append(
                _zero_filled(input, of_weight, mask, active_idx, count, ctx.options)
            )
        if needs[1]:
            input_grad = differentiable_dgrad(
                grad_output, of_weight, mask, active_idx, count, list(input.shape[2:]),
                is_channels_last(input), *ctx.options,
            )  # fmt: skip
    if of_bias is not None and ctx.wants_bias and needs[0]:
        output_grads.append(_spread(of_bias, mask).expand(grad_output.shape))
    output_grad = sum(output_grads[1:], start=output_grads[0]) if output_grads else None
    return output_grad, input_grad, weight_grad, *[None] * 10


def _zero_filled(
    input: Tensor, weight: Tensor, mask: Tensor, active_idx: Tensor | None, count: Tensor | None,
    options: list,
) -> Tensor:  # fmt: skip
    *geometry, algorithm, allow_tf32 = options
    return differentiable_conv(
        input, weight, mask, None, None, None, active_idx, count, None,
        *geometry, "zero", "none", False, None, algorithm, allow_tf32,
    )  # fmt: skip


def _mask_setup(ctx: Context, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _active_sum_setup(ctx: Context, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.shape = inputs[0].shape


def _active_sum_backward(ctx: Context, grad: Tensor) -> tuple:
    (mask,) = ctx.saved_tensors
    return _spread(grad, mask).expand(ctx.shape), None


def _spread(grad: Tensor, mask: Tensor) -> Tensor:
    """A value a channel at the active pixels: (N or 1, C, H, W)."""
    return torch.where(mask, grad[:, None, None], 0)


differentiable_conv: Differentiable = differentiable(
    "perforated_conv2d", setup_context=_conv_setup, backward=_conv_backward, vmap=_conv_vmap
)
differentiable_dgrad: Differentiable = differentiable(
    "perforated_conv2d_dgrad",
    setup_context=_dgrad_setup,
    backward=_dgrad_backward,
    vmap=loop_over(lambda *arguments: differentiable_dgrad(*arguments)),
)
differentiable_wgrad: Differentiable = differentiable(
    "perforated_conv2d_wgrad",
    setup_context=_wgrad_setup,
    backward=_wgrad_backward,
    vmap=loop_over(lambda *arguments: differentiable_wgrad(*arguments)),
)
differentiable_backward: Differentiable = differentiable(
    "perforated_conv2d_backward",
    setup_context=_backward_setup,
    backward=_backward_backward,
    vmap=loop_over(lambda *arguments: differentiable_backward(*arguments)),
)
differentiable_active_sum: Differentiable = differentiable(
    "active_sum",
    setup_context=_active_sum_setup,
    backward=_active_sum_backward,
    vmap=loop_over(lambda *arguments: differentiable_active_sum(*arguments)),
)
differentiable_nearest_fill: Differentiable = differentiable(
    "nearest_fill",
    setup_context=_mask_setup,
    backward=lambda ctx, grad: (differentiable_nearest_grad(grad, *ctx.saved_tensors), None),
    vmap=loop_over(lambda *arguments: differentiable_nearest_fill(*arguments)),
)
differentiable_nearest_grad: Differentiable = differentiable(
    "nearest_fill_grad",
    setup_context=_mask_setup,
    backward=lambda ctx, grad: (differentiable_nearest_fill(grad, *ctx.saved_tensors), None),
    vmap=loop_over(lambda *arguments: differentiable_nearest_grad(*arguments)),
)
