"""multi_dilation_conv2d and its gradients against dense branches in float64."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from helpers import DTYPES, LAYOUTS, assert_as_exact, assert_no_row_missing, largest, relayout
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import perfconv
from perfconv.ops import multi_dilation_grad, reference

OPERANDS = ("input", "weight", "bias", "base")


@dataclass(frozen=True)
class Case:
    """One convolution with a random choice, -1 among the values."""

    batch: int = 2
    in_channels: int = 16
    out_channels: int = 16
    size: tuple[int, int] = (9, 11)
    kernel: int = 3
    dilations: tuple[int, ...] = (0, 1, 2, 4)
    is_tied: bool = True
    is_bias_shared: bool = True
    has_bias: bool = True
    activation: str | None = None
    fill: str = "zero"
    lowest: int = -1
    only: int | None = None  # every pixel chooses this

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor | None]:
        generator = torch.Generator().manual_seed(5)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator).to(dtype)

        branches = [] if self.is_tied else [len(self.dilations)]
        shape = (self.batch, 1, *self.size)
        choice = torch.randint(self.lowest, len(self.dilations), shape, generator=generator)
        if self.only is not None:
            choice = torch.full_like(choice, self.only)
        image = (self.batch, self.out_channels, *self.size)
        weight = (*branches, self.out_channels, self.in_channels, self.kernel, self.kernel)
        bias = [] if self.is_bias_shared else [len(self.dilations)]
        return {
            "input": normal(self.batch, self.in_channels, *self.size),
            "weight": normal(*weight),
            "choice": choice,
            "bias": normal(*bias, self.out_channels) if self.has_bias else None,
            "base": normal(*image) if self.fill == "passthrough" else None,
            "grad_output": normal(*image),
        }

    @property
    def options(self) -> dict:
        return {"dilations": self.dilations, "activation": self.activation, "fill": self.fill}


CASES = {
    "tied": Case(),
    "untied": Case(is_tied=False, is_bias_shared=False),
    "one-branch": Case(dilations=(3,)),
    "one-copy": Case(dilations=(0,), has_bias=False),
    "no-copy": Case(dilations=(1, 2), in_channels=12, out_channels=20),
    "untied-shared-bias": Case(dilations=(1, 2), in_channels=7, out_channels=5, is_tied=False),
    "all-active": Case(lowest=0),
    "nothing-active": Case(only=-1),
    "one-chosen": Case(only=2, is_tied=False),
    "two-copies": Case(dilations=(0, 2, 0), is_tied=False),
    "repeated": Case(dilations=(2, 2, 1)),
    "dilation-beyond-map": Case(dilations=(0, 1, 40)),
    "one-by-one": Case(kernel=1, dilations=(0, 1)),
    "five": Case(kernel=5, dilations=(1, 2), in_channels=4, out_channels=6),
    "several-chunks": Case(batch=1, size=(30, 40), out_channels=40, dilations=(1, 3), lowest=0),
    "no-image": Case(batch=0),
    "relu": Case(activation="relu", is_tied=False, is_bias_shared=False),
    "silu-passthrough": Case(activation="silu", fill="passthrough"),
    "hardswish-nearest": Case(activation="hardswish", fill="nearest"),
}


def run(function: Callable[..., Tensor], tensors: dict, case: Case, **options: object) -> dict:
    leaves = {name: tensors[name] for name in OPERANDS if tensors[name] is not None}
    leaves = {name: value.detach().requires_grad_() for name, value in leaves.items()}
    output = function(choice=tensors["choice"], **leaves, **case.options, **options)
    grads = torch.autograd.grad(
        output, list(leaves.values()), tensors["grad_output"], materialize_grads=True
    )
    return {"output": output.detach(), **dict(zip(leaves, grads, strict=True))}


def away_from_kinks(case: Case, tensors: dict) -> Tensor:
    """The gradient of the output, zero at pixels near a kink of the activation."""
    double = {name: tensors[name] for name in (*OPERANDS, "choice")}
    linear = {**case.options, "activation": None}
    values = reference.multi_dilation_conv2d(**double, **linear)
    near = torch.zeros_like(values, dtype=torch.bool)
    for kink in {"relu": (0.0,), "hardswish": (-3.0, 3.0)}.get(case.activation or "", ()):
        near |= (values - kink).abs() < 64 * torch.finfo(torch.bfloat16).eps
    return torch.where(near, 0, tensors["grad_output"])


def check(case: Case, dtype: torch.dtype, layout: str = "contiguous") -> None:
    tensors = case.tensors(dtype)
    tensors["grad_output"] = away_from_kinks(case, tensors)
    double = {
        name: value.double() if value is not None and value.is_floating_point() else value
        for name, value in tensors.items()
    }
    exact = run(reference.multi_dilation_conv2d, double, case)
    dense = run(reference.multi_dilation_conv2d, tensors, case, dtype=dtype)
    sizes = {
        name: value.abs() if value is not None and value.is_floating_point() else value
        for name, value in double.items()
    }
    linear = Case(**{**vars(case), "activation": None})
    sums = run(reference.multi_dilation_conv2d, sizes, linear)
    if case.activation in ("silu", "hardswish"):  # a rounding moves the slope too (helpers.py)
        eps = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        kept = max(1.0, eps / 8) if dtype != torch.float64 else 1.0
        slopes = 1 + largest(sums["output"]) / 2 * kept
        sums = {name: value if name == "output" else value * slopes for name, value in sums.items()}
    for name in ("input", "base", "grad_output"):
        tensors[name] = relayout(tensors[name], layout)
    results = run(perfconv.multi_dilation_conv2d, tensors, case)
    for name, result in results.items():
        assert_as_exact(name, result, exact[name], dense[name], sums[name])
        if name != "output":
            assert_no_row_missing(name, result, exact[name], dense[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_against_the_oracle(name: str, dtype: torch.dtype) -> None:
    check(CASES[name], dtype)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "expanded"])
def test_layouts(layout: str) -> None:
    check(CASES["untied"], torch.float32, layout)


def test_the_output_follows_the_layout_of_the_input() -> None:
    case = Case()
    tensors = case.tensors(torch.float32)
    for layout in ("contiguous", "channels_last"):
        input = relayout(tensors["input"], layout)
        output = perfconv.multi_dilation_conv2d(
            input, tensors["weight"], tensors["choice"], **case.options
        )
        assert output.stride() == input.stride()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integer_types_of_the_choice(dtype: torch.dtype) -> None:
    tensors = Case(lowest=0).tensors(torch.float32)
    expected = run(perfconv.multi_dilation_conv2d, tensors, Case())
    found = run(perfconv.multi_dilation_conv2d, {**tensors, "choice": tensors["choice"].to(dtype)},
                Case())  # fmt: skip
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_pixels_outside_the_receptive_field_are_never_read() -> None:
    """A copy and one convolution; NaN wherever neither reads."""
    choice = torch.full((1, 1, 12, 12), -1)
    choice[0, 0, 2, 2], choice[0, 0, 8, 8] = 0, 1
    input, grad = torch.full((1, 16, 12, 12), torch.nan), torch.full((1, 16, 12, 12), torch.nan)
    input[..., 2, 2] = input[..., 6:11:2, 6:11:2] = 1.0
    grad[..., 2, 2] = grad[..., 8, 8] = 1.0
    weight = torch.randn(2, 16, 16, 3, 3).requires_grad_()
    input.requires_grad_()
    output = perfconv.multi_dilation_conv2d(input, weight, choice, dilations=(0, 2))
    assert output.isfinite().all()
    for result in torch.autograd.grad(output, (input, weight), grad):
        assert result.isfinite().all()


SMALL = [
    Case(batch=1, in_channels=2, out_channels=2, size=(4, 5), dilations=(0, 1, 2)),
    Case(batch=1, in_channels=2, out_channels=2, size=(4, 5), dilations=(0, 2), is_tied=False,
         is_bias_shared=False, activation="silu", fill="passthrough"),
    Case(batch=1, in_channels=2, out_channels=2, size=(4, 5), dilations=(0, 1),
         activation="silu", fill="nearest"),
]  # fmt: skip


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck(case: Case) -> None:
    tensors = case.tensors(torch.float64)
    names = [name for name in OPERANDS if tensors[name] is not None]
    leaves = tuple(tensors[name].requires_grad_() for name in names)

    def function(*values: Tensor) -> Tensor:
        named = dict(zip(names, values, strict=True))
        return perfconv.multi_dilation_conv2d(choice=tensors["choice"], **named, **case.options)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("name", ["tied", "untied", "all-active", "untied-shared-bias"])
def test_packed_weights(name: str) -> None:
    """The same bits with a pack; one of other weights is noticed and not used."""
    case = CASES[name]
    tensors = case.tensors(torch.float32)
    arguments = [tensors[operand] for operand in ("input", "weight", "choice", "bias")]
    expected = perfconv.multi_dilation_conv2d(*arguments, **case.options)
    for weight in (tensors["weight"], tensors["weight"] + 1, tensors["weight"][:1]):
        packed = perfconv.pack_weight(weight)
        found = perfconv.multi_dilation_conv2d(*arguments, **case.options, packed_weight=packed)
        assert torch.equal(found, expected)


def test_compile() -> None:
    case = CASES["relu"]
    tensors = case.tensors(torch.float32)
    eager = run(perfconv.multi_dilation_conv2d, tensors, case)
    compiled = run(
        torch.compile(perfconv.multi_dilation_conv2d, fullgraph=True, backend="aot_eager"),
        tensors,
        case,
    )
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value)


def test_vmap() -> None:
    case = Case(batch=1)
    tensors = case.tensors(torch.float32)
    inputs = torch.stack([tensors["input"], 2 * tensors["input"]])
    weight, choice = tensors["weight"], tensors["choice"]

    def function(input: Tensor) -> Tensor:
        return perfconv.multi_dilation_conv2d(input, weight, choice, **case.options)

    assert torch.equal(torch.vmap(function)(inputs), torch.stack([*map(function, inputs)]))


def test_autocast() -> None:
    case = Case()
    tensors = case.tensors(torch.float32)
    arguments = (tensors["input"], tensors["weight"], tensors["choice"])
    with torch.autocast("cpu"):
        output = perfconv.multi_dilation_conv2d(*arguments, **case.options)
    assert output.dtype == torch.bfloat16


def test_flops() -> None:
    case = Case(dilations=(0, 1, 2))
    tensors = case.tensors(torch.float32)
    with FlopCounterMode(display=False) as counter:
        run(perfconv.multi_dilation_conv2d, tensors, case)
    convolved = int((tensors["choice"] >= 1).sum())
    assert counter.get_total_flops() == 3 * 2 * convolved * tensors["weight"].numel()


@pytest.mark.parametrize("value", [-2, 4, 2**32 + 1, -(2**40)])
def test_a_choice_out_of_range(value: int) -> None:
    case = Case()
    tensors = case.tensors(torch.float32)
    tensors["choice"][1, 0, 3, 4] = value
    with pytest.raises(ValueError, match="choice must be -1 .inactive. or an index of dilations"):
        run(perfconv.multi_dilation_conv2d, tensors, case)


ERRORS = {
    "float-choice": ({"choice": torch.zeros(2, 1, 9, 11)}, TypeError, "choice must be a Tensor of"),
    "choice-size": (
        {"choice": torch.zeros(2, 1, 9, 9).int()}, ValueError, "choice must be .N, 1, H, W.",
    ),
    "no-dilations": ({"dilations": ()}, ValueError, "dilations must name one"),
    "negative": ({"dilations": (1, -1)}, ValueError, "dilations must be 0 or more"),
    "fractions": ({"dilations": (1.5,)}, TypeError, "dilations must be a list of ints"),
    "too-few": ({"weight": torch.zeros(2, 16, 16, 3, 3)}, ValueError, "for each of the 4 dil"),
    "even": ({"weight": torch.zeros(16, 16, 2, 2)}, ValueError, "square with an odd side"),
    "flat": ({"weight": torch.zeros(16, 16, 3)}, ValueError, "weight must be .C_out, C_in, k, k"),
    "copy": ({"weight": torch.zeros(12, 16, 3, 3)}, ValueError, "dilation 0 copies the input"),
    "channels": ({"weight": torch.zeros(16, 12, 3, 3)}, ValueError, "input must have C_in"),
    "dtype": ({"weight": torch.zeros(16, 16, 3, 3).double()}, TypeError, "weight must have the d"),
    "bias": ({"bias": torch.zeros(5)}, ValueError, "bias must be .C_out,."),
    "bias-rows": ({"bias": torch.zeros(3, 16)}, ValueError, "bias must be .K, C_out."),
    "base": ({"fill": "passthrough"}, ValueError, "needs base"),
    "fill": ({"fill": "mirror"}, ValueError, "fill must be one of"),
    "activation": ({"activation": "gelu"}, ValueError, "activation must be one of"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    changes, error, message = ERRORS[name]
    case = Case()
    tensors = case.tensors(torch.float32)
    arguments = {name: tensors[name] for name in ("input", "weight", "choice")}
    with pytest.raises(error, match=f"multi_dilation_conv2d: .*{message}"):
        perfconv.multi_dilation_conv2d(**{**arguments, **case.options, **changes})


def test_gradients_refuse_what_the_forward_pass_refuses() -> None:
    ops = torch.ops.perfconv
    image, weight = torch.zeros(1, 4, 5, 5), torch.zeros(4, 4, 3, 3)
    choice = torch.full((1, 1, 5, 5), 7, dtype=torch.int32)
    with pytest.raises(ValueError, match="multi_dilation_dgrad: choice must be -1"):
        ops.multi_dilation_dgrad(image, weight, choice, [1], False)
    with pytest.raises(ValueError, match="multi_dilation_wgrad: choice must be -1"):
        ops.multi_dilation_wgrad(image, image, choice, 3, [1], True)
    with pytest.raises(ValueError, match="multi_dilation_dgrad: choice must be int32"):
        ops.multi_dilation_dgrad(image, weight, choice.long(), [1], False)


def test_results_do_not_depend_on_the_threads() -> None:
    case = CASES["untied"]
    tensors = case.tensors(torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(run(perfconv.multi_dilation_conv2d, tensors, case))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_gradient_operators_are_linear_in_both_arguments() -> None:
    """The second derivatives are the operators again: dgrad, wgrad by gradcheck."""
    case = SMALL[0]
    tensors = case.tensors(torch.float64)
    choice = tensors["choice"].int()
    grad, input, weight = (
        tensors[name].requires_grad_() for name in ("grad_output", "input", "weight")
    )
    dgrad = multi_dilation_grad.differentiable_multi_dilation_dgrad
    wgrad = multi_dilation_grad.differentiable_multi_dilation_wgrad
    assert torch.autograd.gradcheck(
        lambda grad, weight: dgrad(grad, weight, choice, [0, 1, 2], False, False), (grad, weight)
    )
    assert torch.autograd.gradcheck(
        lambda grad, input: wgrad(grad, input, choice, 3, [0, 1, 2], True, False), (grad, input)
    )
