"""torch.library.opcheck for every operator of csrc/library.cpp: schema, fake kernel, autograd, AOT.

Each with and without requires_grad, contiguous and channels_last; a new operator must be added.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from helpers import Problem, relayout
from torch import Tensor

import perfconv

OPS = torch.ops.perfconv
GEOMETRY = [[1, 1], [1, 1, 1, 1], [1, 1]]  # stride, padding (four sides), dilation
FORMATS = ("contiguous", "channels_last")

Make = Callable[[bool, str], tuple[tuple, dict]]


@cache
def problem() -> dict[str, Tensor]:
    tensors = Problem(fill="passthrough", has_residual=True).tensors(torch.float32)
    active = perfconv.compact_mask(tensors["mask"])
    return {**tensors, "active_idx": active.active_idx, "count": active.count}


def operand(name: str, requires_grad: bool, layout: str = "contiguous") -> Tensor:
    return relayout(problem()[name], layout).detach().clone().requires_grad_(requires_grad)


def conv(**options) -> Make:
    def make(requires_grad: bool, layout: str) -> tuple[tuple, dict]:
        arguments = [
            operand(name, requires_grad, layout if name == "input" else "contiguous")
            for name in ("input", "weight")
        ]
        bias, residual = operand("bias", requires_grad), operand("residual", requires_grad, layout)
        base = operand("base", requires_grad) if options.get("fill") == "passthrough" else None
        shared = {"padding": [1, 1, 1, 1], "base": base, "bias": bias, "residual": residual}
        return (*arguments, problem()["mask"]), shared | options

    return make


def into(**options) -> Make:
    def make(requires_grad: bool, layout: str) -> tuple[tuple, dict]:  # it has no gradient
        images = (operand(name, False, layout) for name in ("base", "input"))
        shared = {"padding": [1, 1, 1, 1], "bias": operand("bias", False)}
        return (*images, operand("weight", False), problem()["mask"]), shared | options

    return make


def block(is_into: bool, has_gate: bool, has_shortcut: bool) -> Make:
    def make(requires_grad: bool, layout: str) -> tuple[tuple, dict]:  # it has no gradient
        image = operand("base", False, layout)  # 12 channels, as input and output
        shortcut = operand("residual", False, layout) if has_shortcut else None
        images = (image, shortcut) if not is_into else (shortcut, image)
        images = (image, None) if not has_shortcut else images
        weights = [torch.randn(4, 12, 1, 1), torch.randn(4, 4, 3, 3), torch.randn(12, 4, 1, 1)]
        biases = [torch.randn(weight.size(0)) for weight in weights]
        decision = (None, torch.randn(2, 12, 1, 1), torch.zeros(2))
        decision = decision if has_gate else (problem()["mask"], None, None)
        packs = [OPS.pack_weight(weight, 1) for weight in weights] if has_gate else []
        numbers = ([1] * 6, [0, 0, 1, 1, 0, 0], [1] * 6, [1] * 3)
        return (*images, *decision, weights, biases, packs, *numbers, "relu", "relu"), {}

    return make


def dgrad(requires_grad: bool, layout: str) -> tuple[tuple, dict]:
    grad, weight = operand("grad_output", requires_grad, layout), operand("weight", requires_grad)
    listed = problem()["mask"], problem()["active_idx"], problem()["count"]
    return (grad, weight, *listed, [9, 11], layout == "channels_last", *GEOMETRY, 1), {}


def wgrad(requires_grad: bool, layout: str) -> tuple[tuple, dict]:
    grad = operand("grad_output", requires_grad, layout)
    input = operand("input", requires_grad, layout)
    return (grad, input, problem()["mask"], None, None, [3, 3], *GEOMETRY, 1), {}


def backward(wants_bias: bool) -> Make:
    def make(requires_grad: bool, layout: str) -> tuple[tuple, dict]:
        grad = operand("grad_output", requires_grad, layout)
        operands = (operand(name, requires_grad, layout) for name in ("input", "weight"))
        listed = problem()["mask"], problem()["active_idx"], problem()["count"]
        return (grad, *operands, *listed, *GEOMETRY, 1, wants_bias), {}

    return make


def gather(requires_grad: bool, layout: str) -> tuple[tuple, dict]:
    return (operand("input", requires_grad, layout), *listed()), {}


def listed() -> tuple[Tensor, Tensor]:
    return problem()["active_idx"], problem()["count"]


def scatter(requires_grad: bool, layout: str) -> tuple[tuple, dict]:
    rows = torch.randn(problem()["mask"].numel(), 12).requires_grad_(requires_grad)
    return (rows, problem()["mask"], *listed(), operand("base", requires_grad, layout)), {}


def on_image(requires_grad: bool, layout: str) -> tuple[tuple, dict]:
    return (operand("base", requires_grad, layout), problem()["mask"]), {}


def gate(wants_soft: bool) -> Make:
    def make(requires_grad: bool, layout: str) -> tuple[tuple, dict]:
        input = operand("input", requires_grad, layout)
        weight = torch.randn(2, input.size(1), 1, 1).requires_grad_(requires_grad)
        return (input, weight, torch.zeros(2).requires_grad_(requires_grad), wants_soft), {}

    return make


def multi_dilation(is_tied: bool, **options) -> Make:
    def make(requires_grad: bool, layout: str) -> tuple[tuple, dict]:
        shape = (12, 12, 3, 3) if is_tied else (3, 12, 12, 3, 3)
        weight = torch.randn(shape).requires_grad_(requires_grad)
        bias = torch.randn(shape[:-3]).requires_grad_(requires_grad)
        image = operand("base", requires_grad, layout)  # 12 channels
        base = operand("residual", requires_grad) if options["fill"] == "passthrough" else None
        return (image, weight, choice(), bias, base, [0, 1, 3]), options

    return make


def choice() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-1, 3, (2, 1, 9, 11), generator=generator, dtype=torch.int32)


def multi_dilation_dgrad(requires_grad: bool, layout: str) -> tuple[tuple, dict]:
    weight = torch.randn(12, 12, 3, 3).requires_grad_(requires_grad)
    grad = operand("grad_output", requires_grad, layout)
    return (grad, weight, choice(), [0, 1, 3], layout == "channels_last"), {}


def multi_dilation_wgrad(requires_grad: bool, layout: str) -> tuple[tuple, dict]:
    grad, input = (operand(name, requires_grad, layout) for name in ("grad_output", "base"))
    return (grad, input, choice(), 3, [0, 1, 3], False), {}


CASES: dict[str, tuple[str, Make]] = {
    "conv": ("perforated_conv2d", conv()),
    "conv_passthrough_relu": (
        "perforated_conv2d",
        conv(fill="passthrough", activation="relu", activate_base=True),
    ),
    "conv_nearest_silu": ("perforated_conv2d", conv(fill="nearest", activation="silu")),
    "conv_dense": ("perforated_conv2d", conv(algorithm="dense")),
    "conv_gather": ("perforated_conv2d", conv(algorithm="gather_gemm")),
    "conv_direct": ("perforated_conv2d", conv(algorithm="direct")),
    "conv_into": ("perforated_conv2d_into", into(adds_base=True, activation="relu")),
    "conv_into_activated": (
        "perforated_conv2d_into",
        into(activation="silu", activate_base=True, algorithm="dense"),
    ),
    "block": ("gated_block", block(False, False, False)),
    "block_gate": ("gated_block", block(False, True, False)),
    "block_shortcut": ("gated_block", block(False, True, True)),
    "block_into": ("gated_block_into", block(True, True, False)),
    "block_into_shortcut": ("gated_block_into", block(True, False, True)),
    "dgrad": ("perforated_conv2d_dgrad", dgrad),
    "wgrad": ("perforated_conv2d_wgrad", wgrad),
    "gate_mask": ("gate_mask", gate(False)),
    "gate_mask_soft": ("gate_mask", gate(True)),
    "backward": ("perforated_conv2d_backward", backward(True)),
    "backward_without_bias": ("perforated_conv2d_backward", backward(False)),
    "gather_pixels": ("gather_pixels", gather),
    "scatter_pixels": ("scatter_pixels", scatter),
    "multi_dilation_tied": (
        "multi_dilation_conv2d",
        multi_dilation(True, fill="passthrough", activation="silu"),
    ),
    "multi_dilation_untied": (
        "multi_dilation_conv2d",
        multi_dilation(False, fill="nearest", activation="relu"),
    ),
    "multi_dilation_dgrad": ("multi_dilation_dgrad", multi_dilation_dgrad),
    "multi_dilation_wgrad": ("multi_dilation_wgrad", multi_dilation_wgrad),
    "active_sum": ("active_sum", on_image),
    "nearest_fill": ("nearest_fill", on_image),
    "nearest_fill_grad": ("nearest_fill_grad", on_image),
    "compact_mask": ("compact_mask", lambda *_: ((problem()["mask"],), {})),
    "expand_mask": (
        "expand_mask",
        lambda *_: ((problem()["mask"], [3, 3], *GEOMETRY, [9, 11]), {}),
    ),
    "pack_weight": ("pack_weight", lambda *_: ((problem()["weight"], 1), {})),
}


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "requires_grad"])
@pytest.mark.parametrize("name", CASES)
def test_opcheck(name: str, requires_grad: bool, layout: str) -> None:
    op, make = CASES[name]
    arguments, options = make(requires_grad, layout)
    torch.library.opcheck(getattr(OPS, op).default, arguments, options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("op", ["perforated_conv2d", "pack_weight"])
def test_fake_kernel_in_other_dtypes(op: str, dtype: torch.dtype) -> None:
    weight = problem()["weight"].to(dtype)
    arguments = (weight, 1)
    if op == "perforated_conv2d":
        arguments = (problem()["input"].to(dtype), weight, problem()["mask"])
    options = {} if op == "pack_weight" else {"padding": [1, 1, 1, 1]}
    torch.library.opcheck(getattr(OPS, op).default, arguments, options)


@pytest.mark.parametrize(
    "changes",
    [
        {"in_channels": 1, "out_channels": 1},
        {"batch": 1, "size": (1, 1)},
        {"size": (1, 11)},
        {"batch": 0},
        {"out_channels": 1},
        {"in_channels": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", FORMATS)
def test_fake_kernel_with_sides_of_one(changes: dict, layout: str) -> None:
    """Sides of one or zero make formats ambiguous; real and fake strides must still agree."""
    tensors = Problem(**changes).tensors(torch.float32)
    input = relayout(tensors["input"], layout)
    options = {"padding": [1, 1, 1, 1], "bias": tensors["bias"]}
    torch.library.opcheck(
        OPS.perforated_conv2d.default,
        (input.requires_grad_(), tensors["weight"].requires_grad_(), tensors["mask"]),
        options,
    )


def test_every_operator_is_here() -> None:
    schemas = torch._C._jit_get_all_schemas()
    operators = {schema.name for schema in schemas if schema.name.startswith("perfconv::")}
    without_tensors = {"perfconv::set_break_even"}  # test_tuning.py
    assert operators == {f"perfconv::{op}" for op, _ in CASES.values()} | without_tensors
