"""Normals from depth are exact on planes; boundaries from labels."""

import pytest
import torch
from scene_samples import plane_sample

from perfconv.data import Camera, boundaries_from_labels, normals_from_depth, pixel_rays


@pytest.mark.parametrize("radius", [1, 3])
@pytest.mark.parametrize("tilt", [(0.0, 0.0), (0.3, -0.2), (-1.0, 0.5), (0.0, 2.0)])
def test_planes(tilt: tuple[float, float], radius: int) -> None:
    sample = plane_sample(tilt)
    depth = sample.depth_m
    assert (depth > 0).all()
    found = normals_from_depth(depth, sample.camera, radius=radius, edge=1e-3)
    assert found.valid[0, radius:-radius, radius:-radius].all()
    assert found.valid.sum() == (24 - 2 * radius) * (30 - 2 * radius)
    torch.testing.assert_close(
        found.normals * found.valid, sample.normals * found.valid, atol=1e-4, rtol=0
    )


def test_larger_windows_stand_more_noise() -> None:
    sample = plane_sample(size=(60, 80))
    generator = torch.Generator().manual_seed(0)
    noisy = sample.depth_m * (1 + 0.002 * torch.randn(1, 60, 80, generator=generator))
    errors = []
    for radius in (1, 4):
        found = normals_from_depth(noisy, sample.camera, radius=radius)
        assert found.valid.float().mean() > 0.7
        cosine = (found.normals * sample.normals).sum(0)[found.valid[0]]
        errors.append(cosine.clamp(max=1).acos().rad2deg().mean().item())
    assert errors[1] < errors[0] / 5


def test_points_of_pixels() -> None:
    rays = pixel_rays(Camera(10, 20, 2, 1), (4, 5))
    assert rays[:, 1, 2].tolist() == [0, 0, -1]
    assert rays[:, 3, 4].tolist() == pytest.approx([0.2, -0.1, -1])


def test_steps_and_missing_depth_are_not_valid() -> None:
    depth = torch.full((1, 9, 12), 2.0)
    depth[..., 6:] = 2.5
    depth[0, 4, 2] = 0
    valid = torch.ones(1, 9, 12, dtype=torch.bool)
    valid[0, 2, 9] = False
    found = normals_from_depth(depth, Camera(10, 10, 5, 4), valid=valid)
    assert not found.valid[0, :, 5:7].any()
    assert not found.valid[0, [3, 4, 4, 4, 5], [2, 1, 2, 3, 2]].any()
    assert not found.valid[0, 1:4, 9].any()
    assert found.valid[0, 6, [2, 3, 8, 9]].all()
    assert found.normals[:, 6, 3].tolist() == pytest.approx([0, 0, 1], abs=1e-6)
    with pytest.raises(ValueError, match=r"depth_m must be \(1, H, W\)"):
        normals_from_depth(depth[0], Camera(10, 10, 5, 4))
    with pytest.raises(ValueError, match="radius must be 1 or more"):
        normals_from_depth(depth, Camera(10, 10, 5, 4), radius=0)


def test_boundaries() -> None:
    labels = torch.tensor([[0, 0, 1], [0, 0, 1], [2, 2, 2]])
    assert boundaries_from_labels(labels).int().tolist() == [[[0, 1, 0], [1, 1, 1], [0, 0, 0]]]
