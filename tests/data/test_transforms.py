"""Transforms keep the labels true: a transformed scene is a scene again; and known pixels."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_samples import plane_sample

from perfconv.data import (
    Augmentation,
    Sample,
    colour,
    crop,
    flip,
    gamma,
    gamma_exponent,
    inner_size,
    normals_from_depth,
    pixel_rays,
    rotate,
    scale,
)

tilts = st.tuples(st.floats(-0.6, 0.6), st.floats(-0.6, 0.6))
FIELDS = ("labels", "instances", "depth_m", "depth_valid", "normals", "normals_valid", "boundaries")


def equal(first: Sample, second: Sample) -> bool:
    return torch.equal(first.image, second.image) and all(
        torch.equal(getattr(first, field), getattr(second, field)) for field in FIELDS
    )


def offset_from_plane(sample: Sample) -> float:
    """Spread of n . P over the valid pixels, relative: 0 if depth, normals and camera agree."""
    points = pixel_rays(sample.camera, sample.size) * sample.depth_m
    distance = (points * sample.normals).sum(0)[sample.depth_valid[0]]
    return ((distance.max() - distance.min()) / distance.abs().mean()).item()


def depth_step(sample: Sample) -> float:
    """Greatest relative change of depth from a pixel to the next: what taking the nearest costs."""
    depth = torch.where(sample.depth_valid, sample.depth_m, torch.nan)
    steps = [(depth.diff(dim=dim).abs() / depth.nanmean()).nan_to_num(0).max() for dim in (1, 2)]
    return max(steps).item()


@given(tilts)
@settings(max_examples=20)
def test_flip(tilt: tuple[float, float]) -> None:
    sample = plane_sample(tilt)
    flipped = flip(sample)
    assert equal(flip(flipped), sample)
    assert flip(flipped).camera.centre_x == pytest.approx(sample.camera.centre_x)
    assert torch.equal(flipped.labels, sample.labels.flip(-1))
    assert torch.equal(flipped.normals[0], -sample.normals[0].flip(-1))
    found = normals_from_depth(flipped.depth_m, flipped.camera, edge=1e-3)
    torch.testing.assert_close(found.normals, flipped.normals * found.valid, atol=1e-4, rtol=0)


@given(tilts, st.floats(0.4, 2.5))
@settings(max_examples=30)
def test_scale(tilt: tuple[float, float], factor: float) -> None:
    """The scaled scene is a plane again, seen by the scaled camera, with the scaled normals."""
    sample = plane_sample(tilt)
    scaled = scale(sample, factor)
    assert scaled.size == tuple(round(side * factor) for side in sample.size)
    torch.testing.assert_close(scaled.normals.norm(dim=0), torch.ones(scaled.size))
    assert offset_from_plane(scaled) <= 2 * depth_step(sample) + 1e-4
    middle = scaled.depth_m[0, scaled.size[0] // 2, scaled.size[1] // 2] * factor
    assert middle.item() == pytest.approx(sample.depth_m[0, 12, 15].item(), rel=0.1)
    assert set(scaled.labels.unique().tolist()) <= {1, 2, 255}


@given(tilts, st.sampled_from([2, 3]))
@settings(max_examples=10)
def test_whole_factors_keep_every_pixel(tilt: tuple[float, float], factor: int) -> None:
    sample = plane_sample(tilt)
    scaled = scale(sample, factor)
    for field in ("labels", "instances", "depth_valid", "boundaries"):
        expected = getattr(sample, field)
        for dim in (-1, -2):
            expected = expected.repeat_interleave(factor, dim)
        assert torch.equal(getattr(scaled, field), expected), field
    assert torch.equal(scaled.depth_m[0, ::factor, ::factor] * factor, sample.depth_m[0])
    assert offset_from_plane(scaled) <= 2 * depth_step(sample) + 1e-4
    assert scaled.camera.focal_x == pytest.approx(sample.camera.focal_x)


def test_scaling_down_keeps_boundaries_whole() -> None:
    halved = scale(plane_sample(), 0.5)
    assert halved.boundaries.any(1)[0, 3:9].all()


@given(tilts, st.floats(-45, 45))
@settings(max_examples=30)
def test_rotate(tilt: tuple[float, float], angle_deg: float) -> None:
    sample = plane_sample(tilt)
    turned = rotate(sample, angle_deg)
    assert offset_from_plane(turned) <= 3 * depth_step(sample) + 1e-4
    height, width = inner_size(sample.size, angle_deg)
    inner = crop(
        turned, (sample.size[0] - height) // 2, (sample.size[1] - width) // 2, height, width
    )
    assert inner.depth_valid.all()
    torch.testing.assert_close(inner.normals.norm(dim=0), torch.ones(inner.size))
    outside = ~turned.depth_valid[0]
    assert (turned.labels[outside] == 255).all()
    assert (turned.normals[:, outside] == 0).all()


def test_rotation_is_counter_clockwise() -> None:
    sample = plane_sample(size=(21, 21))
    image = torch.zeros(3, 21, 21)
    image[:, 10, 18] = 1  # 8 to the right of the middle
    normals = torch.zeros(3, 21, 21)
    normals[0] = 1  # to the right
    turned = rotate(replace(sample, image=image, normals=normals), 45)
    row, column = divmod(int(turned.image[0].argmax()), 21)
    assert (row, column) == (4, 16)  # up and to the right
    half = 0.5**0.5
    assert turned.normals[:, 10, 10].tolist() == pytest.approx([half, half, 0])


def test_rotate_by_nothing() -> None:
    sample = plane_sample()
    turned = rotate(sample, 0.0)
    torch.testing.assert_close(turned.image, sample.image)
    assert equal(replace(turned, image=sample.image), sample)
    assert inner_size(sample.size, 0.0) == sample.size


@given(st.integers(0, 23), st.integers(0, 29), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=30)
def test_crop(top: int, left: int, height: int, width: int) -> None:
    sample = plane_sample()
    part = crop(sample, top, left, height, width)
    assert part.size == (height, width)
    inside = min(height, 24 - top), min(width, 30 - left)
    window = (slice(top, top + inside[0]), slice(left, left + inside[1]))
    assert torch.equal(part.labels[: inside[0], : inside[1]], sample.labels[window])
    assert (part.labels[inside[0] :] == 255).all()
    assert not part.depth_valid[0, :, inside[1] :].any()
    assert offset_from_plane(part) < 1e-4


def test_flip_and_crop_commute() -> None:
    sample = plane_sample()
    assert equal(flip(crop(sample, 2, 3, 10, 12)), crop(flip(sample), 2, 30 - 3 - 12, 10, 12))


def test_colour_and_gamma_leave_labels() -> None:
    sample = plane_sample()
    changed = colour(sample, (1.2, 0.5, 1.0))
    assert torch.equal(changed.image[1], sample.image[1] * 0.5)
    assert torch.equal(changed.image[0], (sample.image[0] * 1.2).clamp(max=1))
    assert torch.equal(gamma(sample, 2.0).image, sample.image.square())
    for other in (changed, gamma(sample, 2.0)):
        assert equal(replace(other, image=sample.image), sample)
    assert gamma_exponent(0.0) == 1
    assert gamma_exponent(0.03) == pytest.approx(0.885, abs=1e-3)  # the range in the paper's code
    assert gamma_exponent(-0.03) == pytest.approx(1.130, abs=1e-3)


@given(st.integers(0, 1000))
@settings(max_examples=25)
def test_augmentation(seed: int) -> None:
    sample = plane_sample()
    augment = Augmentation(crop_size=(16, 20))
    first, second = (augment(sample, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert equal(first, second)
    assert first.size == (16, 20)
    assert first.image.min() >= 0
    assert first.image.max() <= 1
    assert offset_from_plane(first) <= 4 * depth_step(sample) + 1e-4
    assert first.camera is not None


def test_augmentations_differ() -> None:
    sample = plane_sample()
    augment = Augmentation(crop_size=(16, 20))
    generator = torch.Generator().manual_seed(0)
    depths = [augment(sample, generator).depth_m.sum().item() for _ in range(5)]
    assert len(set(depths)) == 5


def test_refusals() -> None:
    sample = plane_sample()
    for factor in (0.0, -1.0, 0.01):
        with pytest.raises(ValueError, match="factor must be above 0"):
            scale(sample, factor)
    with pytest.raises(ValueError, match=r"angle_deg must be in \[-45, 45\]"):
        rotate(sample, 60)
    with pytest.raises(ValueError, match="window must begin inside"):
        crop(sample, 24, 0, 5, 5)
    with pytest.raises(ValueError, match="exponent must be above 0"):
        gamma(sample, 0)
    for name, value in (
        ("rotate_deg", 60.0),
        ("gamma_spread", 1.0),
        ("flip_share", 2.0),
        ("scale_range", (2.0, 0.5)),
        ("colour_range", (-1.0, 1.0)),
    ):
        with pytest.raises(ValueError, match=f"Augmentation: {name} must be"):
            Augmentation(**{name: value})
