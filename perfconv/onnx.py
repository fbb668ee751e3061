"""ONNX: networks with perforated layers as dense convolution and mask."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perfconv.ops.dense import decompositions

__all__ = ["decompositions", "dense_program", "export"]


def export(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    path: str | Path,
    *,
    dynamic_shapes: Any = None,
    opset_version: int = 20,
) -> None:
    """Writes ``model`` as an ONNX file with every perforated convolution dense, and its mask.

    The file gives the numbers of the network, not its savings: an ONNX runtime computes every pixel
    and then takes those of the mask, and every branch of a pool.

    Args:
        model: in eval mode.
        inputs: of its ``forward``.
        path: of the file.
        dynamic_shapes: of ``torch.export.export``; None: the sizes of ``inputs`` for ever. Sides of
            images must then be multiples of a parser's output stride, ``8 * Dim("h")``.
        opset_version: of ONNX.

    Raises:
        RuntimeError: the packages onnx and onnxscript are not installed.
        ValueError: the model is in training mode, or runs an operator without a dense form.

    Example:
        perfconv.onnx.export(model.eval(), (torch.rand(1, 3, 425, 560),), "network.onnx")
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RuntimeError(
            f"onnx.export: the package {error.name} is needed and not installed. Install it: "
            "pip install 'perfconv[onnx]'."
        ) from error
    program = dense_program(model, inputs, dynamic_shapes=dynamic_shapes)
    torch.onnx.export(
        program, (), str(path), dynamo=True, opset_version=opset_version, external_data=False,
        verbose=False,
    )  # fmt: skip


def dense_program(
    model: nn.Module, inputs: tuple[Tensor, ...], *, dynamic_shapes: Any = None
) -> torch.export.ExportedProgram:
    """``model`` exported, without an operator of perfconv: for ONNX and other runtimes.

    Args, Raises: as :func:`export`.

    Example:
        >>> layer = perfconv.nn.GatedConv2d(nn.Conv2d(3, 3, 3, padding=1)).eval()
        >>> program = dense_program(layer, (torch.rand(1, 3, 8, 8),))
        >>> program.module()(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """
    if model.training:
        raise ValueError(
            "onnx.export: the model must be in eval mode, got one in training mode, whose gates "
            "draw noise. Call model.eval()."
        )
    with torch.no_grad():
        program = torch.export.export(model, inputs, dynamic_shapes=dynamic_shapes)
        program = program.run_decompositions(_table())
    left = sorted({str(op) for node in program.graph.nodes for op in _our_operators(node)})
    if left:
        raise ValueError(
            "onnx.export: every operator must have a dense form, got a model that runs "
            f"{', '.join(left)}. Export it before fuse(inplace=True)."
        )
    return program


def _table() -> dict[torch._ops.OpOverload, Callable]:
    return {**torch.export.default_decompositions(), **decompositions()}


def _our_operators(node: torch.fx.Node) -> list[torch._ops.OpOverload]:
    """That a node calls, itself or, in place, through torch's functionalization."""
    values = (node.target, *node.args)
    return [v for v in values if isinstance(v, torch._ops.OpOverload) and v.namespace == "perfconv"]
