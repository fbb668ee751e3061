"""The tests' own tools can fail: comparisons notice what they should, layouts are what they say."""

import pytest
import torch
from helpers import LAYOUTS, Problem, assert_as_exact, assert_no_row_missing, expected, relayout


def results(dtype: torch.dtype = torch.float32) -> tuple[dict, ...]:
    return expected(Problem(), dtype, is_expanded=False)[1:]


@pytest.mark.parametrize("spoil", [torch.nan, 1e-3, 1.0])
def test_one_wrong_value_is_noticed(spoil: float) -> None:
    exact, dense, sums = (values["output"] for values in results())
    assert_as_exact("output", dense.clone(), exact, dense, sums)
    wrong = dense.clone()
    wrong[1, 2, 3, 4] += spoil
    with pytest.raises(AssertionError, match="output: error"):
        assert_as_exact("output", wrong, exact, dense, sums)


def test_a_wrong_dtype_or_shape_is_noticed() -> None:
    exact, dense, sums = (values["output"] for values in results())
    with pytest.raises(AssertionError, match="instead of"):
        assert_as_exact("output", dense.double(), exact, dense, sums)
    with pytest.raises(AssertionError, match="instead of"):
        assert_as_exact("output", dense[:1], exact, dense, sums)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_missing_row_is_noticed(dtype: torch.dtype) -> None:
    exact, dense, _ = (values["input"] for values in results(dtype))
    assert_no_row_missing("input", dense.clone(), exact, dense)
    lossy = dense.clone()
    lossy[0, :, 4, 5] = 0
    with pytest.raises(AssertionError, match="input: "):
        assert_no_row_missing("input", lossy, exact, dense)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_the_values(layout: str) -> None:
    value = torch.randn(2, 3, 4, 5)
    other = relayout(value, layout)
    assert torch.equal(other, value[:1].expand_as(value) if layout == "expanded" else value)
    if layout == "offset":
        assert other.storage_offset() == 1
    elif layout != "contiguous":
        assert not other.is_contiguous()
