"""The nearest fill on CUDA: its values to the last bit, its gradient against the definition."""

import pytest
import torch
from cuda_backend import Backend
from helpers import DTYPES, allowed_error, largest, random_mask, relayout
from torch import Tensor

from perfconv.ops import reference

# Shorter and longer than the segments of a column (16), narrower and wider than a strip (32).
SIZES = [(1, 1), (1, 40), (37, 1), (9, 33), (16, 32), (19, 21)]


def image(batch: int, channels: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, channels, *size, generator=generator).to(dtype)


def masks(batch: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """Named patterns; the first image of "one-pixel" has the only one."""
    one = torch.zeros(batch, 1, *size, dtype=torch.bool)
    one[:1, :, size[0] // 2, size[1] // 3] = True
    corners = torch.zeros(batch, 1, *size, dtype=torch.bool)
    corners[:, :, :: max(1, size[0] - 1), :: max(1, size[1] - 1)] = True  # many ties
    return {
        "none": torch.zeros_like(one),
        "one-pixel": one,
        "corners": corners,
        "sparse": random_mask(batch, 1, *size, density=0.04),
        "random": random_mask(batch, 1, *size, density=0.3, seed=5),
        "all": torch.ones_like(one),
    }


PATTERNS = tuple(masks(1, (2, 2)))


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_fill(backend: Backend, size: tuple[int, int], pattern: str) -> None:
    values, mask = image(2, 3, size, torch.float32), masks(2, size)[pattern]
    found = backend.ops.nearest_fill(*backend.to(values, mask))
    assert torch.equal(found.cpu(), reference.nearest_fill(values, mask))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "offset"])
@pytest.mark.parametrize("channels", [8, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_and_layouts(
    backend: Backend, dtype: torch.dtype, channels: int, layout: str
) -> None:
    """A mask of one image serves both."""
    values, mask = image(2, channels, (9, 11), dtype), masks(1, (9, 11))["random"]
    given = relayout(values.to(backend.device), layout)
    found = backend.ops.nearest_fill(given, *backend.to(mask))
    assert torch.equal(found.cpu(), reference.nearest_fill(values, mask))
    is_last = layout == "channels_last"
    assert found.is_contiguous(
        memory_format=torch.channels_last if is_last else torch.contiguous_format
    )


def assert_gradient(backend: Backend, grad: Tensor, mask: Tensor) -> None:
    """Twice the error of the same sum in the dtype of grad, by torch."""
    exact, dense, sums = (
        gradient_of_reference(values, mask) for values in (grad.double(), grad, grad.double().abs())
    )
    found = backend.ops.nearest_fill_grad(*backend.to(grad, mask)).cpu()
    assert found.dtype == grad.dtype
    assert found.shape == grad.shape
    assert largest(found.double() - exact) <= allowed_error(exact, dense, sums)
    assert not torch.where(mask, 0, found).any()


def gradient_of_reference(grad: Tensor, mask: Tensor) -> Tensor:
    values = torch.zeros_like(grad, requires_grad=True)
    return torch.autograd.grad(reference.nearest_fill(values, mask), values, grad)[0]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_gradient(backend: Backend, size: tuple[int, int], pattern: str) -> None:
    assert_gradient(backend, image(2, 3, size, torch.float32), masks(2, size)[pattern])


@pytest.mark.parametrize("channels", [8, 5, 72])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_in_other_dtypes(backend: Backend, dtype: torch.dtype, channels: int) -> None:
    assert_gradient(backend, image(2, channels, (9, 11), dtype), masks(1, (9, 11))["sparse"])


def test_more_pixels_than_threads(backend: Backend) -> None:
    """Every loop over the pixels goes round several times, on any number of multiprocessors."""
    if backend.emulator is not None:
        backend.emulator.set(sms=1)
    size = (41, 57)
    values, mask = image(1, 3, size, torch.float32), random_mask(1, 1, *size, density=0.02)
    found = backend.ops.nearest_fill(*backend.to(values, mask))
    assert torch.equal(found.cpu(), reference.nearest_fill(values, mask))
    assert_gradient(backend, values, mask)


def test_empty_batch(backend: Backend) -> None:
    values, mask = backend.to(image(0, 3, (4, 5), torch.float32), masks(0, (4, 5))["all"])
    assert backend.ops.nearest_fill(values, mask).shape == values.shape
    assert backend.ops.nearest_fill_grad(values, mask).shape == values.shape


def test_same_bits_in_any_schedule(backend: Backend) -> None:
    """The gradient too: every sum has one order."""
    values, mask = backend.to(image(2, 3, (19, 21), torch.float32), masks(2, (19, 21))["sparse"])
    first = backend.ops.nearest_fill(values, mask), backend.ops.nearest_fill_grad(values, mask)
    for seed, multiprocessors in ((2, 1), (3, 4)):
        if backend.emulator is not None:
            backend.emulator.set(seed=seed, sms=multiprocessors)
        assert torch.equal(backend.ops.nearest_fill(values, mask), first[0])
        assert torch.equal(backend.ops.nearest_fill_grad(values, mask), first[1])


def test_refused_as_on_the_cpu(backend: Backend) -> None:
    values, mask = backend.to(image(2, 3, (4, 5), torch.float32), masks(2, (4, 5))["all"])
    with pytest.raises(ValueError, match="nearest_fill: mask must be"):
        backend.ops.nearest_fill(values, mask[:, :, :3])
    with pytest.raises(ValueError, match="nearest_fill_grad: grad must be"):
        backend.ops.nearest_fill_grad(values[0], mask)
