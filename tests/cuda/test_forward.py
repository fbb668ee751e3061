"""The forward kernels on CUDA against the float64 oracle, each on every problem that it accepts."""

import pytest
import torch
from cuda_backend import Backend
from helpers import DTYPES, Problem, assert_as_exact, expected
from torch import Tensor

import perfconv
from perfconv.ops import reference

NARROW_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

PROBLEMS = {
    "plain": Problem(),
    "no-bias": Problem(has_bias=False),
    "empty-mask": Problem(density=0.0),
    "full-mask": Problem(density=1.0),
    "one-pixel": Problem(batch=1, size=(1, 1)),
    "no-images": Problem(batch=0),
    "shared-mask": Problem(is_mask_shared=True),
    "stride2-dil2": Problem(stride=(2, 1), dilation=(1, 2), padding=(2, 1)),
    "stride2": Problem(stride=(2, 2), batch=3),
    "dilation-beyond-map": Problem(dilation=(12, 12), padding=(12, 12)),
    "groups": Problem(in_channels=16, out_channels=16, groups=2),
    "odd-channels": Problem(in_channels=5, out_channels=7),
    "depthwise": Problem(in_channels=24, out_channels=24, groups=24),
    "depthwise-odd": Problem(in_channels=12, out_channels=12, groups=12),
    "depthwise-5x5": Problem(
        in_channels=16, out_channels=16, groups=16, kernel=(5, 5), padding=(2, 2), dilation=(2, 1)
    ),
    "depthwise-wide": Problem(in_channels=264, out_channels=264, groups=264, size=(4, 5)),
    "one-by-one": Problem(kernel=(1, 1), padding=(0, 0), out_channels=16),
    "one-by-one-stride": Problem(kernel=(1, 1), padding=(1, 0), stride=(1, 2), out_channels=16),
    "five-by-one": Problem(kernel=(5, 1), padding=(2, 0)),
    "5x5": Problem(kernel=(5, 5), padding=(2, 2)),
    "7x7": Problem(kernel=(7, 7), padding=(3, 3), batch=1),
    "rgb": Problem(in_channels=3, out_channels=16, stride=(2, 2)),
    "residual-relu": Problem(has_residual=True, activation="relu", out_channels=16),
    "passthrough": Problem(
        fill="passthrough", has_residual=True, activation="relu", activate_base=True
    ),
    "hardswish": Problem(fill="passthrough", activation="hardswish", out_channels=16),
    "hardswish-odd": Problem(
        in_channels=5, out_channels=7, fill="passthrough", has_residual=True, activation="hardswish"
    ),
    "silu": Problem(activation="silu"),
    "relu6": Problem(activation="relu6", activate_base=True, fill="passthrough", out_channels=8),
    "nearest": Problem(fill="nearest", activation="relu", density=0.1),
    "none": Problem(fill="none", activation="relu", out_channels=16),
    "none-depthwise": Problem(fill="none", in_channels=24, out_channels=24, groups=24),
    "nearest-empty": Problem(fill="nearest", density=0.0),
}


def assert_right(
    backend: Backend, problem: Problem, dtype: torch.dtype, algorithm: str, **options: object
) -> Tensor:
    _, exact, dense, sums = expected(problem, dtype, False)
    output = backend.forward(problem, dtype, algorithm, **options)
    if problem.fill == "none":
        mask = problem.tensors(dtype)["mask"]
        has_data = output.isfinite().any(1, keepdim=True)
        assert algorithm == "dense" or backend.emulator is None or not (has_data & ~mask).any()
        output = torch.where(mask, output, 0)
    assert_as_exact("output", output, exact["output"], dense["output"], sums["output"])
    return output


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_direct(backend: Backend, name: str, dtype: torch.dtype) -> None:
    assert_right(backend, PROBLEMS[name], dtype, "direct")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_implicit_gemm(backend: Backend, name: str, dtype: torch.dtype) -> None:
    assert_right(backend, PROBLEMS[name], dtype, "implicit_gemm")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_dense(backend: Backend, name: str, dtype: torch.dtype) -> None:
    assert_right(backend, PROBLEMS[name], dtype, "dense")


@pytest.mark.parametrize("density", [None, 0.2, 0.9])
def test_auto_takes_the_dense_path_only_by_expectation(
    backend: Backend, density: float | None
) -> None:
    problem = Problem(density=0.9)
    output = assert_right(backend, problem, torch.float32, "auto", expected_density=density)
    algorithm = "dense" if density == 0.9 else "implicit_gemm"
    assert torch.equal(output, backend.forward(problem, torch.float32, algorithm))


@pytest.mark.parametrize("algorithm", ["direct", "implicit_gemm", "dense"])
@pytest.mark.parametrize("layout", ["contiguous", "strided", "transposed"])
def test_other_layouts(backend: Backend, layout: str, algorithm: str) -> None:
    problem = PROBLEMS["passthrough"]
    output = assert_right(backend, problem, torch.bfloat16, algorithm, layout=layout)
    assert output.is_contiguous()


@pytest.mark.parametrize("algorithm", ["direct", "implicit_gemm", "dense"])
@pytest.mark.parametrize("padding", [[0, 2, 1, 0], [3, 0, 0, 2]], ids=str)
def test_lopsided_padding(backend: Backend, padding: list[int], algorithm: str) -> None:
    top, bottom, left, right = padding
    tensors = Problem(batch=1, size=(8, 9)).tensors(torch.float32)
    padded = torch.nn.functional.pad(tensors["input"], (left, right, top, bottom)).double()
    exact = torch.nn.functional.conv2d(padded, tensors["weight"].double())
    mask = perfconv.downsample_mask(torch.rand(1, 1, *exact.shape[2:]) < 0.5, 1)
    operands = backend.to(tensors["input"], tensors["weight"], mask)
    output = backend.ops.perforated_conv2d(*operands, padding=padding, algorithm=algorithm).cpu()
    assert (output.double() - exact.where(mask, 0)).abs().max() < 1e-4


KERNELS = {
    "direct": ("direct", Problem()),
    "tensor-cores": ("implicit_gemm", Problem(in_channels=16, out_channels=72)),
    "few-channels": ("implicit_gemm", Problem(in_channels=3, out_channels=33)),
    "depthwise": ("implicit_gemm", Problem(in_channels=24, out_channels=24, groups=24)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_inputs_that_no_active_output_reads_stay_out(
    backend: Backend, name: str, dtype: torch.dtype
) -> None:
    algorithm, problem = KERNELS[name]
    tensors = problem.tensors(dtype)
    tensors["mask"] = tensors["mask"] & (torch.arange(11) < 4)  # the right half is read by nobody
    read = perfconv.expand_mask(tensors["mask"], 3, padding=1)
    clean = backend.forward(problem, dtype, algorithm, tensors=tensors)
    poisoned = tensors | {"input": tensors["input"].masked_fill(~read, torch.nan)}
    assert torch.equal(backend.forward(problem, dtype, algorithm, tensors=poisoned), clean)
    assert not clean.isnan().any()


@pytest.mark.parametrize("name", KERNELS)
def test_the_given_list_is_used(backend: Backend, name: str) -> None:
    """In any order; the mask is not compacted again."""
    algorithm, problem = KERNELS[name]
    output = backend.forward(problem, torch.bfloat16, algorithm)
    mask = expected(problem, torch.bfloat16, False)[0]["mask"]
    active_idx, count, _ = torch.ops.perfconv.compact_mask(mask)
    active_idx[: int(count)] = active_idx[: int(count)].flip(0)
    listed = dict(zip(("active_idx", "count"), backend.to(active_idx, count), strict=True))
    assert torch.equal(backend.forward(problem, torch.bfloat16, algorithm, **listed), output)
    if backend.emulator is not None:
        assert "compact_mask" not in backend.emulator.text("log")


def test_tf32_needs_permission(backend: Backend) -> None:
    """The same problem, exactly and with factors rounded to tf32."""
    problem = Problem(in_channels=16, out_channels=72)
    exact = assert_right(backend, problem, torch.float32, "implicit_gemm")
    rounded = backend.forward(problem, torch.float32, "implicit_gemm", allow_tf32=True)
    error = (rounded - exact).abs().max() / exact.abs().max()
    assert 2**-17 < error < 2**-9


def test_tf32_rounds_nothing_but_factors(backend: Backend) -> None:
    """Exact products of factors that tf32 holds, sums as exact as those of float32."""
    problem = Problem(in_channels=20, out_channels=72, has_residual=True, density=0.7)
    tensors = problem.tensors(torch.bfloat16)
    tensors = {
        name: value.float() if value is not None and value.is_floating_point() else value
        for name, value in tensors.items()
    }
    operands = {name: tensors[name] for name in ("input", "weight", "mask", "bias", "residual")}
    double = {name: value.double() if name != "mask" else value for name, value in operands.items()}
    sizes = {name: value.abs() if name != "mask" else value for name, value in double.items()}
    exact, sums = (
        reference.perforated_conv2d(**values, **problem.options) for values in (double, sizes)
    )
    dense = reference.perforated_conv2d(**operands, **problem.options, dtype=torch.float32)
    output = backend.forward(
        problem, torch.float32, "implicit_gemm", tensors=tensors, allow_tf32=True
    )
    assert_as_exact("output", output, exact, dense, sums)
