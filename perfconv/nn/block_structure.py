"""What makes a module a plain residual block, found by its layers and the order they stand in.

A plain residual block is shortcut + branch, perhaps with a ReLU around. The branch is a chain of
convolutions, each followed by its BatchNorm and, but for the last, by an activation, with a
squeeze-excite before the last one if there is any. Layers are taken in the order in which the block
holds them, at any depth, so that names do not matter. That ``forward`` really computes this cannot
be seen from the layers; ``perfconv.convert`` compares outputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from perfconv.nn.batch_norm import FUNCTIONS, activate, is_foldable
from perfconv.nn.conv import PerforatedConv2d
from perfconv.ops.conv import ACTIVATIONS

SHORTCUTS = ("downsample", "proj", "shortcut")
# They drop whole branches while training, as gates do; classes of timm and torchvision.
STOCHASTIC_DEPTHS = ("DropPath", "StochasticDepth")

Leaf = tuple[str, nn.Module]


class Activation(NamedTuple):
    """A layer that is an activation by what it computes."""

    path: str
    kind: str  # its class
    function: str  # a key of FUNCTIONS


class NotResidual(ValueError):
    """Why a module is no plain residual block: half a sentence about "it"."""


class Stage(NamedTuple):
    """A convolution, its BatchNorm and what follows; layers by their paths inside the block."""

    conv: str
    norm: str
    activation: str | None  # by its name in perforated_conv2d
    padding: tuple[int, int]  # (h, w), whether the convolution or its own code adds it


class SqueezeExcite(NamedTuple):
    """x * gate(expand(activation(reduce(mean of x)))), by paths and names of functions."""

    reduce: str
    activation: str
    expand: str
    gate: str


@dataclass(frozen=True)
class BlockStructure:
    """The layers of a plain residual block."""

    stages: tuple[Stage, ...]
    shortcut: str | None  # path of the projection, None: the input itself
    squeeze: SqueezeExcite | None  # before the last stage
    # The one that serves after every stage, perhaps after the sum, or stands after the last only.
    outer: Activation | None
    is_outer_shared: bool
    left_out: tuple[str, ...]  # paths of layers that act in training only


def block_structure(block: nn.Module) -> BlockStructure:
    """The layers of ``block`` in their roles.

    Raises:
        NotResidual: they are not those of a plain residual block.
    """
    leaves = list(branch_layers(block))
    convs = [index for index, (_, layer) in enumerate(leaves) if isinstance(layer, nn.Conv2d)]
    squeezing = _find_squeeze(leaves, convs)
    staged = [index for index in convs if index not in squeezing]
    if len(staged) < 2:
        raise NotResidual(f"it has {len(staged)} convolutions in a row, not two or three")
    if squeezing and not staged[-2] < squeezing[0] < staged[-1]:
        raise NotResidual("its squeeze-excite is not before its last convolution")
    chain = [cast(nn.Conv2d, leaves[index][1]) for index in staged]
    shortcut = _shortcut(block)
    _check_chained(chain, has_projection=shortcut is not None)
    # Of a squeeze-excite is what stands between its first layer and the next convolution.
    scaled = range(squeezing[0], staged[-1]) if squeezing else range(0)
    functions = _functions(leaves)
    acts = {
        index: found
        for index, found in functions.items()
        if found.function in ACTIVATIONS and index not in scaled
    }
    is_interleaved = any(index < staged[-1] for index in acts)
    shared = None if is_interleaved else _only_one(list(acts.values()))
    stages = []
    for index, following in pairwise([*staged, len(leaves)]):
        own = next((acts[a] for a in acts if index < a < following), None)
        activation = None
        if index != staged[-1]:
            activation = _name(own) if is_interleaved else _name(shared, "relu")
        stages.append(_stage(leaves, index, own, activation))
    squeeze = None
    known = {*convs, *acts, *(index + 1 for index in staged)}
    if squeezing:
        _check_squeezable(*chain[-2:])
        known |= _check_squeeze(leaves, scaled, functions)
        squeeze = _squeeze(leaves, squeezing, scaled, functions, shared)
    left_out = _check_others(leaves, known)
    trailing = [found for index, found in acts.items() if index > staged[-1]]
    outer = trailing[0] if is_interleaved and trailing else shared
    return BlockStructure(tuple(stages), shortcut, squeeze, outer, shared is not None, left_out)


def refusal(
    structure: BlockStructure, depths: tuple[int, ...], sum_activation: str | None
) -> str | None:
    """Why a block has not as many stages, or not this activation after the sum; None if it has."""
    if len(structure.stages) not in depths:
        wanted = " or ".join(map(str, depths))
        return f"it has {len(structure.stages)} convolutions in a row, not {wanted}"
    outer = structure.outer
    if outer is None:
        return None
    if sum_activation == "relu" and outer.function != "relu":
        return f"its {outer.path} is a {outer.kind}, not a ReLU"
    if sum_activation is None and not structure.is_outer_shared:
        return f"it has an activation after its last layer, {outer.path}"
    return None


def branch_layers(module: nn.Module, path: str = "") -> Iterator[Leaf]:
    """The layers in the order in which they were registered, without those of the shortcut."""
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if not path and name in SHORTCUTS:
            continue
        if isinstance(child, nn.Conv2d | _BatchNorm):
            yield child_path, child
            activation = getattr(child, "act", None)  # timm has BatchNorms with one
            if isinstance(activation, nn.Module):
                yield f"{child_path}.act", activation
        elif any(True for _ in child.children()):
            yield from branch_layers(child, child_path)
        else:
            yield child_path, child


def _functions(leaves: list[Leaf]) -> dict[int, Activation]:
    """The activations among the layers, whatever their classes, by their places."""
    probe = torch.linspace(-8, 8, 65, device="cpu")
    found = {}
    for index, (path, layer) in enumerate(leaves):
        if any(True for _ in layer.parameters()) or any(True for _ in layer.buffers()):
            continue
        try:
            output = layer.forward(probe.clone())
        except (RuntimeError, TypeError, ValueError, IndexError):  # no function of single values
            continue
        for name in FUNCTIONS:
            if isinstance(output, torch.Tensor) and torch.equal(output, activate(probe, name)):
                found[index] = Activation(path, type(layer).__name__, name)
    return found


def _name(found: Activation | None, otherwise: str | None = None) -> str | None:
    return otherwise if found is None else found.function


def _find_squeeze(leaves: list[Leaf], convs: list[int]) -> tuple[int, ...]:
    """Where reduce and expand stand: two 1x1 in a row to fewer channels and back, without norms."""
    for before, after in pairwise(convs):
        reduce, expand = (cast(nn.Conv2d, leaves[index][1]) for index in (before, after))
        is_pointwise = reduce.kernel_size == expand.kernel_size == (1, 1)
        is_narrow = reduce.in_channels == expand.out_channels > reduce.out_channels
        following = [layer for _, layer in leaves[before + 1 : after + 2]]
        has_norm = any(isinstance(layer, _BatchNorm) for layer in following)
        if is_pointwise and is_narrow and reduce.out_channels == expand.in_channels:
            if has_norm:
                continue
            return before, after
    return ()


def _squeeze(
    leaves: list[Leaf],
    squeezing: tuple[int, ...],
    scaled: range,
    functions: dict[int, Activation],
    shared: Activation | None,
) -> SqueezeExcite:
    """With the activations in it, or else the one of the block and a sigmoid."""
    within = [functions[index].function for index in scaled if index in functions]
    activation = next((name for name in within if name in ACTIVATIONS), _name(shared, "relu"))
    gate = next((name for name in within if name not in ACTIVATIONS), "sigmoid")
    reduce, expand = (leaves[index][0] for index in squeezing)
    assert activation is not None
    return SqueezeExcite(reduce, activation, expand, gate)


def _check_squeeze(leaves: list[Leaf], scaled: range, functions: dict[int, Activation]) -> set[int]:
    """The places of a squeeze-excite's layers, with the pooling before it; nothing else in it."""
    for index in scaled:
        path, layer = leaves[index]
        if index not in functions and not isinstance(layer, nn.Conv2d | nn.Identity):
            raise NotResidual(f"its squeeze-excite has a layer {path}, a {type(layer).__name__}")
    before = leaves[scaled.start - 1][1]
    pools = isinstance(before, nn.AdaptiveAvgPool2d) and before.output_size in (1, (1, 1))
    return {*scaled, *([scaled.start - 1] if pools else [])}


def _stage(leaves: list[Leaf], index: int, own: Activation | None, activation: str | None) -> Stage:
    path, conv = leaves[index]
    norm_path, norm = leaves[index + 1] if index + 1 < len(leaves) else ("", None)
    # A BatchNorm that had an activation of its own leaves that activation when it is fused.
    is_fused = own is not None and activation is not None and own.path == norm_path
    if norm is None or (not is_fused and not is_foldable(norm)):
        if norm is None or isinstance(norm, nn.Conv2d):
            raise NotResidual(f"its {path} has no BatchNorm after it")
        kind = type(norm).__name__
        raise NotResidual(f"its {norm_path} is a {kind}, not a BatchNorm with running statistics")
    return Stage(path, norm_path, activation, _padding(path, cast(nn.Conv2d, conv)))


def _padding(path: str, conv: nn.Conv2d) -> tuple[int, int]:
    """The zeros around the input, those that a subclass adds in code of its own too."""
    has_numbers = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    if type(conv) in (nn.Conv2d, PerforatedConv2d):
        if not has_numbers:
            raise NotResidual(
                f"its {path} has padding {conv.padding!r}, {conv.padding_mode!r}, not numbers of "
                "zeros"
            )
        return cast(tuple[int, int], conv.padding)
    vertical, horizontal = (
        spacing * (size - 1) // 2
        for spacing, size in zip(conv.dilation, conv.kernel_size, strict=True)
    )
    for padding in (conv.padding, (vertical, horizontal)):
        if has_numbers and _pads_by(conv, cast(tuple[int, int], padding)):
            return cast(tuple[int, int], padding)
    raise NotResidual(f"its {path} is a {type(conv).__name__}, which is not a Conv2d by its output")


def _pads_by(conv: nn.Conv2d, padding: tuple[int, int]) -> bool:
    """Whether a subclass of Conv2d computes the convolution with this padding."""
    if hasattr(conv, "parametrizations") or conv.weight.device.type == "meta":
        return False
    reach = max(s * (k - 1) + 1 for s, k in zip(conv.dilation, conv.kernel_size, strict=True))
    size = (reach | 1, (reach | 1) + 1)  # odd and even: some pad the two differently
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, conv.in_channels, *size, generator=generator).to(conv.weight)
    with torch.no_grad():
        wanted = conv.forward(image)
        found = F.conv2d(
            image, conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups
        )
    if wanted.shape != found.shape:
        return False
    return bool((found - wanted).abs().max() <= 1e-3 * wanted.abs().max())


def _only_one(activations: list[Activation]) -> Activation | None:
    if len({found.function for found in activations}) > 1:
        names = " and ".join(found.path for found in activations)
        raise NotResidual(f"its activations {names} differ, and their places cannot be seen")
    return activations[0] if activations else None


def _shortcut(block: nn.Module) -> str | None:
    found = [
        name
        for name, child in block.named_children()
        if name in SHORTCUTS and not isinstance(child, nn.Identity)
    ]
    if len(found) > 1:
        raise NotResidual(f"it has more than one shortcut, {' and '.join(found)}")
    return found[0] if found else None


def _check_others(leaves: list[Leaf], known: set[int]) -> tuple[str, ...]:
    """Paths of the layers that act in training only; nothing else may be left over."""
    left_out = []
    for index, (path, layer) in enumerate(leaves):
        if index in known or isinstance(layer, nn.Identity):
            continue
        is_random = isinstance(layer, _DropoutNd) or type(layer).__name__ in STOCHASTIC_DEPTHS
        if not is_random:
            raise NotResidual(f"it has a further layer {path}, a {type(layer).__name__}")
        left_out.append(path)
    return tuple(left_out)


def _check_chained(convs: list[nn.Conv2d], *, has_projection: bool) -> None:
    for before, after in pairwise(convs):
        if before.out_channels != after.in_channels:
            raise NotResidual(
                f"its layers do not fit, {before.out_channels} to {after.in_channels} channels"
            )
    has_stride = any(conv.stride != (1, 1) for conv in convs)
    if not has_projection and (has_stride or convs[0].in_channels != convs[-1].out_channels):
        raise NotResidual("it changes the shape without a downsample layer")


def _check_squeezable(before: nn.Conv2d, last: nn.Conv2d) -> None:
    """What is pooled is a mixture of input and output of the convolution ``before``."""
    if before.in_channels != before.out_channels:
        raise NotResidual(
            "its squeeze-excite pools inputs and outputs of a convolution that changes the "
            f"channels, {before.in_channels} to {before.out_channels}"
        )
    if last.kernel_size != (1, 1) or last.stride != (1, 1):
        raise NotResidual("the convolution after its squeeze-excite is not a 1x1 of stride 1")
