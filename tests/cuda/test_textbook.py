"""The textbook path on CUDA (im2col, GEMM, scatter) against the float64 oracle."""

import pytest
import torch
from cuda_backend import Backend
from helpers import DTYPES, Problem, assert_as_exact, assert_no_row_missing, expected

# The GEMM takes tiles of 64 x 64 in steps of 16: rows, columns and depth at these and beside them.
PROBLEMS = {
    "plain": Problem(),
    "no-bias": Problem(has_bias=False),
    "empty-mask": Problem(density=0.0),
    "full-mask": Problem(density=1.0),
    "one-pixel": Problem(density=0.005, seed=2),
    "shared-mask": Problem(is_mask_shared=True),
    "no-image": Problem(batch=0),
    "stride2-dil2": Problem(stride=(2, 1), dilation=(1, 2), padding=(2, 1)),
    "dilation-beyond-map": Problem(dilation=(12, 12), padding=(12, 12)),
    "groups": Problem(in_channels=6, out_channels=9, groups=3),
    "depthwise": Problem(in_channels=12, out_channels=12, groups=12),
    "one-by-one": Problem(kernel=(1, 1), padding=(0, 0)),
    "five-by-one": Problem(kernel=(5, 1), padding=(2, 0)),
    "tile-1": Problem(batch=1, size=(7, 9), in_channels=15, out_channels=63, kernel=(1, 1),
                      padding=(0, 0), density=1.0),
    "tile": Problem(batch=1, size=(8, 8), in_channels=16, out_channels=64, kernel=(1, 1),
                    padding=(0, 0), density=1.0),
    "tile+1": Problem(batch=1, size=(5, 13), in_channels=17, out_channels=65, kernel=(1, 1),
                      padding=(0, 0), density=1.0),
}  # fmt: skip
EPILOGUES = {
    "relu": Problem(fill="passthrough", has_residual=True, activation="relu", activate_base=True),
    "hardswish": Problem(fill="passthrough", activation="hardswish"),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [*PROBLEMS, *EPILOGUES])
def test_forward(backend: Backend, name: str, dtype: torch.dtype) -> None:
    problem = (PROBLEMS | EPILOGUES)[name]
    _, exact, dense, sums = expected(problem, dtype, False)
    output = backend.forward(problem, dtype, "gather_gemm")
    assert_as_exact("output", output, exact["output"], dense["output"], sums["output"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients(backend: Backend, name: str, dtype: torch.dtype) -> None:
    problem = PROBLEMS[name]
    _, exact, dense, sums = expected(problem, dtype, False)
    for operand, gradient in (("input", backend.dgrad), ("weight", backend.wgrad)):
        result = gradient(problem, dtype, "gather_gemm")
        assert_as_exact(operand, result, exact[operand], dense[operand], sums[operand])
        assert_no_row_missing(operand, result, exact[operand], dense[operand])


def test_same_bits_in_any_schedule(backend: Backend) -> None:
    problem = Problem(batch=3, in_channels=5)
    functions = (backend.forward, backend.dgrad, backend.wgrad)
    first = [function(problem, torch.float32, "gather_gemm") for function in functions]
    for seed, multiprocessors in ((2, 1), (3, 4)):
        if backend.emulator is not None:
            backend.emulator.set(seed=seed, sms=multiprocessors)
        for function, result in zip(functions, first, strict=True):
            assert torch.equal(function(problem, torch.float32, "gather_gemm"), result)
