"""Who looks on: hooks on modules, tracers."""

from typing import Any

import torch
from torch import Tensor, nn


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks at the input, the output or the gradient of ``module``."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_tapped(module: nn.Module | None) -> bool:
    """Whether ``module`` or a part of it has hooks, or there are hooks on every module."""
    if module is None:
        return False
    return has_global_hooks() or _has_hooks_within(module)


def names_argument(module: nn.Module, argument: str) -> bool:
    """Whether the ``forward`` of ``module`` names ``argument``, and not only takes it along."""
    code = getattr(module.forward, "__code__", None)  # faster than inspect.signature
    if code is None:
        return False
    return argument in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]


def has_global_hooks() -> bool:
    """Whether there are hooks on every module."""
    return not torch.compiler.is_compiling() and nn.modules.module._has_any_global_hook()


def _has_hooks_within(module: nn.Module) -> bool:
    if has_hooks(module):
        return True
    for part in module._modules.values():  # noqa: SIM110  (a generator is a frame more, K-028)
        if part is not None and _has_hooks_within(part):
            return True
    return False


def as_leaf(module: nn.Module, input: torch.fx.Proxy) -> Tensor:
    """The call of ``module`` as one node of the graph that torch.fx traces.

    What a gate decides, no trace can follow; torchvision's ``create_feature_extractor`` traces.
    """
    tracer: Any = input.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (input,), {})
