"""How a native operator becomes differentiable.

Each operator gets two registrations of one backward formula: ``torch.library.register_autograd``,
so that an exported graph can still be trained, and an ``autograd.Function`` with ``setup_context``
and ``vmap``, which ``torch.func`` needs. Callers use the function that ``differentiable`` returns.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

Argument = Tensor | int | float | str | bool | list[int] | None
Operation = Callable[..., Tensor]
Context = Any  # torch's objects for setup_context, backward and vmap; attributes are set freely


def differentiable(
    name: str,
    *,
    setup_context: Callable[..., None],
    backward: Callable[..., tuple],
    vmap: Callable[..., tuple],
) -> Operation:
    """Registers gradients and batching of ``perfconv::name``; returns the function to call.

    Args:
        name: operator name without the namespace.
        setup_context: ``(ctx, inputs, output)``, as in ``torch.autograd.Function``.
        backward: ``(ctx, grad)`` to one gradient per operator argument.
        vmap: ``(info, in_dims, *arguments)`` to ``(output, out_dim)``.
    """
    op = getattr(torch.ops.perfconv, name).default
    torch.library.register_autograd(f"perfconv::{name}", backward, setup_context=setup_context)
    torch.library.register_vmap(f"perfconv::{name}", vmap)

    class Function(torch.autograd.Function):
        generate_vmap_rule = False

        @staticmethod
        def forward(*arguments: Argument) -> Tensor:
            return op(*arguments)

    Function.__name__ = Function.__qualname__ = name
    Function.setup_context = staticmethod(setup_context)  # type: ignore[method-assign]
    Function.backward = staticmethod(backward)  # type: ignore[method-assign]
    Function.vmap = staticmethod(vmap)  # type: ignore[method-assign]

    def call(*arguments: Argument) -> Tensor:
        if forward_ad._current_level >= 0:  # the operator alone would drop tangents silently
            try:
                return Function.apply(*arguments)
            except NotImplementedError as error:
                raise NotImplementedError(
                    f"{name}: forward-mode differentiation is not built, got an input with a "
                    "tangent. Use reverse mode: backward(), torch.func.grad, vjp or jacrev."
                ) from error
        if torch.is_grad_enabled() and any(
            isinstance(argument, Tensor) and argument.requires_grad for argument in arguments
        ):
            return Function.apply(*distinct(arguments))
        return op(*arguments)

    return call


def distinct(arguments: Sequence[Argument]) -> list[Argument]:
    """A tensor given twice (the input as the base, say) becomes a view of itself the second time.

    torch.compile refuses functions that get one tensor as two arguments.
    """
    tensors: list[Tensor] = []
    result: list[Argument] = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            if any(argument is other for other in tensors):
                argument = argument.view_as(argument)
            else:
                tensors.append(argument)
        result.append(argument)
    return result


def loop_over(function: Operation) -> Callable[..., tuple]:
    """A vmap rule that calls ``function`` once per mapped slice and stacks the results."""

    def vmap(info: Context, in_dims: tuple, *arguments: Argument) -> tuple[Tensor, int]:
        slices = []
        for index in range(info.batch_size):
            chosen = [  # a list of ints has a list of None for its dim
                argument.select(dim, index)
                if isinstance(argument, Tensor) and dim is not None
                else argument
                for argument, dim in zip(arguments, in_dims, strict=True)
            ]
            slices.append(function(*chosen))
        return torch.stack(slices), 0

    return vmap
