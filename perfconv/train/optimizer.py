"""The optimiser of a stage: parameter groups with rates of their own, and their schedule."""

from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from perfconv.nn import gates, parameter_groups
from perfconv.train.config import Stage


def choose_trained(network: nn.Module, stage: Stage) -> None:
    """Parameters that match ``stage.trained`` learn, the others do not.

    Raises:
        ValueError: none matches.
    """
    found = False
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in stage.trained))
        found |= parameter.requires_grad
    if not found:
        raise ValueError(
            f"stage {stage.name!r}: trained must match parameters of the network, got "
            f"{list(stage.trained)}. Patterns are those of fnmatch, such as 'heads.*'."
        )


def make_optimizer(network: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """SGD or AdamW over groups that know their own rate, the key "rate".

    Binary gates have no weight decay; see :func:`perfconv.nn.parameter_groups`.
    """
    rate = stage.learning_rate
    if gates(network):
        groups = parameter_groups(
            network,
            learning_rate=rate,
            weight_decay=stage.weight_decay,
            gate_learning_rate_factor=stage.gate_rate_factor,
        )
    else:
        trained = [p for p in network.parameters() if p.requires_grad]
        groups = [{"params": trained, "lr": rate, "weight_decay": stage.weight_decay}]
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    split = [part for group in groups for part in _split(group, names, stage)]
    for group in split:
        group["rate"] = group["lr"]
    if stage.optimizer == "adamw":
        return torch.optim.AdamW(split)
    return torch.optim.SGD(split, momentum=stage.momentum)


def set_rates(optimizer: torch.optim.Optimizer, stage: Stage, step: int, steps: int) -> float:
    """The rates of a step, rate * (1 - step / steps) ** power; returns the factor."""
    factor = (1 - step / steps) ** stage.power
    for group in optimizer.param_groups:
        group["lr"] = group["rate"] * factor
    return factor


def _split(group: dict, names: dict[int, str], stage: Stage) -> list[dict]:
    """A group as one for each factor of ``rate_factors``."""
    by_factor: dict[float, list[Tensor]] = {}
    for parameter in group["params"]:
        by_factor.setdefault(_factor(names[id(parameter)], stage), []).append(parameter)
    return [
        {**group, "params": parameters, "lr": group["lr"] * factor}
        for factor, parameters in by_factor.items()
    ]


def _factor(name: str, stage: Stage) -> float:
    for pattern, factor in stage.rate_factors.items():
        if fnmatchcase(name, pattern):
            return float(factor)
    return 1.0
