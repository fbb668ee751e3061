"""gate_mask: a 1x1 gate, its decision and the compaction of the mask in one read of the input.

With logits z = W x + b at a pixel: mask = z[1] > z[0], soft = softmax(z)[1].
Only soft has gradients, all through the difference z[1] - z[0], whose slope is soft (1 - soft).
"""

import torch
from torch import Tensor

from perfconv import _ext  # noqa: F401  (loads the operators)
from perfconv.ops.arguments import autocast, check_one_device, check_same_dtype, check_tensor
from perfconv.ops.autograd import Context, Operation, differentiable, loop_over
from perfconv.ops.mask import ActivePixels


def gate_mask(
    input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[ActivePixels, Tensor | None]:
    """The active pixels that a 1x1 gate chooses, and P(compute) where gradients are wanted.

    A 1x1 convolution gives two logits, skip and compute; a pixel is active where compute is the
    larger one. NaN counts as inactive. Sums are kept in float32, of float64 in float64.

    Args:
        input: (N, C, H, W), float32 / float64 / bfloat16 / float16. Any memory format;
            channels_last needs no conversion.
        weight: (2, C) or (2, C, 1, 1), rows (skip, compute); dtype and device of ``input``.
        bias: (2,) or None.

    Returns:
        The ActivePixels, and soft (N, 1, H, W), dtype of ``input``; None instead where no argument
        requires a gradient or gradients are off.

    Raises:
        TypeError: a dtype or type above does not hold.
        ValueError: a shape above does not hold, or N*H*W is 2**31 or more.

    Notes: soft is differentiable in input, weight and bias, twice; the mask is not. Deterministic.
        No host sync. MACs: 2 * C for each pixel.
    Source: Kong and Fowlkes 2019, the binary gate of a residual block.
    Example:
        >>> weight = torch.tensor([[0.0], [1.0]])
        >>> active, soft = gate_mask(torch.tensor([[[[-1.0, 2.0]]]]), weight, None)
        >>> active.mask.tolist(), active.count.tolist(), soft
        ([[[[False, True]]]], [1], None)
    """
    op = "gate_mask"
    check_tensor(op, "input", input)
    check_tensor(op, "weight", weight)
    if bias is not None:
        check_tensor(op, "bias", bias)
    input, weight, bias = autocast(input, weight, bias)
    check_same_dtype(op, "weight", weight, input)
    check_same_dtype(op, "bias", bias, input)
    wants_soft = torch.is_grad_enabled() and any(
        value is not None and value.requires_grad for value in (input, weight, bias)
    )
    soft, *active = _gate(input, weight, bias, wants_soft)
    return ActivePixels(*active), soft if wants_soft else None


@torch.library.register_fake("perfconv::gate_mask")
def _gate_fake(
    input: Tensor, weight: Tensor, bias: Tensor | None, wants_soft: bool
) -> tuple[Tensor, ...]:
    check_one_device("gate_mask", "input", input, weight=weight, bias=bias)
    batch, _, height, width = input.shape
    shape = (batch, 1, height, width)
    return (
        input.new_empty(shape if wants_soft else (0,)),
        input.new_empty(shape, dtype=torch.bool),
        input.new_empty((batch * height * width,), dtype=torch.int32),
        input.new_empty((1,), dtype=torch.int32),
        input.new_empty((batch,), dtype=torch.int32),
    )


def _gate_setup(ctx: Context, inputs: tuple, output: tuple) -> None:
    input, weight, bias, wants_soft = inputs
    soft, *decided = output
    ctx.mark_non_differentiable(*(decided if wants_soft else output))
    ctx.save_for_backward(input, weight, bias, soft)


def _gate_backward(ctx: Context, grad: Tensor, *_: Tensor) -> tuple:
    input, weight, bias, soft = ctx.saved_tensors
    wide = torch.promote_types(soft.dtype, torch.float32)  # 16 bits would round at every step
    soft = soft.to(wide)
    slope = grad * soft * (1 - soft)  # (N, 1, H, W), of the difference of the logits
    input_grad = weight_grad = bias_grad = None
    if ctx.needs_input_grad[0]:
        skip, compute = weight.to(wide).flatten(1)  # (C,) each
        input_grad = (slope * (compute - skip)[:, None, None]).to(input.dtype)
    if ctx.needs_input_grad[1]:
        total = (slope * input).sum((0, 2, 3))  # (C,)
        weight_grad = torch.stack([-total, total]).reshape(weight.shape).to(weight.dtype)
    if ctx.needs_input_grad[2]:
        total = slope.sum()
        bias_grad = torch.stack([-total, total]).to(bias.dtype)
    return input_grad, weight_grad, bias_grad, None


_gate: Operation = differentiable(
    "gate_mask",
    setup_context=_gate_setup,
    backward=_gate_backward,
    vmap=loop_over(lambda *arguments: _gate(*arguments)),
)
