"""Mask operators on CUDA."""

import pytest
import torch
from cuda_backend import Backend
from helpers import random_mask
from torch import Tensor

import perfconv
from perfconv.ops import reference

SECTION = 2048  # pixels that one block of the compaction takes (csrc/cuda/kernels/launch.h)
GROUP = 512  # sections whose counts it adds directly (csrc/cuda/kernels/compact_mask.cu)

# Ragged ends, section boundaries, warps in one image and across several, images without pixels.
SHAPES = [
    (1, 1, 1),
    (1, 5, 7),
    (3, 9, 11),
    (2, 32, 32),
    (1, SECTION - 1, 1),
    (1, 32, SECTION // 32),
    (1, 1, SECTION + 1),
    (2, 41, 50),
    (3, 23, 89),
    (SECTION + 5, 1, 1),
    (40, 8, 33),
    (0, 4, 4),
    (3, 0, 4),
]


def assert_compacted(backend: Backend, mask: Tensor) -> None:
    """The three results of compact_mask, against the definition."""
    active_idx, count, image_counts = backend.ops.compact_mask(mask)
    expected = mask.cpu().flatten().nonzero()[:, 0]
    assert active_idx.dtype == count.dtype == image_counts.dtype == torch.int32
    assert count.tolist() == [len(expected)]
    assert active_idx[: len(expected)].tolist() == expected.tolist()
    assert (active_idx[len(expected) :] == -1).all()
    assert image_counts.tolist() == mask.flatten(1).sum(1).tolist()


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_compact_mask(backend: Backend, shape: tuple[int, int, int], density: float) -> None:
    batch, height, width = shape
    assert_compacted(
        backend, random_mask(batch, 1, height, width, density=density).to(backend.device)
    )


@pytest.mark.parametrize("place", [0, SECTION - 1, SECTION, 3 * SECTION - 1])
def test_compact_mask_of_one_pixel(backend: Backend, place: int) -> None:
    mask = torch.zeros(3, 1, 32, SECTION // 32, dtype=torch.bool, device=backend.device)
    mask.view(-1)[place] = True
    assert_compacted(backend, mask)


def test_compact_mask_of_an_unaligned_view(backend: Backend) -> None:
    """It starts three bytes off every load of eight."""
    storage = random_mask(3 + 2 * 40 * 50).to(backend.device)
    assert_compacted(backend, storage[3:].view(2, 1, 40, 50))


def test_compact_mask_of_transposed_and_expanded(backend: Backend) -> None:
    mask = random_mask(2, 1, 40, 50).to(backend.device)
    assert_compacted(backend, mask.transpose(2, 3))
    assert_compacted(backend, mask[:1].expand(3, 1, 40, 50))


def test_compact_mask_beyond_one_level_of_the_prefix(backend: Backend) -> None:
    """Two groups of sections, the second one ragged."""
    mask = torch.zeros(2, 1, GROUP + 3, SECTION // 2 + 1, dtype=torch.bool)
    mask[0, 0, :9] = random_mask(9, mask.size(3))
    mask[1, 0, -9:] = random_mask(9, mask.size(3), seed=1)
    assert_compacted(backend, mask.to(backend.device))


@pytest.mark.parametrize("shape", [(3, 9, 11), (2, 30, 40)], ids=str)
def test_shared_mask(backend: Backend, shape: tuple[int, int, int]) -> None:
    """One mask image for a batch: what a convolution makes of it (its list has no other door)."""
    batch, height, width = shape
    mask = random_mask(1, 1, height, width)
    input = torch.randn(batch, 1, height, width)
    found = backend.ops.perforated_conv2d(
        *backend.to(input, torch.ones(1, 1, 1, 1), mask), algorithm="direct"
    )
    assert torch.equal(found.cpu(), torch.where(mask, input, 0))


GEOMETRIES = {
    "plain": ((9, 11), (3, 3), (1, 1), (1, 1), (1, 1)),
    "stride": ((9, 12), (3, 2), (2, 3), (1, 0), (1, 1)),
    "dilation-beyond-map": ((5, 7), (3, 3), (1, 1), (9, 9), (9, 9)),
    "stride-dilation": ((13, 10), (3, 5), (2, 1), (2, 4), (3, 2)),
    "padding-beyond-kernel": ((4, 4), (2, 2), (1, 1), (3, 3), (1, 1)),
    "one-by-one": ((6, 5), (1, 1), (3, 2), (0, 0), (1, 1)),
}


@pytest.mark.parametrize("density", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_expand_mask(backend: Backend, name: str, density: float) -> None:
    size, kernel, stride, padding, dilation = GEOMETRIES[name]
    sides = [
        (size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in (0, 1)
    ]
    mask = random_mask(2, 1, *sides, density=density)
    expected = reference.expand_mask(
        mask, kernel, stride=stride, padding=padding, dilation=dilation, input_size=size
    )
    (given,) = backend.to(mask)
    found = backend.ops.expand_mask(
        given, kernel, stride, [padding[0]] * 2 + [padding[1]] * 2, dilation, size
    )
    assert found.dtype == torch.bool
    assert torch.equal(found.cpu(), expected)


def test_expand_mask_kernel_wider_than_the_image(backend: Backend) -> None:
    """Costs no more than the image, and no batch is no work."""
    mask, huge = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=backend.device), 2**29
    sides = [huge - 1] * 4
    arguments = ([2 * huge - 1] * 2, [1, 1], sides, [1, 1], [1, 1])
    assert backend.ops.expand_mask(mask, *arguments).all()
    assert backend.ops.expand_mask(mask[:0], *arguments).shape == (0, 1, 1, 1)


def test_same_bits_in_any_schedule(backend: Backend) -> None:
    mask = random_mask(3, 1, 57, 61).to(backend.device)
    for seed, multiprocessors in ((2, 1), (3, 4)):
        if backend.emulator is not None:
            backend.emulator.set(seed=seed, sms=multiprocessors)
        assert_compacted(backend, mask)
        arguments = ([3, 3], [1, 1], [1, 1, 1, 1], [1, 1], [57, 61])
        expected = perfconv.expand_mask(mask.cpu(), 3, padding=1)
        assert torch.equal(backend.ops.expand_mask(mask, *arguments).cpu(), expected)
