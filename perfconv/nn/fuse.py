"""fuse: BatchNorm into the convolutions before it, and weights packed, for inference."""

import copy
from collections import Counter
from itertools import pairwise
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

from perfconv.nn.batch_norm import folded, includes_activation, is_foldable
from perfconv.nn.conv import PerforatedConv2d, prepack
from perfconv.nn.gated_block import GatedBlock
from perfconv.nn.gated_chain import GatedChain
from perfconv.nn.hooks import has_hooks

Model = TypeVar("Model", bound=nn.Module)


@runtime_checkable
class FoldsBranches(Protocol):
    """A pooling module, whose branches become one packed weight."""

    def fuse_branches(self) -> None: ...


def fuse(model: Model, *, inplace: bool = False) -> Model:
    """A copy of ``model`` for inference: BatchNorm folded into convolutions, weights packed.

    Folded are the layers of gated blocks, where the shift of a BatchNorm becomes a bias that is
    added at active pixels only, the branches of pooling modules, every ``nn.Conv2d`` that a
    BatchNorm follows in an ``nn.Sequential``, such as a projection, and what a module of ours says
    by ``conv_norm_pairs``, paths of layers that its ``forward`` runs in a row. Nothing is folded
    across a layer with a hook: somebody looks at what is between; nor into a convolution that the
    model holds at a second place, nor in a subclass of ``nn.Sequential`` with a ``forward`` of its
    own.
    State-dict keys change: keep the unfused model for training.

    With ``inplace`` gated blocks write their output into memory that they alone hold: an identity
    block into the output of the block before it in an ``nn.Sequential`` (which becomes a
    :class:`GatedChain`), a projection block into its shortcut. Inactive pixels are then not even
    copied. So do plain blocks of ``perfconv.models`` beside gated ones, such as one with a pool.
    Nothing is written into the model's input, a feature that leaves its ``nn.Sequential``, or what
    a hook sees, and nothing while gradients are recorded.

    Args:
        model: in eval mode; left as it is.
        inplace: as above; needs channels_last memory to be of use.

    Returns:
        A deep copy. Its convolutions in gated blocks are ``PerforatedConv2d`` with packed weights
        that need no gradient (``perfconv.prepack``), their BatchNorms ``nn.Identity``, or the
        activation that a BatchNorm of timm includes.

    Raises:
        ValueError: ``model`` is in training mode.

    Example:
        >>> layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
        >>> fuse(layers)[1]
        Identity()
    """
    if model.training:
        raise ValueError(
            "fuse: the model must be in eval mode, got one in training mode, whose BatchNorm "
            "statistics still change. Call model.eval()."
        )
    fused = copy.deepcopy(model)
    uses = Counter(id(part) for module in fused.modules() for part in module._modules.values())
    for module in list(fused.modules()):
        for conv_path, norm_path in getattr(module, "conv_norm_pairs", ()):
            if uses[id(module.get_submodule(conv_path))] == 1:
                _fold(module, conv_path, norm_path)
        if isinstance(module, GatedBlock):
            for stage in module.stages:
                if uses[id(module.get_submodule(stage.conv))] == 1:
                    _fold(module, stage.conv, stage.norm)
                _perforate(module.get_submodule(stage.conv), stage.padding)
            module.overwrites_shortcut = inplace and _makes_a_tensor(module.projection)
        elif isinstance(module, FoldsBranches):
            module.fuse_branches()
        elif isinstance(module, nn.Sequential):
            runs_in_order = type(module).forward is nn.Sequential.forward
            names = list(module._modules) if runs_in_order else []
            for name, following in pairwise(names):
                conv = getattr(module, name)
                # A perforated layer's inactive pixels went through the BatchNorm too.
                if type(conv) is nn.Conv2d and uses[id(conv)] == 1:
                    _fold(module, name, following)
        if inplace and GatedChain.suits(module):
            module.__class__ = GatedChain
    return prepack(fused)


@torch.no_grad()
def _fold(parent: nn.Module, conv_path: str, norm_path: str) -> None:
    conv, norm = parent.get_submodule(conv_path), parent.get_submodule(norm_path)
    if not isinstance(conv, nn.Conv2d) or isinstance(norm, nn.Identity) or not is_foldable(norm):
        return
    if norm.training or has_hooks(conv) or has_hooks(norm):
        return
    weight, bias = folded(conv, norm)
    assert bias is not None
    conv.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    conv.bias = nn.Parameter(bias, requires_grad=conv.weight.requires_grad)
    owner, _, name = norm_path.rpartition(".")
    left = norm.get_submodule("act") if includes_activation(norm) else nn.Identity()
    setattr(parent.get_submodule(owner), name, left.eval())  # as the layer it replaces


def _makes_a_tensor(projection: nn.Module | None) -> bool:
    """Whether a shortcut is the result of a convolution, which nobody else holds."""
    layers = [] if projection is None else list(projection.modules())
    kinds = [type(layer) for layer in layers if not isinstance(layer, nn.Identity)]
    return bool(kinds) and kinds[-1] in (nn.Conv2d, PerforatedConv2d, nn.BatchNorm2d)


def _perforate(conv: nn.Module, padding: tuple[int, int]) -> None:
    """``prepack`` packs perforated layers; code of a subclass's own that pads is left behind."""
    if isinstance(conv, nn.Conv2d) and not isinstance(conv, PerforatedConv2d):
        vertical, horizontal = conv.padding = padding
        conv._reversed_padding_repeated_twice = [horizontal, horizontal, vertical, vertical]
        conv.__class__ = PerforatedConv2d
