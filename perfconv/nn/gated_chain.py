"""GatedChain: residual blocks in a row, each of which may write into what the last one made."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from perfconv.nn.gated_block import GatedBlock
from perfconv.nn.hooks import has_global_hooks, has_hooks
from perfconv.nn.in_place import InPlaceBlock

Step = Callable[[Tensor], Tensor]


class GatedChain(nn.Sequential):
    """An ``nn.Sequential`` whose blocks may overwrite the output of the block before them.

    What ``fuse(inplace=True)`` makes of an ``nn.Sequential`` with gated blocks. Permission goes
    with the call: the chain knows that it alone holds that output. A block that anybody else calls,
    or that somebody taps with a hook, overwrites nothing; nor does any while gradients are
    recorded.
    """

    def forward(self, input: Tensor) -> Tensor:
        for step in self.steps(input):
            input = step(input)
        return input

    def steps(self, input: Tensor) -> list[Step]:
        """What to call in turn, the first with ``input``, by a caller who keeps no result."""
        may_overwrite = not torch.is_grad_enabled() and not isinstance(input, torch.fx.Proxy)
        steps: list[Step] = []
        is_ours = False  # whether the input of the step was made here and is held by nobody else
        for layer in self:
            is_free = may_overwrite and isinstance(layer, InPlaceBlock) and layer.takes_permission()
            steps.append(partial(layer, owns_input=True) if is_ours and is_free else layer)
            is_ours = is_free
        return steps

    @staticmethod
    def suits(model: nn.Module) -> bool:
        """Whether ``model`` is a plain ``nn.Sequential`` in which a gated block has a neighbour."""
        return type(model) is nn.Sequential and any(
            isinstance(before, InPlaceBlock)
            and isinstance(after, InPlaceBlock)
            and (isinstance(before, GatedBlock) or isinstance(after, GatedBlock))
            for before, after in pairwise(model.children())
        )


def steps_of(layer: nn.Module, input: Tensor) -> Sequence[Step]:
    """The steps of a :class:`GatedChain` that is called as it is; other layers are one step.

    A caller of the steps frees the input of the first when that is done; ``layer(input)`` would
    hold it to the end.
    """
    if type(layer) is not GatedChain or has_hooks(layer) or has_global_hooks():
        return (layer,)
    is_replaced = "forward" in layer.__dict__ or layer._compiled_call_impl is not None
    return (layer,) if is_replaced else layer.steps(input)
