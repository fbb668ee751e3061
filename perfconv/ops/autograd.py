"""How a native operator becomes differentiable.

Each operator gets two registrations of one backward formula: ``torch.library.register_autograd``,
so that an exported graph can still be trained, and an ``autograd.Function`` with ``setup_context``
and ``vmap``, which ``torch.func`` needs. Callers use the function that ``differentiable`` returns.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

Argument = Tensor | int | float | str | bool | list[int] | None
Operation = Callable[..., Any]  # to a tensor, or to a tuple of them
Context = Any  # torch's objects for setup_context, backward and vmap; attributes are set freely


class Differentiable(Protocol):
    """An operator with gradients. ``eager`` is the same for callers that know ``is_eager()``."""

    eager: Operation

    def __call__(self, *arguments: Argument) -> Any: ...


are_transforms_active = torch._C._are_functorch_transforms_active
BelowAutograd = torch._C._AutoDispatchBelowAutograd


def differentiable(
    name: str,
    *,
    setup_context: Callable[..., None],
    backward: Callable[..., tuple],
    vmap: Callable[..., tuple],
) -> Differentiable:
    """Registers gradients and batching of ``perfconv::name``; returns the function to call.

    Args:
        name: operator name without the namespace.
        setup_context: ``(ctx, inputs, output)``, as in ``torch.autograd.Function``.
        backward: ``(ctx, grad)``, of several outputs ``(ctx, *grads)``, to one gradient per
            operator argument.
        vmap: ``(info, in_dims, *arguments)`` to ``(output, out_dim)``.
    """
    op = getattr(torch.ops.perfconv, name).default
    at_once = op._op  # what op.__call__ calls: a frame less
    torch.library.register_autograd(f"perfconv::{name}", backward, setup_context=setup_context)
    torch.library.register_vmap(f"perfconv::{name}", vmap)

    class Function(torch.autograd.Function):
        generate_vmap_rule = False

        @staticmethod
        def forward(*arguments: Argument) -> Tensor | tuple[Tensor, ...]:
            return op(*arguments)

    Function.__name__ = Function.__qualname__ = name
    Function.setup_context = staticmethod(setup_context)  # type: ignore[method-assign]
    Function.backward = staticmethod(backward)  # type: ignore[method-assign]
    Function.vmap = staticmethod(vmap)  # type: ignore[method-assign]

    class EagerFunction(torch.autograd.Function):
        """The same without torch.func and torch.compile: fewer steps on the way (K-013)."""

        @staticmethod
        def forward(ctx: Context, *arguments: Argument) -> Any:
            with BelowAutograd():
                output = at_once(*arguments)
            setup_context(ctx, arguments, output)
            return output

    EagerFunction.__name__ = EagerFunction.__qualname__ = name
    EagerFunction.backward = staticmethod(backward)  # type: ignore[method-assign]

    def eager(*arguments: Argument) -> Any:
        if torch.is_inference_mode_enabled():
            return at_once(*arguments)
        if may_need_gradient(arguments):
            return EagerFunction.apply(*arguments)
        with BelowAutograd():
            return at_once(*arguments)

    def call(*arguments: Argument) -> Any:
        if is_eager():
            return eager(*arguments)
        if forward_ad._current_level >= 0:  # the operator alone would drop tangents silently
            try:
                return Function.apply(*arguments)
            except NotImplementedError as error:
                raise NotImplementedError(
                    f"{name}: forward-mode differentiation is not built, got an input with a "
                    "tangent. Use reverse mode: backward(), torch.func.grad, vjp or jacrev."
                ) from error
        if needs_function(arguments):
            return Function.apply(*distinct(arguments))
        return op(*arguments)

    call.eager = eager  # type: ignore[attr-defined]
    return call  # type: ignore[return-value]


def needs_function(arguments: Sequence[Argument]) -> bool:
    """Whether a gradient may be asked for, so that the operator alone would not do."""
    if not torch.compiler.is_compiling() and is_transformed():
        return True
    return may_need_gradient(arguments)


def may_need_gradient(arguments: Sequence[Argument]) -> bool:
    """Whether autograd records and an argument requires a gradient."""
    if not torch.is_grad_enabled():
        return False
    for argument in arguments:  # noqa: SIM110  (a generator is a frame more, K-028)
        if isinstance(argument, Tensor) and argument.requires_grad:
            return True
    return False


def has_tangent(tensors: Sequence[Tensor | None]) -> bool:
    """Whether forward mode differentiates along one of the tensors."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return False
    return any(
        tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None
        for tensor in tensors
    )


def is_eager() -> bool:
    """Whether neither torch.compile, torch.export, torch.func nor forward mode looks on."""
    return not (
        torch.compiler.is_compiling() or are_transforms_active() or forward_ad._current_level >= 0
    )


def is_transformed() -> bool:
    """Whether a ``torch.func`` transform is at work, which finds its rules at the Function.

    A tensor that vmap has batched does not tell whether the one it wraps requires a gradient.
    Inside the operator's own vmap rule the dispatcher no longer looks for transforms.
    """
    front = torch._C.DispatchKey.FuncTorchDynamicLayerFrontMode
    return torch._C._are_functorch_transforms_active() and not (
        torch._C._dispatch_tls_is_dispatch_key_excluded(front)
    )


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
    """A vmap rule that calls ``function`` once per mapped slice and stacks the results.

    Without any slice it calls it once with zeros, for the shape of the result.
    """

    def vmap(info: Context, in_dims: tuple, *arguments: Argument) -> tuple:
        slices = []
        for index in range(max(1, info.batch_size)):
            chosen = [  # a list of ints has a list of None for its dim
                _slice(argument, dim, index)
                if isinstance(argument, Tensor) and dim is not None
                else argument
                for argument, dim in zip(arguments, in_dims, strict=True)
            ]
            slices.append(function(*chosen))
        if isinstance(slices[0], Tensor):
            return torch.stack(slices)[: info.batch_size], 0
        results = tuple(
            torch.stack(parts)[: info.batch_size] for parts in zip(*slices, strict=True)
        )
        return results, (0,) * len(results)

    return vmap


def _slice(mapped: Tensor, dim: int, index: int) -> Tensor:
    """Slice ``index``; zeros where there is none."""
    if mapped.size(dim) == 0:
        return mapped.sum(dim).to(mapped.dtype)
    return mapped.select(dim, index)
