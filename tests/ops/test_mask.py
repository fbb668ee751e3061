"""Masks: compaction, halo, other resolutions, density."""

import pytest
import torch
from helpers import random_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import pairs, problems
from torch import Tensor

import perfconv
from perfconv.ops import reference
from perfconv.ops.mask import ActivePixels

# ---- compact_mask ------------------------------------------------------------------------------

masks = st.builds(
    random_mask,
    st.integers(0, 3),
    st.just(1),
    st.integers(0, 9),
    st.integers(0, 17),
    density=st.sampled_from((0.0, 0.05, 0.5, 0.95, 1.0)),
    seed=st.integers(0, 999),
)


@settings(max_examples=200)
@given(mask=masks)
def test_compact_mask(mask: Tensor) -> None:
    active = perfconv.compact_mask(mask)
    positions = reference.active_positions(mask)
    assert active.mask is mask
    assert active.active_idx.dtype == active.count.dtype == active.image_counts.dtype == torch.int32
    assert active.active_idx.tolist() == positions + [-1] * (mask.numel() - len(positions))
    assert active.count.tolist() == [len(positions)]
    assert active.image_counts.tolist() == mask.flatten(1).sum(1).tolist()


@pytest.mark.parametrize("layout", ["transposed", "expanded", "sliced"])
def test_compact_mask_of_views(layout: str) -> None:
    mask = {
        "transposed": random_mask(2, 1, 7, 9).transpose(2, 3),
        "expanded": random_mask(1, 1, 7, 9).expand(3, 1, 7, 9),
        "sliced": random_mask(2, 1, 14, 9)[:, :, ::2],
    }[layout]
    expected = perfconv.compact_mask(mask.contiguous())
    assert torch.equal(perfconv.compact_mask(mask).active_idx, expected.active_idx)


def test_the_list_is_a_function_of_the_mask() -> None:
    """Same mask, same order; ascending, as the CPU makes it."""
    mask = random_mask(3, 1, 20, 31)
    first, second = perfconv.compact_mask(mask), perfconv.compact_mask(mask.clone())
    assert torch.equal(first.active_idx, second.active_idx)
    listed = first.active_idx[: int(first.count)]
    assert torch.equal(listed, listed.sort().values)


def test_active_pixels_pass_through() -> None:
    active = perfconv.compact_mask(random_mask(1, 1, 3, 3))
    assert perfconv.compact_mask(active) is active
    leaves, tree = torch.utils._pytree.tree_flatten(active)
    assert len(leaves) == 4
    assert isinstance(torch.utils._pytree.tree_unflatten(leaves, tree), ActivePixels)


# ---- expand_mask -------------------------------------------------------------------------------


@settings(max_examples=200)
@given(problem=problems())
def test_expand_mask(problem) -> None:
    if problem.padding == "same":
        return
    mask = random_mask(*(problem.batch, 1, *problem.output_shape[2:]), density=problem.density)
    geometry = {key: getattr(problem, key) for key in ("stride", "padding", "dilation")}
    expected = reference.expand_mask(mask, problem.kernel, **geometry, input_size=problem.size)
    found = perfconv.expand_mask(mask, problem.kernel, **geometry, input_size=problem.size)
    assert found.dtype == torch.bool
    assert torch.equal(found, expected)
    if problem.stride == (1, 1):
        assert torch.equal(perfconv.expand_mask(mask, problem.kernel, **geometry), expected)


def test_expand_mask_same_padding() -> None:
    mask = random_mask(1, 1, 8, 9, density=0.1)
    expected = perfconv.expand_mask(mask, 3, padding=2, dilation=2)
    assert torch.equal(perfconv.expand_mask(mask, 3, padding="same", dilation=2), expected)
    assert perfconv.expand_mask(mask, (2, 4), padding="same").shape == mask.shape
    active = perfconv.compact_mask(mask)
    assert torch.equal(perfconv.expand_mask(active, 3, padding=2, dilation=2), expected)


def test_a_kernel_wider_than_the_image_costs_no_more_than_the_image() -> None:
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    huge = 2**29
    expanded = perfconv.expand_mask(mask, 2 * huge - 1, padding=huge - 1, input_size=1)
    assert expanded.all()


# ---- downsample_mask, density --------------------------------------------------------------------


@settings(max_examples=150)
@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    stride=pairs(1, 5),
    floors=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 999),
)
def test_downsample_mask(size, stride, floors, seed: int) -> None:
    """Each cell by its own slice; with a floored size the last cell takes the rest."""
    mask = random_mask(2, 1, *size, density=0.15, seed=seed)
    wanted = [
        max(1, length // step) if floor else -(-length // step)
        for length, step, floor in zip(size, stride, floors, strict=True)
    ]
    found = perfconv.downsample_mask(mask, stride, size=tuple(wanted))
    assert found.shape == (2, 1, *wanted)
    for i in range(wanted[0]):
        for j in range(wanted[1]):
            bottom = size[0] if i == wanted[0] - 1 else (i + 1) * stride[0]
            right = size[1] if j == wanted[1] - 1 else (j + 1) * stride[1]
            cell = mask[:, :, i * stride[0] : bottom, j * stride[1] : right]
            assert torch.equal(found[:, :, i, j], cell.any(-1).any(-1))
    if not any(floors):
        assert torch.equal(perfconv.downsample_mask(mask, stride), found)


def test_density() -> None:
    mask = torch.zeros(3, 1, 4, 5, dtype=torch.bool)
    mask[1, 0, 0, 0] = True
    mask[2] = True
    assert perfconv.density(mask).tolist() == pytest.approx([0, 0.05, 1])
    assert torch.equal(perfconv.density(perfconv.compact_mask(mask)), perfconv.density(mask))
