"""perforated_conv2d_into: a perforated convolution written into an image that is there already."""

from collections.abc import Sequence

import torch
from torch import Tensor

from perfconv import _ext  # noqa: F401  (loads the operators)
from perfconv.ops import tuning
from perfconv.ops.arguments import (
    IntPair,
    check_one_device,
    check_own_memory,
    check_same_dtype,
    check_tensor,
    four_sided_padding,
    int_pair,
)
from perfconv.ops.autograd import has_tangent, may_need_gradient
from perfconv.ops.conv import (
    check_names,
    check_weight_rank,
    mask_and_list,
    torch_allows_tf32,
)
from perfconv.ops.mask import ActivePixels

OP = "perforated_conv2d_into"


def perforated_conv2d_into(
    base: Tensor,
    input: Tensor,
    weight: Tensor,
    mask: Tensor | ActivePixels,
    bias: Tensor | None = None,
    *,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    activation: str | None = None,
    adds_base: bool = False,
    activate_base: bool = False,
    expected_density: float | None = None,
    algorithm: str = "auto",
    packed_weight: Tensor | None = None,
) -> Tensor:
    """``perforated_conv2d`` with the passthrough fill, in place: ``base`` becomes the output.

    Active pixels of ``base`` become ``activation(conv2d(input, weight, bias) + base)``, without
    ``base`` unless ``adds_base``. The others stay as they are and are not touched, or with
    ``activate_base`` become ``activation(base)``. For inference: nothing is differentiable.

    Args:
        base: (N, C_out, H_out, W_out), changed in place; shares no memory with the other tensors.
            channels_last memory is written directly, other layouts through a copy.
        input, weight, mask, bias: as in ``perforated_conv2d``, input with a batch dimension; dtype
            and device of ``base``. torch.autocast converts nothing here.
        adds_base: base is also the residual.
        activate_base: also apply the activation where the mask is False.
        (all others): as in ``perforated_conv2d``.

    Returns:
        ``base``.

    Raises:
        TypeError: a dtype or type above does not hold.
        ValueError: a shape, range or name above does not hold, or base shares memory, with others
            or its own elements (expanded).
        RuntimeError: gradients are recorded and a tensor requires one.
        NotImplementedError: a tensor has a tangent of forward mode.

    Notes: deterministic for a given number of threads. MACs: density * dense MACs.
    Example:
        >>> base, mask = torch.ones(1, 2, 2, 2), torch.eye(2, dtype=torch.bool)[None, None]
        >>> input, weight = torch.ones(1, 3, 2, 2), torch.ones(2, 3, 1, 1)
        >>> perforated_conv2d_into(base, input, weight, mask, adds_base=True)[0, 0].tolist()
        [[4.0, 1.0], [1.0, 4.0]]
    """
    tuning.follow_mode()
    check_tensor(OP, "base", base)
    for name, value in (("input", input), ("weight", weight), ("bias", bias)):
        check_same_dtype(OP, name, value, base)
    if packed_weight is not None:
        check_tensor(OP, "packed_weight", packed_weight)
    check_names(OP, "none", activation, algorithm, groups, expected_density)
    mask, active_idx, count = mask_and_list(OP, mask)
    check_weight_rank(OP, weight)
    check_own_memory(OP, "base", base)
    if has_tangent((base, input, weight, bias)):
        raise NotImplementedError(
            f"{OP}: forward-mode differentiation is not built, got a tensor with a tangent. Use "
            "perforated_conv2d and reverse mode."
        )
    if may_need_gradient((base, input, weight, bias)):
        raise RuntimeError(
            f"{OP}: no gradient can flow through an image that is overwritten, got a tensor that "
            "requires one. Use torch.no_grad(), or perforated_conv2d with "
            'fill="passthrough".'
        )
    steps = int_pair(OP, "stride", stride)
    spacing = int_pair(OP, "dilation", dilation)
    torch.ops.perfconv.perforated_conv2d_into(
        base,
        input,
        weight,
        mask,
        bias,
        active_idx,
        count,
        packed_weight,
        steps,
        four_sided_padding(OP, padding, weight.shape[2:], spacing, steps),
        spacing,
        groups,
        activation or "none",
        adds_base,
        activate_base,
        expected_density,
        algorithm,
        torch_allows_tf32(),
    )
    # The dispatcher counts edits by torch's own operators only; inference tensors count none.
    if not torch.compiler.is_compiling() and not base.is_inference():
        torch.autograd.graph.increment_version(base)
    return base


@torch.library.register_fake("perfconv::perforated_conv2d_into")
def _into_fake(
    base: Tensor, input: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None,
    active_idx: Tensor | None = None, count: Tensor | None = None,
    packed_weight: Tensor | None = None, stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0), dilation: Sequence[int] = (1, 1), groups: int = 1,
    activation: str = "none", adds_base: bool = False, activate_base: bool = False,
    expected_density: float | None = None, algorithm: str = "auto", allow_tf32: bool = False,
) -> None:  # fmt: skip
    check_one_device(
        OP, "base", base, input=input, weight=weight, mask=mask, bias=bias,
        active_idx=active_idx, count=count, packed_weight=packed_weight,
    )  # fmt: skip
