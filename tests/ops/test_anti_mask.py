"""NaN wherever the mask says that nobody reads: nothing of it may reach a result.

That is every input pixel outside ``expand_mask``, and the output gradient at inactive pixels.
"""

import pytest
import torch
from helpers import DTYPES, Problem, relayout
from hypothesis import given, settings
from strategies import dtypes, problems

import perfconv
from perfconv.ops import reference

PROBLEMS = {
    "plain": Problem(density=0.1),
    "wide": Problem(in_channels=40, out_channels=64, density=0.1),
    "few_channels": Problem(in_channels=3, density=0.1),
    "stride": Problem(size=(13, 16), stride=(2, 3), density=0.2),
    "dilation": Problem(size=(14, 12), dilation=(2, 3), padding=(2, 3), density=0.05),
    "groups": Problem(in_channels=36, out_channels=24, groups=2, density=0.1),
    "depthwise": Problem(in_channels=24, out_channels=24, groups=24, density=0.1),
    "depthwise_stride": Problem(
        in_channels=24, out_channels=24, groups=24, stride=(2, 2), density=0.1
    ),
    "groups_of_four": Problem(in_channels=36, out_channels=36, groups=9, density=0.1),
    "depthwise_many": Problem(in_channels=24, out_channels=24, groups=24, density=0.5),
    "depthwise_many_silu": Problem(
        in_channels=24, out_channels=24, groups=24, density=0.5, activation="silu"
    ),
    "groups_of_four_many": Problem(in_channels=36, out_channels=36, groups=9, density=0.5),
    "few_pixels_of_few_channels": Problem(in_channels=3, size=(20, 15), density=0.03),
    "residual_relu": Problem(density=0.1, has_residual=True, activation="relu"),
    "silu": Problem(density=0.1, activation="silu"),
    "hardswish_residual": Problem(density=0.1, activation="hardswish", has_residual=True),
}  # fmt: skip


def check_finite(problem: Problem, dtype: torch.dtype, algorithm: str, layout: str) -> None:
    tensors = problem.tensors(dtype)
    tensors["mask"] = tensors["mask"].expand(problem.batch, -1, -1, -1)
    read = reference.expand_mask(
        tensors["mask"], problem.kernel, stride=problem.stride, padding=problem.padding,
        dilation=problem.dilation, input_size=problem.size,
    )  # fmt: skip
    input = tensors["input"].masked_fill(~read, torch.nan)
    residual = tensors["residual"]
    if residual is not None:
        residual = residual.masked_fill(~tensors["mask"], torch.nan)
    grad = tensors["grad_output"].masked_fill(~tensors["mask"], torch.nan)
    leaves = [relayout(value, layout) for value in (input, residual)]
    leaves = [tensors["weight"], tensors["bias"], *leaves]
    leaves = [None if leaf is None else leaf.detach().requires_grad_() for leaf in leaves]
    weight, bias, input, residual = leaves
    output = perfconv.perforated_conv2d(
        input, weight, tensors["mask"], bias, residual=residual, **problem.options,
        algorithm=algorithm,
    )  # fmt: skip
    assert output.isfinite().all(), "output"
    wanted = [leaf for leaf in leaves if leaf is not None]
    for gradient in torch.autograd.grad(output, wanted, relayout(grad, layout)):
        assert gradient.isfinite().all(), f"gradient of shape {tuple(gradient.shape)}"


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("algorithm", ["direct", "gather_gemm", "implicit_gemm"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_nothing_else_is_read(name: str, algorithm: str, dtype: torch.dtype, layout: str) -> None:
    check_finite(PROBLEMS[name], dtype, algorithm, layout)


@settings(max_examples=200)
@given(problem=problems(), dtype=dtypes)
def test_nothing_else_is_read_in_generated_problems(problem: Problem, dtype: torch.dtype) -> None:
    if problem.padding == "same" or problem.fill != "zero":
        return
    for algorithm in ("direct", "gather_gemm", "implicit_gemm"):
        check_finite(problem, dtype, algorithm, "contiguous")


@pytest.mark.parametrize("algorithm", ["direct", "gather_gemm", "implicit_gemm"])
def test_what_a_fill_left_out_is_not_read(algorithm: str) -> None:
    """Two layers with nothing between: the first writes what the second reads, and no more."""
    mask = Problem(density=0.05, batch=1, size=(14, 15)).tensors(torch.float32)["mask"]
    halo = perfconv.expand_mask(mask, 3, padding=1)
    generator = torch.Generator().manual_seed(2)
    leaves = [
        torch.randn(shape, generator=generator).requires_grad_()
        for shape in ((1, 24, 14, 15), (32, 24, 1, 1), (32,), (16, 32, 3, 3), (16,))
    ]
    input, *first, second, bias = leaves
    between = perfconv.perforated_conv2d(
        input, first[0], halo, first[1], activation="relu", fill="none", algorithm=algorithm
    )
    assert between.isnan().all(1, keepdim=True).equal(~halo)  # new memory is NaN in the tests
    output = perfconv.perforated_conv2d(between, second, mask, bias, padding=1, algorithm=algorithm)
    expected = perfconv.perforated_conv2d(
        torch.where(halo, between, 0), second, mask, bias, padding=1, algorithm=algorithm
    )
    assert torch.equal(output, expected)
    for gradient in torch.autograd.grad(output.sum(), leaves):
        assert gradient.isfinite().all(), f"gradient of shape {tuple(gradient.shape)}"
        assert gradient.any()


def test_the_test_can_fail() -> None:
    """Dense convolution reads everything."""
    with pytest.raises(AssertionError, match=r"output|gradient"):
        check_finite(PROBLEMS["plain"], torch.float32, "dense", "contiguous")
