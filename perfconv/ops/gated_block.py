"""gated_block: a residual block in inference, its branch at the active pixels of a mask or gate."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perfconv import _ext  # noqa: F401  (loads the operators)
from perfconv.ops import tuning
from perfconv.ops.arguments import (
    are_alike,
    check_bool_mask,
    check_int,
    check_one_device,
    check_own_memory,
    check_same_dtype,
    check_tensor,
    is_channels_last,
    memory_format,
)
from perfconv.ops.autograd import (
    BelowAutograd,
    has_tangent,
    is_eager,
    may_need_gradient,
)
from perfconv.ops.conv import ACTIVATIONS, torch_allows_tf32
from perfconv.ops.mask import ActivePixels


class BlockStages(NamedTuple):
    """The convolutions of a branch, two or more, first to last, BatchNorm folded."""

    weights: list[Tensor]  # (C_out, C_in / groups, K_h, K_w) each
    biases: list[Tensor]  # (C_out,) each
    packed_weights: list[Tensor]  # what pack_weight made of each weight, or an empty list
    stride: list[int]  # (h, w) of the first, (h, w) of the second, ...
    padding: list[int]  # likewise
    dilation: list[int]  # likewise
    groups: list[int]
    activation: str | None  # between the stages
    sum_activation: str | None  # of the sum

    @property
    def total_stride(self) -> tuple[int, int]:
        """Input pixels per output pixel, (h, w)."""
        return prod(self.stride[::2]), prod(self.stride[1::2])


def gated_block(
    input: Tensor,
    stages: BlockStages,
    mask: Tensor | ActivePixels | None = None,
    *,
    gate: tuple[Tensor, Tensor | None] | None = None,
    shortcut: Tensor | None = None,
) -> Tensor:
    """A residual block whose branch is computed at active pixels only, in one operator.

    Active pixels hold ``sum_activation(shortcut + branch(input))``. Inactive pixels hold the
    input's value where the input is the shortcut, else ``sum_activation(shortcut)``. A stage
    before a convolution larger than 1x1 runs where that one reads (``expand_mask``). The same
    numbers as ``perforated_conv2d`` stage by stage. For inference: nothing is differentiable.

    Args:
        input: (N, C_in, H, W), float32 / float64 / bfloat16 / float16. Any memory format;
            channels_last needs no conversion.
        stages: the convolutions of the branch; dtype and device of ``input``.
        mask: (N or 1, 1, H_out, W_out), bool, True = compute, or ActivePixels; None with a gate.
        gate: weight and bias of a 1x1 gate that decides at every stride-th pixel of ``input``, as
            :func:`gate_mask` does; None with a mask.
        shortcut: (N, C_out, H_out, W_out); None: the input.

    Returns:
        (N, C_out, H_out, W_out); dtype, device and memory format of ``input``.

    Raises:
        TypeError: a dtype or type above does not hold.
        ValueError: a shape, range or name above does not hold, or mask and gate are both given or
            both missing.
        RuntimeError: gradients are recorded and a tensor requires one.
        NotImplementedError: a tensor has a tangent of forward mode.

    Notes: deterministic for a given number of threads. MACs: density * dense MACs, the halo of the
        first stages beyond; 2 * C_in for each pixel that the gate looks at.
    Source: Kong and Fowlkes 2019, the gated residual block.
    Example:
        >>> weights, biases = [torch.ones(2, 3, 1, 1), torch.ones(3, 2, 1, 1)], [torch.zeros(2)]
        >>> stages = BlockStages(weights, [*biases, torch.zeros(3)], [], [1] * 4, [0] * 4, [1] * 4,
        ...                      [1, 1], "relu", "relu")
        >>> mask = torch.tensor([[[[True, False]]]])
        >>> gated_block(torch.ones(1, 3, 1, 2), stages, mask)[0, 0].tolist()
        [[7.0, 1.0]]
    """
    op = "gated_block"
    is_direct = is_eager()
    arguments = _checked(op, is_direct, input, stages, mask, gate, shortcut)
    if is_direct:
        return _below_autograd(_block_at_once, input, shortcut, *arguments)[0]
    return torch.ops.perfconv.gated_block(input, shortcut, *arguments)[0]


def gated_block_into(
    base: Tensor,
    stages: BlockStages,
    mask: Tensor | ActivePixels | None = None,
    *,
    gate: tuple[Tensor, Tensor | None] | None = None,
    input: Tensor | None = None,
) -> Tensor:
    """:func:`gated_block` in place: ``base``, the shortcut, becomes the output.

    Inactive pixels are not touched where ``base`` is the input too.

    Args:
        base: (N, C_out, H_out, W_out), changed in place; shares no memory with the other tensors.
            channels_last memory is written directly, other layouts through a copy.
        stages, mask, gate: as in :func:`gated_block`.
        input: (N, C_in, H, W); None: ``base``.

    Returns:
        ``base``.

    Raises:
        TypeError, ValueError, RuntimeError, NotImplementedError: as :func:`gated_block`;
            ValueError also if base shares memory, with others or its own elements (expanded).

    Notes: as :func:`gated_block`.
    """
    op = "gated_block_into"
    check_tensor(op, "base", base)
    check_own_memory(op, "base", base)
    is_direct = is_eager()
    if input is None:
        arguments = _checked(op, is_direct, base, stages, mask, gate, None)
    else:
        arguments = _checked(op, is_direct, input, stages, mask, gate, base)
    if is_direct:
        _below_autograd(_into_at_once, base, input, *arguments)
    else:
        torch.ops.perfconv.gated_block_into(base, input, *arguments)
        if torch.compiler.is_compiling():
            return base
    # The dispatcher counts edits by torch's own operators only; inference tensors count none.
    if not base.is_inference():
        torch.autograd.graph.increment_version(base)
    return base


# What the calls of the operators call: a frame less each (KERNELS.md K-028).
_block_at_once = torch.ops.perfconv.gated_block.default._op
_into_at_once = torch.ops.perfconv.gated_block_into.default._op


def _below_autograd(operator: Callable, *arguments: object) -> Any:
    if torch.is_inference_mode_enabled():
        return operator(*arguments)
    with BelowAutograd():
        return operator(*arguments)


def _checked(
    op: str,
    is_direct: bool,
    input: Tensor,
    stages: BlockStages,
    mask: Tensor | ActivePixels | None,
    gate: tuple[Tensor, Tensor | None] | None,
    shortcut: Tensor | None,
) -> tuple:
    """The arguments of both operators behind their images."""
    tuning.follow_mode()
    gate_weight, gate_bias = (None, None) if gate is None else gate
    tensors = (*stages.weights, *stages.biases, shortcut, gate_weight, gate_bias)
    if not are_alike(input, *tensors):
        check_tensor(op, "input", input)
        check_same_dtype(op, "shortcut", shortcut, input)
        for weight, bias in zip(stages.weights, stages.biases, strict=False):
            check_same_dtype(op, "each weight", weight, input)
            check_same_dtype(op, "each bias", bias, input)
        check_same_dtype(op, "gate weight", gate_weight, input)
        check_same_dtype(op, "gate bias", gate_bias, input)
    for packed in stages.packed_weights:
        if type(packed) is not Tensor:
            check_tensor(op, "each packed weight", packed)
    for count in stages.groups:
        if type(count) is not int:
            check_int(op, "each of groups", count)
    if stages.activation not in ACTIVATIONS or stages.sum_activation not in ACTIVATIONS:
        _refuse_name(op, stages)
    if mask is not None:
        mask = mask.mask if isinstance(mask, ActivePixels) else mask
        check_bool_mask(op, mask)
    if not is_direct or torch.is_grad_enabled():
        _check_no_gradient(op, (input, *tensors))
    return (
        mask, gate_weight, gate_bias, stages.weights, stages.biases, stages.packed_weights,
        stages.stride, stages.padding, stages.dilation, stages.groups,
        stages.activation or "none", stages.sum_activation or "none",
        not input.is_cpu and torch_allows_tf32(),
    )  # fmt: skip


def _refuse_name(op: str, stages: BlockStages) -> None:
    for name in ("activation", "sum_activation"):
        if getattr(stages, name) not in ACTIVATIONS:
            raise ValueError(
                f"{op}: {name} must be one of {', '.join(map(repr, ACTIVATIONS))}, got "
                f"{getattr(stages, name)!r}. Choose one of these."
            )


def _check_no_gradient(op: str, tensors: Sequence[Tensor | None]) -> None:
    if has_tangent(tensors):
        raise NotImplementedError(
            f"{op}: forward-mode differentiation is not built, got a tensor with a tangent. Use "
            "perforated_conv2d stage by stage, and reverse mode."
        )
    if may_need_gradient(tensors):
        raise RuntimeError(
            f"{op}: it is for inference and has no gradient, got a tensor that requires one. Use "
            "torch.no_grad(), or perforated_conv2d stage by stage."
        )


@torch.library.register_fake("perfconv::gated_block")
def _block_fake(
    input: Tensor, shortcut: Tensor | None, mask: Tensor | None, gate_weight: Tensor | None,
    gate_bias: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor],
    packed_weights: Sequence[Tensor], *arguments: object, **options: object,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    _check_devices("gated_block", input, shortcut, mask, gate_weight, gate_bias, weights, biases)
    shape = input.shape if shortcut is None else shortcut.shape
    output = torch.empty(
        shape,
        dtype=input.dtype,
        device=input.device,
        memory_format=memory_format(is_channels_last(input)),
    )
    return output, _decided(input, mask, shape)


@torch.library.register_fake("perfconv::gated_block_into")
def _block_into_fake(
    base: Tensor, input: Tensor | None, mask: Tensor | None, gate_weight: Tensor | None,
    gate_bias: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor],
    packed_weights: Sequence[Tensor], *arguments: object, **options: object,
) -> Tensor:  # fmt: skip
    _check_devices("gated_block_into", base, input, mask, gate_weight, gate_bias, weights, biases)
    return _decided(base, mask, base.shape)


def _check_devices(op: str, first: Tensor, *others: Tensor | Sequence[Tensor] | None) -> None:
    flat = [
        one
        for other in others
        for one in ([other] if other is None or isinstance(other, Tensor) else other)
    ]
    check_one_device(op, "input", first, **{f"tensor {i}": one for i, one in enumerate(flat)})


def _decided(input: Tensor, mask: Tensor | None, shape: Sequence[int]) -> Tensor:
    batch, _, height, width = shape
    size = (batch, 1, height, width) if mask is None else (0,)
    return input.new_empty(size, dtype=torch.bool)
