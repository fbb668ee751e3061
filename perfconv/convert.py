"""convert and unconvert: gates for the residual blocks of a network that somebody already has."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, cast

import torch
from torch import nn

from perfconv.nn import (
    GatedBasicBlock,
    GatedBlock,
    GatedBottleneck,
    GatedConv2d,
    GatedInvertedResidual,
    PerforatedConv2d,
    force_gates,
)
from perfconv.nn.block_structure import (
    BlockStructure,
    NotResidual,
    block_structure,
    branch_layers,
)
from perfconv.nn.gate import BinaryGate

Model = TypeVar("Model", bound=nn.Module)

MOST_CONVOLUTIONS = 5  # of a residual block: three, and two of a squeeze-excite
TEST_SIZE = (8, 9)  # pixels of the image on which a block shows what it computes

# What a block takes over from the one it replaces.
HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_backward_hooks",
    "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip


@dataclass(frozen=True)
class ConversionReport:
    """What ``convert`` did; the attribute ``conversion_report`` of the model it returns."""

    converted: dict[str, str]  # name of each gated block: its kind
    left: dict[str, str]  # name of each block that stayed as it was: why
    # Name of each gated block: layers that act in training only, and no more (stochastic depth).
    unused: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} blocks converted, {len(self.left)} left as they were"]
        lines += [f"  {name}: {kind}" for name, kind in self.converted.items()]
        lines += [f"  {name}: left, {reason}" for name, reason in self.left.items()]
        lines += [f"  {name}: without its {', '.join(p)}" for name, p in self.unused.items()]
        return "\n".join(lines)


def convert(
    model: Model,
    *,
    filter: Callable[[str, nn.Conv2d], bool] | None = None,
    gate: Callable[[nn.Module], BinaryGate] | None = None,
    perforate_f3: bool = True,
    execution: str = "auto",
    gate_grad: str = "dense",
    batch_norm: str = "frozen",
    fill: str | None = None,
) -> Model:
    """A copy of ``model`` whose residual blocks have gates, all of them open.

    Converted is what has the layers of a residual block, in their order whatever their names (two
    or three convolutions with BatchNorm, a squeeze-excite or none, a ReLU after the sum or none:
    ResNet, RegNet, MobileNet, EfficientNet; torchvision's, timm's, segmentation-models-pytorch's
    and your own), and, on a random image, the output of one. The converted model computes what the
    old one did; train its gates with ``record_gates`` and ``density_loss``. Stochastic depth is not
    applied in gated blocks.

    Args:
        model: left as it is. Weights, hooks, dtype, device and training flags come along, but the
            BatchNorms of gated blocks are frozen unless ``batch_norm="active"``.
        filter: called with the name and the module of each convolution outside such blocks; those
            for which it says True become :class:`perfconv.nn.GatedConv2d`. For plain networks.
        gate: makes the gate of a plain block or convolution; the default is an open ``PixelGate``.
        perforate_f3: of bottlenecks; those whose 3x3 has a stride or changes the channels take
            True.
        execution, gate_grad, batch_norm: as for :class:`perfconv.nn.GatedBlock`.
        fill: as for :class:`perfconv.nn.GatedConv2d`.

    Returns:
        A deep copy. State-dict keys are the old ones and new ones under ``*.gate.*``. Its attribute
        ``conversion_report`` lists what was converted, what was left, and why.

    Raises:
        TypeError: ``model`` is no ``nn.Module``, or one that was scripted or compiled.
        ValueError: nothing in it can be converted (the message says why), it has gates already,
            or what is to be converted shares a layer.

    Example:
        >>> plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        >>> convert(plain)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: convert: the model must have a residual block, got a Sequential without any...
    """
    check_model("convert", model)
    if any(isinstance(module, GatedBlock | GatedConv2d) for module in model.modules()):
        raise ValueError(
            "convert: the model must not have gated blocks yet, got one with. Convert the plain "
            "model, or call unconvert first."
        )
    blocks, left = find_blocks(model)
    convolutions = [] if filter is None else _find_convolutions(model, blocks, filter)
    if not blocks and not convolutions:
        reasons = "".join(f" {name or 'The model'}: {reason}." for name, reason in left.items())
        raise ValueError(
            f"convert: the model must have a residual block, got a {type(model).__name__} without "
            f"any.{reasons} Give a network with the layers of torchvision's or timm's residual "
            "blocks, or choose convolutions by filter."
        )
    _check_not_shared(model, [*blocks, *convolutions])
    converted = copy.deepcopy(model)
    for name, (kind, structure) in blocks.items():
        block = converted.get_submodule(name)
        options = {"execution": execution, "gate_grad": gate_grad, "batch_norm": batch_norm}
        own_gate = None if gate is None else gate(block)
        if kind is GatedBottleneck:
            middle = cast(nn.Conv2d, block.get_submodule(structure.stages[1].conv))
            is_mixable = middle.stride == (1, 1) and middle.in_channels == middle.out_channels
            gated: GatedBlock = GatedBottleneck(
                block, gate=own_gate, perforate_f3=perforate_f3 or not is_mixable, **options
            )
        else:
            gated = kind(block, gate=own_gate, **options)
        converted = replace(converted, name, gated)
    for name in convolutions:
        conv = cast(nn.Conv2d, converted.get_submodule(name))
        own_gate = None if gate is None else gate(conv)
        wrapped = GatedConv2d(conv, gate=own_gate, gate_grad=gate_grad, fill=fill)
        converted = replace(converted, name, wrapped)
    kinds = {name: kind.__name__ for name, (kind, _) in blocks.items()}
    report = ConversionReport(
        {**kinds, **dict.fromkeys(convolutions, "GatedConv2d")},
        left,
        {name: found.left_out for name, (_, found) in blocks.items() if found.left_out},
    )
    converted.__dict__["conversion_report"] = report  # no module, no parameter
    return converted


def unconvert(model: Model) -> Model:
    """A copy of ``model`` without gates: every gated block is the plain one it was made from.

    Args:
        model: from ``convert``, trained or not; left as it is.

    Returns:
        A deep copy with the present weights and the class and state-dict keys of the plain model.

    Raises:
        TypeError: as ``convert``.
        ValueError: ``model`` has no gated block.
    """
    check_model("unconvert", model)
    plain = copy.deepcopy(model)
    gated = {
        name: module
        for name, module in plain.named_modules()
        if isinstance(module, GatedBlock | GatedConv2d)
    }
    if not gated:
        raise ValueError(
            f"unconvert: the model must have gated blocks, got a {type(model).__name__} without "
            "any. Give it a model that convert returned."
        )
    for name, block in gated.items():
        plain = replace(plain, name, block.to_plain())
    plain.__dict__.pop("conversion_report", None)
    return plain


Blocks = dict[str, tuple[type[GatedBlock], BlockStructure]]


def find_blocks(model: nn.Module) -> tuple[Blocks, dict[str, str]]:
    """The kind for each block that can be gated, and the reason for each that cannot."""
    found: Blocks = {}
    left: dict[str, str] = {}

    def visit(name: str, module: nn.Module) -> None:
        reason = None
        if _may_be_block(module):
            try:
                found[name] = _classified(module)
                return
            except NotResidual as error:
                reason = str(error)
        before = len(found)
        for child_name, child in module.named_children():
            visit(f"{name}.{child_name}" if name else child_name, child)
        if reason is not None and len(found) == before:  # say it once, of the whole block
            for inner in [other for other in left if other.startswith(f"{name}." if name else "")]:
                del left[inner]
            left[name] = reason

    visit("", model)
    return found, left


def _may_be_block(module: nn.Module) -> bool:
    """Something with a forward of its own and as many convolutions as a residual block has."""
    if type(module).forward in (nn.Sequential.forward, nn.Module.forward):
        return False
    layers = [layer for _, layer in branch_layers(module)]
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in layers)
    return 2 <= convolutions <= MOST_CONVOLUTIONS


def _classified(block: nn.Module) -> tuple[type[GatedBlock], BlockStructure]:
    """The family of a block, by its layers and by its output.

    Raises:
        NotResidual: it is of no family; with the refusal of each that its layers suggest.
    """
    structure = block_structure(block)
    families: list[type[GatedBlock]] = [GatedBottleneck, GatedBasicBlock, GatedInvertedResidual]
    if structure.outer is None:  # nothing that could be applied after the sum
        families.reverse()
    families = [kind for kind in families if len(structure.stages) in kind.depths]
    if not families:
        raise NotResidual(f"it has {len(structure.stages)} convolutions in a row, not two or three")
    reasons = []
    for kind in families:
        reason = kind.why_not(structure) or _why_not_residual(block, kind, structure)
        if reason is None:
            return kind, structure
        reasons.append(reason)
    raise NotResidual(", and ".join(dict.fromkeys(reasons)))


def _find_convolutions(
    model: nn.Module,
    blocks: Blocks,
    filter: Callable[[str, nn.Conv2d], bool],
) -> list[str]:
    """Names of the convolutions outside ``blocks`` that ``filter`` chooses."""
    of_blocks = {id(module) for name in blocks for module in model.get_submodule(name).modules()}
    return [
        name
        for name, module in model.named_modules()
        if type(module) in (nn.Conv2d, PerforatedConv2d)
        and id(module) not in of_blocks
        and filter(name, cast(nn.Conv2d, module))
    ]


def _why_not_residual(
    block: nn.Module, kind: type[GatedBlock], structure: BlockStructure
) -> str | None:
    """Whether the block computes, on a random image, what its layers suggest."""
    tried = _randomized_copy(block)
    first = cast(nn.Conv2d, tried.get_submodule(structure.stages[0].conv))
    if first.weight.device.type == "meta":
        return None
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, first.in_channels, *TEST_SIZE, generator=generator, dtype=torch.float64)
    image = image.to(first.weight.device)
    try:
        with torch.no_grad():
            wanted = tried(image.clone())
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        return f"its forward fails on an image: {str(error).splitlines()[0]}"
    gated = kind(tried, execution="dense")
    force_gates(gated, 1.0)
    for execution in ("dense", "sparse"):
        gated.execution = execution
        with torch.no_grad():
            output = gated(image)
        if (
            not isinstance(wanted, torch.Tensor)
            or wanted.shape != output.shape
            or not (output - wanted).abs().max() <= 1e-9 * wanted.abs().max()
        ):
            return f"its forward does not compute {_formula(kind)} with these layers"
    return None


def _formula(kind: type[GatedBlock]) -> str:
    return "shortcut + branch" if kind.sum_activation is None else "ReLU(shortcut + branch)"


def _randomized_copy(block: nn.Module) -> nn.Module:
    """In float64 and eval mode, without hooks; a BatchNorm of weight 0 would hide the branch."""
    generator = torch.Generator().manual_seed(1)
    tried = copy.deepcopy(block).double().eval()
    with torch.no_grad():
        for module in tried.modules():
            for hooks in HOOKS[:-1]:
                getattr(module, hooks).clear()
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for value in (module.weight, module.running_var, module.bias, module.running_mean):
                    if value is not None:
                        drawn = torch.rand(value.shape, generator=generator) + 0.5
                        value.copy_(drawn.to(value.device, value.dtype))
    return tried


def check_model(function: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{function}: the model must be a torch.nn.Module, got {type(model).__name__}. Give "
            "it the network itself."
        )
    for name, module in model.named_modules():
        is_scripted = isinstance(module, torch.jit.ScriptModule)
        if is_scripted or isinstance(module, torch._dynamo.OptimizedModule):
            raise TypeError(
                f"{function}: the model must not be {'scripted' if is_scripted else 'compiled'}, "
                f"got {name or 'the whole model'}. Convert it first, then compile it."
            )


def _check_not_shared(model: nn.Module, chosen: list[str]) -> None:
    """No layer with parameters or buffers of what is chosen is used at a second place."""
    places: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        places.setdefault(id(module), []).append(name)
    for chosen_name in chosen:
        for module in model.get_submodule(chosen_name).modules():
            names = places[id(module)]
            has_state = any(True for _ in module.parameters()) or any(
                True for _ in module.buffers()
            )
            if has_state and len(names) > 1:
                raise ValueError(
                    f"convert: blocks must not share layers, got one {type(module).__name__} as "
                    f"{' and '.join(names)}. Copy it, or build the network from perfconv.nn "
                    "modules."
                )


def replace(model: Model, name: str, block: nn.Module) -> Model:
    """``model`` with ``block`` at ``name``, with the hooks of what was there."""
    old = model.get_submodule(name)
    for hooks in HOOKS:
        setattr(block, hooks, getattr(old, hooks))
    if not name:
        return block  # type: ignore[return-value]
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, block)
    return model
