"""GatedChain: gated blocks in a row, each of which may write into what the one before it made."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from perfconv.nn.gated_block import GatedBlock
from perfconv.nn.hooks import has_hooks, is_tapped


class GatedChain(nn.Sequential):
    """An ``nn.Sequential`` whose gated blocks may overwrite the output of the block before them.

    What ``fuse(inplace=True)`` makes of an ``nn.Sequential``. Permission goes with the call: the
    chain knows that it alone holds that output. A block that anybody else calls, or that somebody
    taps with a hook, overwrites nothing; nor does any while gradients are recorded.
    """

    def forward(self, input: Tensor) -> Tensor:
        may_overwrite = not torch.is_grad_enabled() and not isinstance(input, torch.fx.Proxy)
        is_ours = False  # whether input was made here and is held by nobody else
        for layer in self:
            if not isinstance(layer, GatedBlock):
                input, is_ours = layer(input), False
                continue
            is_free = may_overwrite and not has_hooks(layer) and not is_tapped(layer.gate)
            input = layer(input, owns_input=True) if is_ours and is_free else layer(input)
            is_ours = is_free
        return input

    @staticmethod
    def suits(model: nn.Module) -> bool:
        """Whether ``model`` is a plain ``nn.Sequential`` with a gated block after another one."""
        return type(model) is nn.Sequential and any(
            isinstance(before, GatedBlock) and isinstance(after, GatedBlock)
            for before, after in pairwise(model.children())
        )
