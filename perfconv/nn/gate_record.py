"""The gates of a whole model: listing, recording, forcing, temperature, parameter groups."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from perfconv.nn.gate import BinaryGate, Gate, NoisyGate, is_in_backward
from perfconv.nn.scale_gate import ScaleChoice, ScaleGate
from perfconv.ops.mask import density as mask_density

AnyGate = TypeVar("AnyGate", bound=NoisyGate)
COMPILED = "_orig_mod."  # what torch.compile puts before the names of a module's children


class GateCall(NamedTuple):
    """One call of one gate."""

    name: str  # of the layer that owns the gate, as in named_modules()
    gate: Gate
    pixel_macs: int  # that one open pixel costs; 0 if nobody said

    @property
    def macs(self) -> int:
        """MACs of one image if the gate is open everywhere."""
        return self.pixel_macs * self.gate.mask.shape[2:].numel()


class _Link(NamedTuple):
    call: GateCall
    before: "_Link | None"


class ChoiceCall(NamedTuple):
    """One call of one gate over K branches."""

    name: str  # of the pooling module that owns the gate, as in named_modules()
    choice: ScaleChoice


class _ChoiceLink(NamedTuple):
    call: ChoiceCall
    before: "_ChoiceLink | None"


class GateRecord:
    """The calls of every gate while a ``record_gates`` context is open, in call order.

    Gates over K branches are recorded apart, in ``choices``: the density loss has no say in them.
    """

    # A linked list: torch.compile guards the length of a list, and would compile anew for every
    # further call of a model in one context.
    _last: _Link | None = None
    _last_choice: _ChoiceLink | None = None

    def add(self, name: str, gate: Gate, pixel_macs: int) -> None:
        if not is_in_backward():  # a checkpointed block runs twice
            self._last = _Link(GateCall(name, gate, pixel_macs), self._last)

    def add_choice(self, name: str, choice: ScaleChoice) -> None:
        if not is_in_backward():
            self._last_choice = _ChoiceLink(ChoiceCall(name, choice), self._last_choice)

    @property
    def calls(self) -> list[GateCall]:
        calls = []
        link = self._last
        while link is not None:
            calls.append(link.call)
            link = link.before
        return calls[::-1]

    @property
    def choices(self) -> list[ChoiceCall]:
        """Scale choices, in call order."""
        calls = []
        link = self._last_choice
        while link is not None:
            calls.append(link.call)
            link = link.before
        return calls[::-1]

    @property
    def gates(self) -> list[Gate]:
        return [call.gate for call in self.calls]

    def densities(self) -> dict[str, Tensor]:
        """The density of each layer's masks, (N,) per image; the mean over calls of one layer.

        Notes: detached. No host sync.
        """
        found: dict[str, list[Tensor]] = {}
        for call in self.calls:
            found.setdefault(call.name, []).append(mask_density(call.gate.mask))
        return {name: torch.stack(values).mean(0) for name, values in found.items()}

    def __iter__(self) -> Iterator[GateCall]:
        return iter(self.calls)

    def __len__(self) -> int:
        return len(self.calls)

    def __bool__(self) -> bool:
        return self._last is not None


@contextmanager
def record_gates(model: nn.Module) -> Iterator[GateRecord]:
    """Collects every :class:`Gate` of ``model`` in call order, for the density loss and statistics.

    A module called twice is recorded twice; a checkpointed block once, whether its backward pass
    runs inside the context or not (``use_reentrant=False``; the other kind computes the first time
    without gradients). Works under ``torch.compile(fullgraph=True)``, also of a part of the model;
    torch refuses a checkpoint inside the compiled part. Contexts may be nested. The record keeps
    the graph of the gates alive for as long as it lives; the model keeps nothing.

    Args:
        model: any module; without gates the record stays empty.

    Example:
        >>> gate = perfconv.nn.PixelGate(4)
        >>> with record_gates(gate) as record:
        ...     _ = gate(torch.randn(2, 4, 5, 5))
        >>> len(record), record.gates[0].soft.shape
        (1, torch.Size([2, 1, 5, 5]))
    """
    record = GateRecord()
    found: dict[str, BinaryGate | ScaleGate] = {**gates(model), **scale_gates(model)}
    for name, gate in found.items():
        gate._recorders = (*gate._recorders, (record, name))
    try:
        yield record
    finally:
        for gate in found.values():
            gate._recorders = tuple(entry for entry in gate._recorders if entry[0] is not record)


def gates(model: nn.Module) -> dict[str, BinaryGate]:
    """Every gate of ``model`` by the name of the layer that owns it.

    A gate called ``gate`` goes by the name of its block: "layer1.0" for "layer1.0.gate".

    Example:
        >>> list(gates(nn.ModuleDict({"stem": nn.ReLU(), "gate": perfconv.nn.PixelGate(4)})))
        ['gate']
    """
    return _named(model, BinaryGate)


def scale_gates(model: nn.Module) -> dict[str, ScaleGate]:
    """Every gate over K branches of ``model``, by the name of the module that owns it."""
    return _named(model, ScaleGate)


def _named(model: nn.Module, kind: type[AnyGate]) -> dict[str, AnyGate]:
    return {
        name.replace(COMPILED, "").removesuffix(".gate"): module
        for name, module in model.named_modules()
        if isinstance(module, kind)
    }


def force_gates(
    model: nn.Module,
    density: float | None = None,
    *,
    generator: torch.Generator | None = None,
) -> None:
    """Sets every gate of ``model`` to a fixed behaviour, until the next call.

    Gates over K branches, those of pools, choose as ever: each branch computes as much as any
    other, so that their choice has no density.

    Args:
        model: any module; changed in place.
        density: 1.0 all open, 0.0 all closed, between them random masks of that expected density
            (per image for a ``LayerGate``), None the learned decisions again.
        generator: of the random masks; None is torch's global generator.

    Raises:
        ValueError: ``density`` is outside [0, 1], or ``model`` has no gate.

    Example:
        >>> gate = perfconv.nn.PixelGate(4)
        >>> force_gates(gate, 0.0)
        >>> bool(gate(torch.randn(1, 4, 5, 5)).mask.any())
        False
    """
    if density is not None and not 0 <= density <= 1:
        raise ValueError(
            f"force_gates: density must be in [0, 1] (the share of active pixels), or None for "
            f"the learned gates, got {density}. Divide active pixels by all pixels."
        )
    for gate in _some_gates("force_gates", model):
        gate._forced_density = None if density is None else float(density)
        gate._forced_generator = generator


def set_temperature(model: nn.Module, temperature: float) -> None:
    """Sets the temperature of every gate of ``model``, scale gates too: the step of a schedule.

    Raises:
        ValueError: ``temperature`` is not above 0, or ``model`` has no gate.

    Example:
        >>> gate = perfconv.nn.PixelGate(4)
        >>> set_temperature(gate, perfconv.schedules.linear_temperature(50, 100))
        >>> gate.temperature
        0.505
    """
    scales = scale_gates(model)
    binary = list(gates(model).values()) if scales else _some_gates("set_temperature", model)
    for gate in [*binary, *scales.values()]:
        gate.temperature = temperature


def parameter_groups(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    gate_learning_rate_factor: float = 1.0,
) -> list[dict]:
    """Parameter groups for an optimiser: the gates, without weight decay, and everything else.

    Weight decay pulls the logits together and the density to one half, away from its target.

    Args:
        model: any module; parameters that need no gradient are left out.
        learning_rate, weight_decay: of everything but the gates.
        gate_learning_rate_factor: times ``learning_rate`` for the gates; the authors use 1 and 10.

    Returns:
        [gates, others], each a dict with "params", "lr" and "weight_decay".

    Raises:
        ValueError: ``model`` has no gate.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 1), perfconv.nn.PixelGate(4))
        >>> groups = parameter_groups(model, learning_rate=0.1, gate_learning_rate_factor=10)
        >>> [group["lr"] for group in groups]
        [1.0, 0.1]
    """
    of_gates = {
        id(parameter)
        for gate in _some_gates("parameter_groups", model)
        for parameter in gate.parameters()
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {
            "params": [parameter for parameter in trained if id(parameter) in of_gates],
            "lr": learning_rate * gate_learning_rate_factor,
            "weight_decay": 0.0,
        },
        {
            "params": [parameter for parameter in trained if id(parameter) not in of_gates],
            "lr": learning_rate,
            "weight_decay": weight_decay,
        },
    ]


def _some_gates(function: str, model: nn.Module) -> list[BinaryGate]:
    found = list(gates(model).values())
    if not found:
        raise ValueError(
            f"{function}: the model must have gates, got a {type(model).__name__} without any. "
            "Give it PixelGate or LayerGate modules."
        )
    return found
