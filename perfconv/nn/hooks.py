"""Who looks on: hooks on modules."""

import torch
from torch import nn


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
    has_global = not torch.compiler.is_compiling() and nn.modules.module._has_any_global_hook()
    return has_global or any(has_hooks(part) for part in module.modules())
