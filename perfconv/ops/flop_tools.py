"""Our operators for two tools that count FLOPs: fvcore and ptflops. Neither is imported here."""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

from torch.utils.flop_counter import flop_registry

from perfconv.ops import flops  # noqa: F401  (registers the formulas)

NAMESPACE = "perfconv"


def ptflops_hooks() -> dict[Any, Callable]:
    """What ``ptflops.get_model_complexity_info`` takes as ``custom_modules_hooks``.

    For its ``backend="aten"``, which sees operators and their tensors: MACs that the masks need,
    exact for the input that ptflops made (give it an ``input_constructor``). Its other backend sees
    modules only, and misses what a gated block computes.

    Example:
        >>> torch.ops.perfconv.perforated_conv2d in ptflops_hooks()
        True
    """
    return {
        operator: partial(_formula_macs, formula)
        for operator, formula in flop_registry.items()
        if getattr(operator, "_qualified_op_name", "").startswith(f"{NAMESPACE}::")
    }


def fvcore_handles() -> dict[str, Callable]:
    """What ``FlopCountAnalysis(...).set_op_handle(**handles)`` of fvcore takes.

    fvcore sees the shapes of a traced graph, no masks: MACs as if every pixel were active. Count
    inside ``torch.no_grad()``, where the operators are not wrapped for gradients, and a model whose
    gates are open; for what masks save there is ``perfconv.flops.count``.

    Example:
        >>> sorted(fvcore_handles())[0]
        'perfconv::gate_mask'
    """
    return {
        f"{NAMESPACE}::perforated_conv2d": partial(_dense_macs, 0),
        f"{NAMESPACE}::perforated_conv2d_into": partial(_dense_macs, 0),
        f"{NAMESPACE}::multi_dilation_conv2d": partial(_dense_macs, -4),
        f"{NAMESPACE}::gate_mask": _gate_macs,
    }


def _formula_macs(formula: Callable, args: Sequence[Any], outputs: tuple) -> int:
    output = outputs if len(outputs) > 1 else outputs[0]
    return formula(*args, out_val=output) // 2


def _dense_macs(first: int, inputs: Sequence[Any], outputs: Sequence[Any]) -> float:
    """Output pixels times the elements of one weight, its dimensions from ``first`` on."""
    batch, _, height, width = _shape(outputs[0])
    weight = next(shape for shape in map(_shape, inputs[1:]) if len(shape) >= 4)
    return float(batch * height * width * prod(weight[first:]))


def _gate_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> float:
    """Two logits at every pixel."""
    return float(2 * prod(_shape(inputs[0])))


def _shape(value: Any) -> list[int]:
    """Of a value in a traced graph; empty for what is no tensor."""
    kind = value.type()
    return list(kind.sizes() or ()) if kind.kind() == "TensorType" else []
