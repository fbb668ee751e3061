"""gather_pixels and scatter_pixels on CUDA: copies, so equal to the last bit."""

import pytest
import torch
from cuda_backend import Backend
from helpers import DTYPES, random_mask, relayout
from torch import Tensor

import perfconv

# Channels that fill 16 bytes, that do not, one alone, more than a warp takes at once.
CHANNELS = (1, 8, 13, 24, 272)
DENSITIES = (0.0, 0.01, 0.4, 1.0)


def image(channels: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, 7, 9, generator=generator).to(dtype)


def active(density: float, batch: int = 2) -> perfconv.ActivePixels:
    return perfconv.compact_mask(random_mask(batch, 1, 7, 9, density=density))


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_round_trip(backend: Backend, dtype: torch.dtype, channels: int, density: float) -> None:
    values, base, listed = image(channels, dtype), image(channels, dtype, 1), active(density)
    mask, active_idx, count, given = backend.to(listed.mask, *listed[1:3], values)
    rows = backend.ops.gather_pixels(given, active_idx, count)
    assert torch.equal(rows.cpu(), perfconv.gather_pixels(values, listed))
    rows[int(listed.count) :] = torch.nan  # never read
    for under in (None, base):
        found = backend.ops.scatter_pixels(rows, mask, active_idx, count, *backend.to(under))
        expected = torch.where(listed.mask, values, 0 if under is None else under)
        assert torch.equal(found.cpu(), expected)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_more_rows_than_threads(backend: Backend) -> None:
    """Every loop over the rows goes round several times, on any number of multiprocessors."""
    if backend.emulator is not None:
        backend.emulator.set(sms=1)
    mask = random_mask(2, 1, 33, 39)
    listed = perfconv.compact_mask(mask)
    values = torch.randn(2, 33, 33, 39)  # 32 threads a row, two words for the first of them
    given, active_idx, count, on_device = backend.to(values, *listed[1:3], mask)
    rows = backend.ops.gather_pixels(given, active_idx, count)
    assert torch.equal(rows.cpu(), perfconv.gather_pixels(values, listed))
    found = backend.ops.scatter_pixels(rows, on_device, active_idx, count, None)
    assert torch.equal(found.cpu(), torch.where(mask, values, 0))


@pytest.mark.parametrize("layout", ["channels_last", "strided", "offset", "expanded"])
def test_layouts(backend: Backend, layout: str) -> None:
    """offset: no row starts at a multiple of 16 bytes, though each is a multiple long."""
    listed = active(0.4)
    (values,) = backend.to(image(8, torch.float32).contiguous(memory_format=torch.channels_last))
    if layout == "offset":
        storage = values.new_empty(values.numel() + 1)
        view = storage[1:].view(2, 7, 9, 8).permute(0, 3, 1, 2)
        view.copy_(values)
    else:
        view = relayout(values, layout)
    active_idx, count = backend.to(*listed[1:3])
    rows = backend.ops.gather_pixels(view, active_idx, count)
    assert torch.equal(rows.cpu(), perfconv.gather_pixels(view.cpu(), listed))


def test_the_list_decides_what_is_scattered(backend: Backend) -> None:
    """The mask gives the shape alone: the gradient of gather_pixels has none of its own."""
    listed = active(0.4)
    rows = perfconv.gather_pixels(image(8, torch.float32), listed)
    arguments = backend.to(rows, torch.ones_like(listed.mask), *listed[1:3])
    found = backend.ops.scatter_pixels(*arguments, None)
    assert torch.equal(found.cpu(), perfconv.scatter_pixels(rows, listed))


def test_empty_batch(backend: Backend) -> None:
    values, listed = image(8, torch.float32)[:0], active(0.4, batch=0)
    given, active_idx, count, mask = backend.to(values, *listed[1:3], listed.mask)
    rows = backend.ops.gather_pixels(given, active_idx, count)
    assert rows.shape == (0, 8)
    assert backend.ops.scatter_pixels(rows, mask, active_idx, count, None).shape == values.shape


@pytest.mark.parametrize("entry", [10**6, -5])
def test_entries_outside_the_image_touch_nothing(backend: Backend, entry: int) -> None:
    """The CPU refuses such a list; the device cannot without waiting, so it skips the entry."""
    listed = active(0.4)
    broken = listed.active_idx.clone()
    broken[2] = entry
    values = image(8, torch.float32)
    given, active_idx, count, mask = backend.to(values, broken, listed.count, listed.mask)
    rows = backend.ops.gather_pixels(given, active_idx, count)
    assert not rows[2].any()
    found = backend.ops.scatter_pixels(rows, mask, active_idx, count, None).cpu()
    expected = torch.where(listed.mask, values, 0).permute(0, 2, 3, 1).reshape(-1, 8)
    expected[listed.active_idx[2]] = 0
    assert torch.equal(found.permute(0, 2, 3, 1).reshape(-1, 8), expected)


def test_refused_as_on_the_cpu(backend: Backend) -> None:
    listed = active(0.4)
    values, active_idx, count = backend.to(image(8, torch.float32), *listed[1:3])
    for arguments, word in (
        ((values[:1], active_idx, count), r"\(63,\)"),
        ((values, active_idx.long(), count), "int32"),
        ((values.int(), active_idx, count), "float32"),
    ):
        with pytest.raises(ValueError, match=f"gather_pixels: .*{word}"):
            backend.ops.gather_pixels(*arguments)
