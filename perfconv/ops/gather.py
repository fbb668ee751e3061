"""Rows of active pixels: gather and scatter with static shapes, differentiable."""

import torch
from torch import Tensor

from perfconv import _ext  # noqa: F401  (loads the operators)
from perfconv.ops.arguments import check_one_device, check_same_dtype, check_tensor
from perfconv.ops.autograd import Context, Operation, differentiable, loop_over
from perfconv.ops.mask import ActivePixels


def gather_pixels(input: Tensor, active: ActivePixels) -> Tensor:
    """The channel rows of the active pixels, in the order of ``active``.

    Args:
        input: (N, C, H, W), float32 / float64 / bfloat16 / float16.
        active: of a mask (N, 1, H, W).

    Returns:
        (N*H*W, C), dtype of ``input``; the rows past the count are zero.

    Raises:
        TypeError: ``input`` is of another dtype, ``active`` is not an ActivePixels.
        ValueError: ``active`` is of another size.

    Notes: differentiable in input. Deterministic. No host sync.
    Example:
        >>> active = perfconv.compact_mask(torch.eye(2, dtype=torch.bool)[None, None])
        >>> gather_pixels(torch.arange(4.0).view(1, 1, 2, 2), active)[:, 0].tolist()
        [0.0, 3.0, 0.0, 0.0]
    """
    check_tensor("gather_pixels", "input", input)
    check_active("gather_pixels", active)
    return _gather(input, active.active_idx, active.count)


def scatter_pixels(rows: Tensor, active: ActivePixels, base: Tensor | None = None) -> Tensor:
    """Rows back to the pixels they came from; the other pixels take ``base``, or zero.

    Args:
        rows: (N*H*W, C); the rows past the count are not read.
        active: of a mask (N, 1, H, W).
        base: (N, C, H, W) or None.

    Returns:
        (N, C, H, W) in channels_last memory, dtype of ``rows``.

    Raises:
        TypeError: dtypes differ, ``active`` is not an ActivePixels.
        ValueError: a shape above does not hold.

    Notes: differentiable in rows and base. Deterministic. No host sync.
    Example:
        >>> active = perfconv.compact_mask(torch.eye(2, dtype=torch.bool)[None, None])
        >>> scatter_pixels(torch.ones(4, 1), active)[0, 0].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    check_tensor("scatter_pixels", "rows", rows)
    check_same_dtype("scatter_pixels", "base", base, rows)
    check_active("scatter_pixels", active)
    return _scatter(rows, active.mask, active.active_idx, active.count, base)


def check_active(op: str, active: ActivePixels) -> None:
    """An ActivePixels."""
    if not isinstance(active, ActivePixels):
        raise TypeError(
            f"{op}: active must be an ActivePixels, got {type(active).__name__}. "
            "Make it with perfconv.compact_mask(mask)."
        )


@torch.library.register_fake("perfconv::gather_pixels")
def _gather_fake(input: Tensor, active_idx: Tensor, count: Tensor) -> Tensor:
    check_one_device("gather_pixels", "input", input, active_idx=active_idx, count=count)
    return input.new_empty((active_idx.size(0), input.size(1)))


@torch.library.register_fake("perfconv::scatter_pixels")
def _scatter_fake(
    rows: Tensor, mask: Tensor, active_idx: Tensor, count: Tensor, base: Tensor | None
) -> Tensor:
    check_one_device(
        "scatter_pixels", "rows", rows, mask=mask, active_idx=active_idx, count=count, base=base
    )
    shape = (mask.size(0), rows.size(1), mask.size(2), mask.size(3))
    return torch.empty(
        shape, dtype=rows.dtype, device=rows.device, memory_format=torch.channels_last
    )


def _gather_setup(ctx: Context, inputs: tuple, output: Tensor) -> None:
    input, active_idx, count = inputs
    ctx.save_for_backward(active_idx, count)
    ctx.shape = input.shape


def _gather_backward(ctx: Context, grad: Tensor) -> tuple:
    active_idx, count = ctx.saved_tensors
    batch, _, height, width = ctx.shape
    mask = active_idx.new_empty((batch, 1, height, width), dtype=torch.bool)  # its shape alone
    return _scatter(grad, mask.fill_(True), active_idx, count, None), None, None


def _scatter_setup(ctx: Context, inputs: tuple, output: Tensor) -> None:
    _, mask, active_idx, count, base = inputs
    ctx.save_for_backward(mask, active_idx, count)
    ctx.has_base = base is not None


def _scatter_backward(ctx: Context, grad: Tensor) -> tuple:
    mask, active_idx, count = ctx.saved_tensors
    rows_grad = _gather(grad, active_idx, count) if ctx.needs_input_grad[0] else None
    base_grad = None
    if ctx.has_base and ctx.needs_input_grad[4]:
        base_grad = grad.masked_fill(mask, 0)
    return rows_grad, None, None, None, base_grad


_gather: Operation = differentiable(
    "gather_pixels",
    setup_context=_gather_setup,
    backward=_gather_backward,
    vmap=loop_over(lambda *arguments: _gather(*arguments)),
)
_scatter: Operation = differentiable(
    "scatter_pixels",
    setup_context=_scatter_setup,
    backward=_scatter_backward,
    vmap=loop_over(lambda *arguments: _scatter(*arguments)),
)
