"""gather_pixels and scatter_pixels, and the fills and sums that are operators of their own."""

import pytest
import torch
from helpers import DTYPES, LAYOUTS, relayout
from torch import Tensor

import perfconv
from perfconv.ops import conv_grad, reference

SHAPE = (2, 5, 6, 7)


def image(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def mask(density: float = 0.4, images: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(images, 1, *SHAPE[2:], generator=generator) < density


DENSITIES = [0.0, 0.03, 0.4, 1.0]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", DENSITIES)
def test_gather(dtype: torch.dtype, density: float, layout: str) -> None:
    values = relayout(image(dtype), layout)
    active = perfconv.compact_mask(mask(density))
    positions = reference.active_positions(active.mask)
    rows = perfconv.gather_pixels(values, active)
    expected = values.permute(0, 2, 3, 1).reshape(-1, SHAPE[1])
    assert rows.shape == expected.shape
    assert torch.equal(rows[: len(positions)], expected[positions])
    assert not rows[len(positions) :].any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("has_base", [True, False])
@pytest.mark.parametrize("density", DENSITIES)
def test_scatter(density: float, has_base: bool, layout: str) -> None:
    active = perfconv.compact_mask(mask(density))
    base = relayout(image(seed=2), layout) if has_base else None
    rows = perfconv.gather_pixels(image(), active)
    rows[int(active.count) :] = torch.nan  # never read
    found = perfconv.scatter_pixels(rows, active, base)
    assert torch.equal(found, torch.where(active.mask, image(), 0 if base is None else base))
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", DENSITIES)
def test_nearest_fill(density: float, dtype: torch.dtype, layout: str, images: int) -> None:
    """Copies, so equal to the last bit."""
    values, chosen = relayout(image(dtype), layout), mask(density, images)
    found = torch.ops.perfconv.nearest_fill(values, chosen)
    assert torch.equal(found, reference.nearest_fill(values, chosen))


@pytest.mark.parametrize("density", DENSITIES)
def test_nearest_fill_grad(density: float) -> None:
    values = image(torch.float64).requires_grad_()
    grad = image(torch.float64, seed=3)
    reference.nearest_fill(values, mask(density)).backward(grad)
    found = torch.ops.perfconv.nearest_fill_grad(grad, mask(density))
    torch.testing.assert_close(found, values.grad)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("density", DENSITIES)
def test_active_sum(density: float, dtype: torch.dtype, images: int) -> None:
    values, chosen = image(dtype), mask(density, images)
    values = values.masked_fill(~chosen, torch.nan)
    expected = torch.where(chosen, values, 0).double().sum((0, 2, 3)).to(dtype)
    found = torch.ops.perfconv.active_sum(values, chosen)
    torch.testing.assert_close(found, expected)


def test_active_sum_of_many_pixels() -> None:
    """More than one run of the two-level sum (conv_grad.cpp)."""
    values = torch.randn(3, 4, 31, 33, dtype=torch.float64)
    chosen = torch.rand(3, 1, 31, 33) < 0.7
    expected = torch.where(chosen, values, 0).sum((0, 2, 3))
    torch.testing.assert_close(torch.ops.perfconv.active_sum(values, chosen), expected)


def test_gradients() -> None:
    """The functions the package calls are differentiable twice, as the others are linear."""
    values = image(torch.float64)[:, :2].contiguous().requires_grad_()
    base = image(torch.float64, seed=4)[:, :2].contiguous().requires_grad_()
    active = perfconv.compact_mask(mask())
    rows = torch.randn(active.mask.numel(), 2, dtype=torch.float64, requires_grad=True)
    cases = [
        (lambda x: perfconv.gather_pixels(x, active), (values,)),
        (lambda x: perfconv.scatter_pixels(x, active), (rows,)),
        (lambda x, y: perfconv.scatter_pixels(x, active, y), (rows, base)),
        (lambda x: conv_grad.differentiable_nearest_fill(x, active.mask), (values,)),
        (lambda x: conv_grad.differentiable_nearest_grad(x, active.mask), (values,)),
        (lambda x: conv_grad.differentiable_active_sum(x, active.mask), (values,)),
    ]
    for function, inputs in cases:
        torch.autograd.gradcheck(function, inputs)
        torch.autograd.gradgradcheck(function, inputs)
