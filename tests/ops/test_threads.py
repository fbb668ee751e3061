"""Threads: the same bits for one and two, and calls from several Python threads at once."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import helpers
import pytest
import torch
from helpers import ALGORITHMS, DTYPES, Problem, check

import perfconv

# Large enough that the kernels split the work (images.h, parallel_rows).
PROBLEMS = {
    "wide": Problem(in_channels=64, out_channels=96, size=(48, 40), density=0.3),
    "nearest": Problem(in_channels=48, out_channels=64, size=(48, 40), density=0.2, fill="nearest"),
    "stride": Problem(in_channels=64, out_channels=64, size=(64, 60), stride=(2, 2), groups=2),
    "few_pixels": Problem(in_channels=256, out_channels=512, size=(12, 12), density=0.2),
    "depthwise": Problem(in_channels=192, out_channels=192, groups=192, size=(48, 50)),
    "groups_of_four": Problem(in_channels=128, out_channels=128, groups=32, size=(48, 50)),
    "rgb": Problem(in_channels=3, out_channels=64, kernel=(7, 7), padding=(3, 3), size=(96, 96)),
    "residual": Problem(
        in_channels=64, out_channels=64, size=(48, 40), fill="passthrough", has_residual=True,
        activation="relu",
    ),
}  # fmt: skip


def results(problem: Problem, dtype: torch.dtype, algorithm: str, threads: int) -> dict:
    torch.set_num_threads(threads)
    tensors = problem.tensors(dtype)
    return helpers.run(perfconv.perforated_conv2d, tensors, problem, algorithm=algorithm)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_against_oracle_with_two_threads(name: str, dtype: torch.dtype) -> None:
    helpers.expected(PROBLEMS[name], dtype, is_expanded=False)  # kept; one thread is faster here
    torch.set_num_threads(2)
    check(PROBLEMS[name], dtype, "implicit_gemm", "channels_last")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_threads_do_not_change_the_bits(name: str, dtype: torch.dtype) -> None:
    one = results(PROBLEMS[name], dtype, "implicit_gemm", 1)
    two = results(PROBLEMS[name], dtype, "implicit_gemm", 2)
    for key, value in one.items():
        assert torch.equal(two[key], value), key


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "dense"])
@pytest.mark.parametrize("name", ["wide", "depthwise", "nearest"])
def test_same_bits_from_run_to_run(name: str, algorithm: str) -> None:
    problem = replace(PROBLEMS[name], size=(24, 20))
    first, second = (results(problem, torch.float32, algorithm, 2) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_calls_from_several_python_threads() -> None:
    problem = replace(PROBLEMS["wide"], size=(24, 20))
    expected = results(problem, torch.float32, "implicit_gemm", 2)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(results, problem, torch.float32, "implicit_gemm", 2) for _ in range(24)]
        for job in jobs:
            found = job.result()
            assert all(torch.equal(found[key], expected[key]) for key in expected)
