"""The gradient kernels on CUDA against the float64 oracle."""

import pytest
import torch
from cuda_backend import Backend, native_geometry
from helpers import (
    DTYPES,
    Problem,
    assert_as_exact,
    assert_no_row_missing,
    expected,
    random_mask,
    relayout,
)
from torch import Tensor

PROBLEMS = {
    "plain": Problem(),
    "empty-mask": Problem(density=0.0),
    "full-mask": Problem(density=1.0),
    "one-pixel": Problem(density=0.005, seed=2),
    "shared-mask": Problem(is_mask_shared=True),
    "no-image": Problem(batch=0),
    "stride2-dil2": Problem(stride=(2, 1), dilation=(1, 2), padding=(2, 1)),
    "stride2": Problem(stride=(2, 2), size=(10, 9)),
    "dilation-beyond-map": Problem(dilation=(12, 12), padding=(12, 12)),
    "groups": Problem(in_channels=8, out_channels=16, groups=2),
    "depthwise": Problem(in_channels=12, out_channels=12, groups=12),
    "one-by-one": Problem(kernel=(1, 1), padding=(0, 0)),
    "five-by-one": Problem(kernel=(5, 1), padding=(2, 0)),
}


def test_one_pixel_is_one() -> None:
    assert PROBLEMS["one-pixel"].tensors(torch.float32)["mask"].sum() == 1


def check_gradients(
    backend: Backend, problem: Problem, dtype: torch.dtype, algorithm: str, **options: object
) -> None:
    """dgrad and wgrad of one kernel against the oracle."""
    _, exact, dense, sums = expected(problem, dtype, False)
    for name, gradient in (("input", backend.dgrad), ("weight", backend.wgrad)):
        result = gradient(problem, dtype, algorithm, **options)
        assert_as_exact(name, result, exact[name], dense[name], sums[name])
        assert_no_row_missing(name, result, exact[name], dense[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_direct(backend: Backend, name: str, dtype: torch.dtype) -> None:
    check_gradients(backend, PROBLEMS[name], dtype, "direct")


# Tiles are 64 or 128 channels or pixels, steps of wgrad 16 or 32 pixels, its batches 128.
TILED = {
    **PROBLEMS,
    "ragged-channels": Problem(in_channels=40, out_channels=72, size=(6, 7)),
    "wide": Problem(
        batch=1, in_channels=136, out_channels=144, size=(6, 7), kernel=(1, 3), padding=(0, 1)
    ),
    "wide-groups": Problem(
        batch=1, in_channels=272, out_channels=160, size=(5, 5), kernel=(1, 1), padding=(0, 0),
        groups=2,
    ),
    "taps-25": Problem(kernel=(5, 5), padding=(2, 2), in_channels=16, out_channels=16),
    "taps-36": Problem(kernel=(6, 6), padding=(3, 3), out_channels=8),
    "tile-1": Problem(batch=1, in_channels=64, out_channels=64, size=(7, 9), density=1.0),
    "tile": Problem(batch=1, in_channels=64, out_channels=64, size=(8, 8), density=1.0),
    "tile+1": Problem(batch=1, in_channels=72, out_channels=72, size=(5, 13), density=1.0),
    "many-pixels": Problem(
        batch=3, in_channels=16, out_channels=16, size=(25, 31), kernel=(3, 1), padding=(1, 0),
        density=0.6,
    ),
    "stride3": Problem(
        in_channels=16, out_channels=16, size=(17, 13), stride=(3, 2), padding=(2, 2),
        dilation=(2, 3), density=0.7,
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", TILED)
def test_implicit(backend: Backend, name: str, dtype: torch.dtype) -> None:
    check_gradients(backend, TILED[name], dtype, "implicit_gemm")


@pytest.mark.parametrize("name", TILED)
def test_tf32(backend: Backend, name: str) -> None:
    """With factors that tf32 holds exactly, the tensor cores are as exact as float32."""
    problem = TILED[name]
    tensors, exact, _, sums = expected(problem, torch.bfloat16, False)
    grad, input, weight = backend.to(
        *(
            relayout(tensors[operand].float(), "channels_last")
            for operand in ("grad_output", "input", "weight")
        )
    )
    (mask,) = backend.to(tensors["mask"])
    options = {"algorithm": "implicit_gemm", "allow_tf32": True, **native_geometry(problem)}
    dgrad = backend.ops.perforated_conv2d_dgrad(
        grad, weight, mask, None, None, list(problem.size), True, **options
    )
    wgrad = backend.ops.perforated_conv2d_wgrad(
        grad, input, mask, None, None, list(problem.kernel), **options
    )
    for operand, result in (("input", dgrad), ("weight", wgrad)):
        as_float = exact[operand].float()
        assert_as_exact(operand, result.cpu(), exact[operand], as_float, sums[operand])
        assert_no_row_missing(operand, result.cpu(), exact[operand], as_float)


KERNELS = {  # of a problem: what the planner takes, on the emulator's log
    ("ragged-channels", torch.bfloat16): ("implicit_gemm_kernel", "wgrad_gemm_kernel"),
    ("ragged-channels", torch.float32): ("implicit_gemm_kernel", "wgrad_gemm_kernel"),
    ("depthwise", torch.bfloat16): ("dgrad_depthwise_kernel", "wgrad_depthwise_kernel"),
    ("taps-36", torch.bfloat16): ("dgrad_direct_kernel", "wgrad_gemm_kernel"),
    ("plain", torch.float64): ("dgrad_direct_kernel", "wgrad_direct_kernel"),
}


@pytest.mark.parametrize(("name", "dtype"), KERNELS, ids=str)
def test_the_kernel_that_runs(backend: Backend, name: str, dtype: torch.dtype) -> None:
    if backend.emulator is None:
        pytest.skip("the emulator keeps a log of kernels")
    dgrad_kernel, wgrad_kernel = KERNELS[name, dtype]
    algorithm = "auto" if dtype == torch.float64 else "implicit_gemm"
    backend.dgrad(TILED[name], dtype, algorithm)
    assert dgrad_kernel in backend.emulator.text("log")
    backend.wgrad(TILED[name], dtype, algorithm)
    assert wgrad_kernel in backend.emulator.text("log")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["many-pixels", "stride3", "depthwise"])
def test_same_bits_in_any_schedule(backend: Backend, name: str, dtype: torch.dtype) -> None:
    """wgrad on any device; dgrad where the device splits its tiles alike."""
    problem = TILED[name]
    wgrad = backend.wgrad(problem, dtype, "implicit_gemm")
    dgrad = backend.dgrad(problem, dtype, "implicit_gemm")
    assert torch.equal(wgrad, backend.wgrad(problem, dtype, "implicit_gemm"))
    assert torch.equal(dgrad, backend.dgrad(problem, dtype, "implicit_gemm"))
    if backend.emulator is None:
        return
    backend.emulator.set(seed=7)
    assert torch.equal(dgrad, backend.dgrad(problem, dtype, "implicit_gemm"))
    backend.emulator.set(seed=3, sms=5)
    assert torch.equal(wgrad, backend.wgrad(problem, dtype, "implicit_gemm"))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_layouts(backend: Backend, layout: str) -> None:
    """The gradient of the input follows its layout; that of the weight is contiguous."""
    problem = Problem()
    grad = backend.dgrad(problem, torch.float32, "direct", layout)
    is_last = layout == "channels_last"
    assert grad.is_contiguous(memory_format=torch.channels_last) == is_last
    assert grad.is_contiguous() != is_last
    assert backend.wgrad(problem, torch.float32, "direct", layout).is_contiguous()
    _, exact, dense, sums = expected(problem, torch.float32, False)
    assert_as_exact("input", grad, exact["input"], dense["input"], sums["input"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dense(backend: Backend, dtype: torch.dtype) -> None:
    check_gradients(backend, Problem(), dtype, "dense")
    check_gradients(backend, Problem(padding=(2, 1), stride=(2, 1)), dtype, "dense")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "channels", "size", "density"),
    [(2, 12, (9, 11), 0.4), (1, 33, (20, 30), 1.0), (3, 5, (7, 7), 0.0), (0, 4, (5, 5), 0.5),
     (2, 64, (40, 41), 0.7)],
)  # fmt: skip
def test_active_sum(
    backend: Backend, batch: int, channels: int, size: tuple, density: float, dtype: torch.dtype
) -> None:
    values = torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))
    values = values.to(dtype)
    mask = random_mask(batch, 1, *size, density=density)
    poisoned = torch.where(mask, values, torch.nan)
    result = backend.ops.active_sum(*backend.to(relayout(poisoned, "channels_last"), mask)).cpu()
    chosen = torch.where(mask, values, 0)
    exact = chosen.double().sum((0, 2, 3))
    sums = chosen.double().abs().sum((0, 2, 3))
    assert_as_exact("sums", result, exact, exact.to(dtype), sums)


def test_active_sum_of_a_shared_mask(backend: Backend) -> None:
    values = torch.randn(3, 8, 5, 6, dtype=torch.float64)
    mask = random_mask(1, 1, 5, 6)
    result = backend.ops.active_sum(*backend.to(values, mask)).cpu()
    torch.testing.assert_close(result, torch.where(mask, values, 0).sum((0, 2, 3)))


def poisoned_gradients(
    backend: Backend, problem: Problem, dtype: torch.dtype, algorithm: str
) -> tuple[Tensor, Tensor]:
    """Both gradients with NaN wherever no active pixel reads."""
    tensors = problem.tensors(dtype)
    mask = tensors["mask"]
    read = torch.nn.functional.conv_transpose2d(
        mask.expand(problem.batch, -1, -1, -1).float(), torch.ones(1, 1, *problem.kernel),
        None, problem.stride, problem.padding, 0, 1, problem.dilation,
    )  # fmt: skip
    read = torch.nn.functional.pad(
        read, (0, problem.size[1] - read.size(3), 0, problem.size[0] - read.size(2))
    )
    grad = torch.where(mask, tensors["grad_output"], torch.nan)
    input = torch.where(read > 0, tensors["input"], torch.nan)
    grad, input, weight = (
        relayout(value, "channels_last") for value in (grad, input, tensors["weight"])
    )
    grad, input, weight, mask = backend.to(grad, input, weight, mask)
    geometry = native_geometry(problem)
    return (
        backend.ops.perforated_conv2d_dgrad(
            grad, weight, mask, None, None, list(problem.size), True, **geometry,
            algorithm=algorithm,
        ).cpu(),
        backend.ops.perforated_conv2d_wgrad(
            grad, input, mask, None, None, list(problem.kernel), **geometry, algorithm=algorithm
        ).cpu(),
    )  # fmt: skip


@pytest.mark.parametrize("algorithm", ["direct", "implicit_gemm"])
def test_inactive_pixels_are_never_read(backend: Backend, algorithm: str) -> None:
    for problem in (Problem(density=0.1), Problem(density=0.1, stride=(2, 2), dilation=(2, 1))):
        dgrad, wgrad = poisoned_gradients(backend, problem, torch.float32, algorithm)
        assert dgrad.isfinite().all()
        assert wgrad.isfinite().all()


@pytest.mark.parametrize("algorithm", ["direct", "gather_gemm", "implicit_gemm", "dense"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_all_gradients_at_once(
    backend: Backend, dtype: torch.dtype, layout: str, algorithm: str
) -> None:
    """The same bits as one by one, in the layouts of input and weight."""
    problem = Problem(in_channels=24, out_channels=40)
    tensors = problem.tensors(dtype)
    names = ("grad_output", "input", "weight", "mask")
    grad, input, weight, mask = backend.to(
        *(tensors[n] if n == "mask" else relayout(tensors[n], layout) for n in names)
    )
    options = {**native_geometry(problem), "algorithm": algorithm}
    found = backend.ops.perforated_conv2d_backward(
        grad, input, weight, mask, None, None, wants_bias=True, **options
    )
    is_last = layout == "channels_last"
    expected = (
        backend.ops.perforated_conv2d_dgrad(
            grad, weight, mask, None, None, list(problem.size), is_last, **options
        ),
        backend.ops.perforated_conv2d_wgrad(grad, input, mask, None, None, [3, 3], **options),
        backend.ops.active_sum(grad, mask),
    )
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert (found[0].stride(), found[1].stride()) == (input.stride(), weight.stride())
