"""Residual blocks that may write their output into their input, with the permission of the call."""

import torch
from torch import Tensor, nn

from perfconv.nn.hooks import is_tapped, names_argument
from perfconv.ops.autograd import is_eager


class InPlaceBlock(nn.Module):
    """A residual block whose ``forward`` takes ``owns_input``, as a keyword.

    True says that nobody reads the input afterwards, so that the output may be written into it.
    Otherwise the output is a new tensor, which the block does not keep. A ``forward`` that does not
    name ``owns_input``, of a subclass or put in its place, promises none of it.
    """

    def takes_permission(self) -> bool:
        """Whether the block knows of permissions, and nobody may keep its input or output."""
        return names_argument(self, "owns_input") and not self.is_watched()

    def is_watched(self) -> bool:
        """Whether a hook may see the block's input or output, and keep it."""
        return is_tapped(self)


def is_inference() -> bool:
    """Whether nothing that is written over may be needed again by a gradient or a transform."""
    return not torch.is_grad_enabled() and (torch.compiler.is_compiling() or is_eager())


def added(shortcut: Tensor, branch: Tensor, owns_shortcut: bool) -> Tensor:
    """``shortcut + branch``, in inference into the shortcut where nobody else holds that.

    A compiler finds out by itself which memory is free.
    """
    may_overwrite = owns_shortcut and is_inference() and not torch.compiler.is_compiling()
    if may_overwrite and shortcut.dtype == branch.dtype:
        return shortcut.add_(branch)
    return branch + shortcut
