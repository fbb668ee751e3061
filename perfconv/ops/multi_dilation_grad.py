"""Shapes, gradients and batching of the multi-dilation convolution.

Its dgrad and wgrad are operators of their own, linear in both arguments like those of the
perforated convolution, so it can be differentiated as often as wanted.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from perfconv import _ext  # noqa: F401  (loads the operators)
from perfconv.ops.arguments import check_one_device, is_channels_last, memory_format
from perfconv.ops.autograd import Context, Operation, differentiable, loop_over
from perfconv.ops.conv_grad import (
    activation_grad,
    differentiable_active_sum,
    differentiable_nearest_grad,
)


@torch.library.register_fake("perfconv::multi_dilation_conv2d")
def _conv_fake(
    input: Tensor, weight: Tensor, choice: Tensor, bias: Tensor | None, base: Tensor | None,
    dilations: Sequence[int], fill: str, activation: str, allow_tf32: bool = False,
    packed_weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    check_one_device(
        "multi_dilation_conv2d", "input", input, weight=weight, choice=choice, bias=bias, base=base
    )
    return _image(input, input, weight.size(-4), is_channels_last(input))


@torch.library.register_fake("perfconv::multi_dilation_dgrad")
def _dgrad_fake(
    grad_output: Tensor, weight: Tensor, choice: Tensor, dilations: Sequence[int],
    channels_last: bool, allow_tf32: bool = False,
) -> Tensor:  # fmt: skip
    check_one_device(
        "multi_dilation_dgrad", "grad_output", grad_output, weight=weight, choice=choice
    )
    return _image(grad_output, grad_output, weight.size(-3), channels_last)


@torch.library.register_fake("perfconv::multi_dilation_wgrad")
def _wgrad_fake(
    grad_output: Tensor, input: Tensor, choice: Tensor, kernel_size: int, dilations: Sequence[int],
    is_tied: bool, allow_tf32: bool = False,
) -> Tensor:  # fmt: skip
    check_one_device("multi_dilation_wgrad", "grad_output", grad_output, input=input, choice=choice)
    branches = [] if is_tied else [len(dilations)]
    shape = (*branches, grad_output.size(1), input.size(1), kernel_size, kernel_size)
    return input.new_empty(shape)


def _image(like: Tensor, grid: Tensor, channels: int, channels_last: bool) -> Tensor:
    return torch.empty(
        (like.size(0), channels, *grid.shape[2:]),
        dtype=like.dtype,
        device=like.device,
        memory_format=memory_format(channels_last),
    )


def _chosen(choice: Tensor, branches: Sequence[int]) -> Tensor:
    """(N, 1, H, W), bool: the pixels that chose one of these branches."""
    chosen = torch.zeros_like(choice, dtype=torch.bool)
    for branch in branches:
        chosen = chosen | (choice == branch)
    return chosen


def _copies(dilations: Sequence[int]) -> list[int]:
    return [branch for branch, dilation in enumerate(dilations) if dilation == 0]


def _convolutions(dilations: Sequence[int]) -> list[int]:
    return [branch for branch, dilation in enumerate(dilations) if dilation != 0]


def _conv_setup(ctx: Context, inputs: tuple, output: Tensor) -> None:
    input, weight, choice, bias, base, dilations, fill, activation, allow_tf32, _ = inputs
    keeps_output = activation in ("relu", "relu6")
    ctx.save_for_backward(input, weight, choice, bias, output if keeps_output else None)
    ctx.dilations, ctx.fill, ctx.activation = list(dilations), fill, activation
    ctx.allow_tf32 = allow_tf32
    ctx.has_base = base is not None


def _conv_backward(ctx: Context, grad: Tensor) -> tuple:
    input, weight, choice, bias, output = ctx.saved_tensors
    needs, dilations, allow_tf32 = ctx.needs_input_grad, ctx.dilations, ctx.allow_tf32
    active = _chosen(choice, range(len(dilations)))
    base_grad = input_grad = weight_grad = bias_grad = None
    if ctx.has_base and needs[4]:
        base_grad = torch.where(active, 0, grad)
    if ctx.fill == "nearest":
        grad = differentiable_nearest_grad(grad, active)
    if ctx.activation != "none":  # copies have none
        value = output
        if value is None:
            value = differentiable_multi_dilation(
                input, weight, choice, bias, None, dilations, "zero", "none", allow_tf32, None
            )
        slope = activation_grad(grad, ctx.activation, value)
        grad = torch.where(_chosen(choice, _copies(dilations)), grad, slope)
    if needs[0]:
        input_grad = differentiable_multi_dilation_dgrad(
            grad, weight, choice, dilations, is_channels_last(input), allow_tf32
        )
    if needs[1]:
        weight_grad = differentiable_multi_dilation_wgrad(
            grad, input, choice, weight.size(-1), dilations, weight.dim() == 4, allow_tf32
        )
    if bias is not None and needs[3]:
        bias_grad = _bias_grad(grad, choice, bias, dilations)
    return input_grad, weight_grad, None, bias_grad, base_grad, *[None] * 5


def _bias_grad(grad: Tensor, choice: Tensor, bias: Tensor, dilations: Sequence[int]) -> Tensor:
    convolutions = _convolutions(dilations)
    if bias.dim() == 1:
        return differentiable_active_sum(grad, _chosen(choice, convolutions))
    rows = [
        differentiable_active_sum(grad, choice == branch)
        if branch in convolutions
        else torch.zeros_like(bias[branch])
        for branch in range(len(dilations))
    ]
    return torch.stack(rows)


def _dgrad_setup(ctx: Context, inputs: tuple, output: Tensor) -> None:
    grad_output, weight, choice, dilations, _, allow_tf32 = inputs
    ctx.save_for_backward(grad_output, weight, choice)
    ctx.dilations, ctx.allow_tf32 = list(dilations), allow_tf32


def _dgrad_backward(ctx: Context, grad: Tensor) -> tuple:
    grad_output, weight, choice = ctx.saved_tensors
    output_grad = weight_grad = None
    if ctx.needs_input_grad[0]:
        output_grad = differentiable_multi_dilation(
            grad, weight, choice, None, None, ctx.dilations, "zero", "none", ctx.allow_tf32, None
        )
    if ctx.needs_input_grad[1]:
        weight_grad = differentiable_multi_dilation_wgrad(
            grad_output, grad, choice, weight.size(-1), ctx.dilations, weight.dim() == 4,
            ctx.allow_tf32,
        )  # fmt: skip
    return output_grad, weight_grad, None, None, None, None


def _wgrad_setup(ctx: Context, inputs: tuple, output: Tensor) -> None:
    grad_output, input, choice, _, dilations, _, allow_tf32 = inputs
    ctx.save_for_backward(grad_output, input, choice)
    ctx.dilations, ctx.allow_tf32 = list(dilations), allow_tf32


def _wgrad_backward(ctx: Context, grad: Tensor) -> tuple:
    grad_output, input, choice = ctx.saved_tensors
    output_grad = input_grad = None
    # Copied pixels have no part in the weight's gradient.
    convolved = torch.where(_chosen(choice, _copies(ctx.dilations)), -1, choice)
    if ctx.needs_input_grad[0]:
        output_grad = differentiable_multi_dilation(
            input, grad, convolved, None, None, ctx.dilations, "zero", "none", ctx.allow_tf32, None
        )
    if ctx.needs_input_grad[1]:
        input_grad = differentiable_multi_dilation_dgrad(
            grad_output, grad, convolved, ctx.dilations, is_channels_last(input), ctx.allow_tf32
        )
    return output_grad, input_grad, *[None] * 5


differentiable_multi_dilation: Operation = differentiable(
    "multi_dilation_conv2d",
    setup_context=_conv_setup,
    backward=_conv_backward,
    vmap=loop_over(lambda *arguments: differentiable_multi_dilation(*arguments)),
)
differentiable_multi_dilation_dgrad: Operation = differentiable(
    "multi_dilation_dgrad",
    setup_context=_dgrad_setup,
    backward=_dgrad_backward,
    vmap=loop_over(lambda *arguments: differentiable_multi_dilation_dgrad(*arguments)),
)
differentiable_multi_dilation_wgrad: Operation = differentiable(
    "multi_dilation_wgrad",
    setup_context=_wgrad_setup,
    backward=_wgrad_backward,
    vmap=loop_over(lambda *arguments: differentiable_multi_dilation_wgrad(*arguments)),
)
