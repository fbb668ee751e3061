"""perforated_conv2d on generated problems: against the oracle, and laws that always hold.

The number of problems that each algorithm ran is printed at the end of a run (tests/conftest.py).
"""

from dataclasses import replace

import helpers
import pytest
import torch
import torch.nn.functional as F
from helpers import ALGORITHMS, Problem, check, relayout
from hypothesis import given, note, settings
from hypothesis import strategies as st
from strategies import dtypes, layouts, plain_problems, problems
from torch import Tensor

import perfconv

forced = st.sampled_from(ALGORITHMS)


def compute(problem: Problem, tensors: dict, algorithm: str, **changes: Tensor) -> Tensor:
    names = ("input", "weight", "mask", "bias", "base", "residual")
    arguments = {name: tensors[name] for name in names} | changes
    return perfconv.perforated_conv2d(**arguments, **problem.options, algorithm=algorithm)


# ---- the oracle: 900 problems for each algorithm, half of them with gradients -------------------


def check_each(problem: Problem, dtype: torch.dtype, layout: str, with_gradients: bool) -> None:
    """All algorithms on one problem: its exact results, most of the work, are computed once."""
    for algorithm in ALGORITHMS:
        note(f"algorithm: {algorithm}")
        check(problem, dtype, algorithm, layout, with_gradients)


@pytest.mark.parametrize("with_gradients", [True, False], ids=["gradients", "forward"])
@settings(max_examples=450)
@given(problem=problems(), dtype=dtypes, layout=layouts)
def test_generated_problems(
    with_gradients: bool, problem: Problem, dtype: torch.dtype, layout: str
) -> None:
    check_each(problem, dtype, layout, with_gradients)


@settings(max_examples=150)
@given(
    problem=problems(), dtype=dtypes, layout=layouts, algorithm=st.sampled_from(("auto", "dense"))
)
def test_generated_problems_dense(
    problem: Problem, dtype: torch.dtype, layout: str, algorithm: str
) -> None:
    check(problem, dtype, algorithm, layout)


def test_at_least_2000_problems_were_generated() -> None:
    """Reads and prints what the tests above counted; runs after them, as pytest keeps the order."""
    counts = helpers.algorithms_run
    print("\n".join(helpers.histogram()))
    ran = {name: sum(counts[key] for key in counts if key.startswith(name)) for name in ALGORITHMS}
    if min(ran.values()) < 800:
        pytest.skip("the tests above were not all selected")
    assert sum(ran.values()) >= 2000
    assert counts["implicit_gemm, depthwise"] > 100


@pytest.mark.slow
@settings(max_examples=6000)
@given(problem=problems(), dtype=dtypes, layout=layouts)
def test_many_generated_problems(problem: Problem, dtype: torch.dtype, layout: str) -> None:
    check_each(problem, dtype, layout, with_gradients=True)


# ---- laws ----------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(problem=problems(), algorithm=forced)
def test_all_true_is_dense(problem: Problem, algorithm: str) -> None:
    """Whatever the fill: with no inactive pixel, the result is ``conv2d``."""
    problem = replace(problem, density=1.0, has_residual=False, activation=None)
    check(problem, torch.float64, algorithm, with_gradients=False)
    tensors = problem.tensors(torch.float64)
    dense = F.conv2d(tensors["input"], tensors["weight"], tensors["bias"], **problem.geometry)
    torch.testing.assert_close(compute(problem, tensors, algorithm), dense)


@settings(max_examples=100)
@given(problem=problems(), algorithm=forced)
def test_all_false_is_the_fill(problem: Problem, algorithm: str) -> None:
    problem = replace(problem, density=0.0, activate_base=False)
    tensors = problem.tensors(torch.float32)
    fill = tensors["base"] if problem.fill == "passthrough" else torch.zeros(problem.output_shape)
    assert torch.equal(compute(problem, tensors, algorithm), fill)


@settings(max_examples=100)
@given(problem=plain_problems(), algorithm=forced, seed=st.integers(0, 99))
def test_disjoint_masks_add_up(problem: Problem, algorithm: str, seed: int) -> None:
    tensors = problem.tensors(torch.float32)
    mask = tensors["mask"]
    part = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    whole = compute(problem, tensors, algorithm)
    first = compute(problem, tensors, algorithm, mask=mask & part)
    second = compute(problem, tensors, algorithm, mask=mask & ~part)
    torch.testing.assert_close(first + second, whole, rtol=1e-5, atol=1e-5)
    assert not ((first != 0) & (second != 0)).any()


@settings(max_examples=100)
@given(problem=problems(), algorithm=forced)
def test_images_are_independent(problem: Problem, algorithm: str) -> None:
    """An image gives what it gives alone."""
    problem = replace(problem, batch=3)
    tensors = problem.tensors(torch.float64)
    together = compute(problem, tensors, algorithm)
    for image in range(3):
        alone = {
            name: value[image : image + 1]
            if name not in ("weight", "bias") and value is not None and value.size(0) == 3
            else value
            for name, value in tensors.items()
        }
        torch.testing.assert_close(compute(problem, alone, algorithm), together[image : image + 1])


@settings(max_examples=100)
@given(problem=plain_problems(), algorithm=forced, shift=st.tuples(*[st.integers(0, 4)] * 2))
def test_shift_equivariance(problem: Problem, algorithm: str, shift: tuple[int, int]) -> None:
    """Input moved by whole strides and mask by as many pixels: the output moves along."""
    problem = replace(problem, padding=(0, 0), size=(16, 15), density=0.5, batch=2)
    tensors = problem.tensors(torch.float64)
    moved_input = F.pad(
        tensors["input"],
        (shift[1] * problem.stride[1], 0, shift[0] * problem.stride[0], 0),
    )
    moved_mask = F.pad(tensors["mask"], (shift[1], 0, shift[0], 0))
    output = compute(problem, tensors, algorithm)
    moved = compute(problem, tensors, algorithm, input=moved_input, mask=moved_mask)
    torch.testing.assert_close(moved, F.pad(output, (shift[1], 0, shift[0], 0)))


@settings(max_examples=150)
@given(problem=problems(), dtype=dtypes, layout=layouts, algorithm=forced)
def test_same_bits_twice(problem: Problem, dtype: torch.dtype, layout: str, algorithm: str) -> None:
    tensors = problem.tensors(dtype)
    tensors["input"] = relayout(tensors["input"], layout)
    first, second = (
        helpers.run(perfconv.perforated_conv2d, tensors, problem, algorithm=algorithm)
        for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---- sizes at the tiles ------------------------------------------------------------------------

TILE_ROWS = (4, 6, 12, 14)  # of the instruction sets' register tiles
PIXELS = sorted(
    {rows * tiles + rest for rows in TILE_ROWS for tiles in (1, 2) for rest in (-1, 0, 1)}
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("pixels", PIXELS)
def test_active_pixels_at_tile_rows(pixels: int, dtype: torch.dtype) -> None:
    problem = Problem(batch=1, in_channels=17, out_channels=24, size=(1, pixels), density=1.0)
    check(problem, dtype, "implicit_gemm")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 64, 65])
def test_channels_at_tile_columns(channels: int, dtype: torch.dtype) -> None:
    check(Problem(in_channels=16, out_channels=channels), dtype, "implicit_gemm")
    check(Problem(in_channels=channels, out_channels=16), dtype, "implicit_gemm")
    check(
        Problem(in_channels=channels, out_channels=channels, groups=channels),
        dtype,
        "implicit_gemm",
    )


# Input channels: whole columns, which wgrad reads where they lie, or not; above 512 Ki sums its
# blocks of 192 pixels are 384.
WGRAD_BLOCKS = {
    "one_short": Problem(batch=1, in_channels=64, out_channels=33, size=(1, 191), density=1.0),
    "one_full": Problem(batch=1, in_channels=32, out_channels=64, size=(4, 48), density=1.0),
    "one_more": Problem(batch=1, in_channels=96, out_channels=13, size=(1, 193), density=1.0),
    "ragged": Problem(batch=2, in_channels=40, out_channels=36, size=(20, 21), density=0.7),
    "stride": Problem(batch=2, in_channels=64, out_channels=24, size=(40, 21), stride=(2, 1)),
    "groups": Problem(batch=3, in_channels=64, out_channels=48, groups=2, size=(13, 17)),
    "wide": Problem(batch=1, in_channels=256, out_channels=256, size=(20, 21), density=0.95),
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", WGRAD_BLOCKS)
def test_gradients_at_blocks_of_tiles(name: str, layout: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check(WGRAD_BLOCKS[name], dtype, "implicit_gemm", layout)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("position", [0, 10, 11, 98, 49], ids=lambda p: f"pixel{p}")
def test_one_active_pixel(position: int, algorithm: str) -> None:
    """Corners and the middle of a (9, 11) image; by hand, apart from the oracle."""
    problem = Problem(batch=1)
    tensors = problem.tensors(torch.float64)
    tensors["mask"] = torch.arange(99).reshape(1, 1, 9, 11) == position
    dense = F.conv2d(tensors["input"], tensors["weight"], tensors["bias"], padding=1)
    expected = torch.where(tensors["mask"], dense, 0)
    torch.testing.assert_close(compute(problem, tensors, algorithm), expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_one_active_row_and_column(algorithm: str) -> None:
    problem = Problem(batch=2, size=(12, 33))
    tensors = problem.tensors(torch.float64)
    dense = F.conv2d(tensors["input"], tensors["weight"], tensors["bias"], padding=1)
    for index in ((slice(None), slice(None), 0), (..., 32), (1, slice(None), 11)):
        mask = torch.zeros(2, 1, 12, 33, dtype=torch.bool)
        mask[index] = True
        expected = torch.where(mask, dense, 0)
        torch.testing.assert_close(compute(problem, tensors, algorithm, mask=mask), expected)
