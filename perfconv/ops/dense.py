"""The operators as dense convolution and mask, in torch's own operators: for exports.

A runtime that does not know perfconv's kernels can run these. They compute every pixel, so a mask
saves nothing there; results are the operators' own up to rounding.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from perfconv import _ext  # noqa: F401  (loads the operators)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda values: values,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
}


def decompositions() -> dict[torch._ops.OpOverload, Callable]:
    """By operator, for ``ExportedProgram.run_decompositions``; those that networks run on images.

    Gradients, gather, scatter and the in-place convolution are not among them.
    """
    ops = torch.ops.perfconv
    return {
        ops.compact_mask.default: compact_mask,
        ops.expand_mask.default: expand_mask,
        ops.gate_mask.default: gate_mask,
        ops.multi_dilation_conv2d.default: multi_dilation_conv2d,
        ops.nearest_fill.default: nearest_fill,
        ops.perforated_conv2d.default: perforated_conv2d,
    }


def compact_mask(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As ``perfconv::compact_mask``; positions ascend."""
    flat = mask.flatten()
    places = torch.where(flat, flat.to(torch.int32).cumsum(0) - 1, flat.numel())
    positions = torch.arange(flat.numel(), dtype=torch.int32, device=mask.device)
    listed = positions.new_full((flat.numel() + 1,), -1).scatter(0, places.long(), positions)
    image_counts = mask.flatten(1).sum(1, dtype=torch.int32)
    return listed[:-1], image_counts.sum(0, keepdim=True, dtype=torch.int32), image_counts


def expand_mask(
    mask: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    input_size: Sequence[int],
) -> Tensor:
    """As ``perfconv::expand_mask``: a transposed convolution with ones."""
    ones = torch.ones((1, 1, *kernel_size), device=mask.device)
    reached = F.conv_transpose2d(mask.float(), ones, stride=list(stride), dilation=list(dilation))
    top, _, left, _ = padding
    height, width = input_size
    rest = max(0, height + top - reached.size(2)), max(0, width + left - reached.size(3))
    reached = F.pad(reached, (0, rest[1], 0, rest[0]))
    return reached[:, :, top : top + height, left : left + width] > 0


def gate_mask(
    input: Tensor, weight: Tensor, bias: Tensor | None, wants_soft: bool
) -> tuple[Tensor, ...]:
    """As ``perfconv::gate_mask``."""
    wide = torch.promote_types(input.dtype, torch.float32)
    kernel = weight.flatten(1)[:, :, None, None].to(wide)
    logits = F.conv2d(input.to(wide), kernel, None if bias is None else bias.to(wide))
    mask = logits[:, 1:] > logits[:, :1]
    soft = logits.softmax(1)[:, 1:] if wants_soft else input.new_empty((0,))
    return (soft.to(input.dtype), mask, *compact_mask(mask))


def perforated_conv2d(
    input: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None,
    base: Tensor | None = None, residual: Tensor | None = None, active_idx: Tensor | None = None,
    count: Tensor | None = None, packed_weight: Tensor | None = None,
    stride: Sequence[int] = (1, 1), padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1), groups: int = 1, fill: str = "zero",
    activation: str = "none", activate_base: bool = False, expected_density: float | None = None,
    algorithm: str = "auto", allow_tf32: bool = False,
) -> Tensor:  # fmt: skip
    """As ``perfconv::perforated_conv2d``; under the fill "none" every pixel is computed."""
    top, bottom, left, right = padding
    if (top, left) != (bottom, right):
        input, top, left = F.pad(input, (left, right, top, bottom)), 0, 0
    dense = F.conv2d(input, weight, bias, list(stride), (top, left), list(dilation), groups)
    if residual is not None:
        dense = dense + residual
    dense = ACTIVATIONS[activation](dense)
    if activate_base and base is not None:
        base = ACTIVATIONS[activation](base)
    return _filled(dense, mask, fill, base)


def multi_dilation_conv2d(
    input: Tensor,
    weight: Tensor,
    choice: Tensor,
    bias: Tensor | None,
    base: Tensor | None,
    dilations: Sequence[int],
    fill: str,
    activation: str,
    allow_tf32: bool = False,
    packed_weight: Tensor | None = None,
) -> Tensor:
    """As ``perfconv::multi_dilation_conv2d``: a dense convolution for each dilation."""
    is_tied = weight.dim() == 4
    found: Tensor | None = None
    for index, step in enumerate(dilations):
        if step == 0:
            branch = input
        else:
            one_bias = bias if is_tied or bias is None else bias[index]
            one_weight = weight if is_tied else weight[index]
            branch = F.conv2d(input, one_weight, one_bias, 1, step * (weight.size(-1) // 2), step)
            branch = ACTIVATIONS[activation](branch)
        found = branch if found is None else torch.where(choice == index, branch, found)
    assert found is not None
    return _filled(found, choice >= 0, fill, base)


def nearest_fill(values: Tensor, mask: Tensor) -> Tensor:
    """As ``perfconv::nearest_fill``: every distance, so for coarse grids only."""
    height, width = values.shape[2:]
    place = torch.arange(height * width, device=values.device)
    rows, columns = place // max(width, 1), place % max(width, 1)
    distance = (rows[:, None] - rows).square() + (columns[:, None] - columns).square()
    # Squared distance first, then the lowest position; inactive pixels come after all others.
    ranked = distance * (height * width) + place
    beyond = 2 * (height * height + width * width) * height * width
    active = mask.expand(values.size(0), 1, height, width).flatten(2)  # (N, 1, H*W)
    source = torch.where(active, ranked, beyond).argmin(2)  # (N, H*W)
    taken = values.flatten(2).gather(2, source[:, None].expand(-1, values.size(1), -1))
    has_any = active.any(2, keepdim=True)  # (N, 1, 1)
    return torch.where(has_any, taken, 0).reshape(values.shape)


def _filled(dense: Tensor, mask: Tensor, fill: str, base: Tensor | None) -> Tensor:
    if fill == "none":
        return dense
    if fill == "nearest":
        return nearest_fill(dense, mask)
    return torch.where(mask, dense, 0 if base is None else base)
