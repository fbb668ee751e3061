"""PerspectiveScenes: labels, depth, normals and boundaries agree; perspective; seeds."""

import pytest
import torch

from perfconv.data import (
    PerspectiveScenes,
    boundaries_from_labels,
    collate,
    normals_from_depth,
    pixel_rays,
)
from perfconv.data.scenes import CLASSES

LABEL = {name: number for number, name in enumerate(CLASSES)}
SIZE = (64, 80)


@pytest.mark.parametrize("kind", ["street", "room"])
@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_normals_from_depth(kind: str, index: int) -> None:
    scene = PerspectiveScenes(4, size=SIZE, kind=kind)[index]
    found = normals_from_depth(scene.depth_m, scene.camera, edge=1e-3)
    assert found.valid.float().mean() > 0.3
    cosine = (found.normals * scene.normals).sum(0)[found.valid[0]]
    assert cosine.quantile(0.02) > 0.999  # 2.6 degrees; what is left are creases and round things
    lengths = scene.normals.norm(dim=0)
    torch.testing.assert_close(lengths, scene.normals_valid[0].float())
    assert torch.equal(scene.normals_valid, scene.depth_valid)


@pytest.mark.parametrize("kind", ["street", "room"])
def test_normals_face_the_viewer(kind: str) -> None:
    for scene in [PerspectiveScenes(5, size=SIZE, kind=kind)[i] for i in range(5)]:
        towards = -(pixel_rays(scene.camera, SIZE) * scene.normals).sum(0)
        assert (towards[scene.normals_valid[0]] > -1e-5).all()


@pytest.mark.parametrize("kind", ["street", "room"])
def test_boundaries_from_labels(kind: str) -> None:
    scene = PerspectiveScenes(3, size=SIZE, kind=kind)[1]
    assert torch.equal(scene.boundaries, boundaries_from_labels(scene.instances))
    of_labels = boundaries_from_labels(scene.labels)
    assert (scene.boundaries | ~of_labels).all()
    assert of_labels.any()
    for instance in scene.instances.unique():
        assert len(scene.labels[scene.instances == instance].unique()) == 1


def test_sky_alone_is_without_depth() -> None:
    for scene in [PerspectiveScenes(6, size=SIZE)[i] for i in range(6)]:
        is_sky = scene.labels == LABEL["sky"]
        assert torch.equal(scene.depth_valid[0], ~is_sky)
        assert (scene.depth_m[0][is_sky] == 0).all()


def test_ground_is_level_and_below() -> None:
    """Points on the road have one height, whatever the camera's pitch and yaw."""
    scene = PerspectiveScenes(1, size=SIZE, kind="street")[0]
    road = scene.labels == LABEL["road"]
    assert road.sum() > 200
    normal = scene.normals[:, road][:, 0]
    points = (pixel_rays(scene.camera, SIZE) * scene.depth_m)[:, road]
    heights = normal @ points
    torch.testing.assert_close(heights, heights.mean().expand_as(heights), atol=1e-3, rtol=1e-3)
    assert -2.3 < heights.mean() < -1.2


def test_vehicles_shrink_with_distance() -> None:
    """Height in pixels times depth is the same for all: metres."""
    metres = []
    for scene in [PerspectiveScenes(60, size=SIZE, kind="street")[i] for i in range(60)]:
        for instance in scene.instances.unique():
            pixels = scene.instances == instance
            label = scene.labels[pixels][0]
            rows = pixels.any(1).nonzero()
            is_whole = rows.min() > 0 and rows.max() < SIZE[0] - 1 and pixels.sum() > 30
            if label in (LABEL["car"], LABEL["van"]) and is_whole:
                depth = scene.depth_m[0][pixels].min()
                metres.append(((rows.max() - rows.min() + 1) * depth / scene.camera.focal_y).item())
    assert len(metres) > 60
    spread = torch.tensor(metres)
    assert 1.0 < spread.quantile(0.1) < spread.quantile(0.9) < 3.5


def test_classes_are_balanced_enough() -> None:
    scenes = [PerspectiveScenes(80, size=SIZE)[i] for i in range(80)]
    pixels = torch.stack([torch.bincount(s.labels.flatten(), minlength=20) for s in scenes]).sum(0)
    assert (pixels > 0.0005 * pixels.sum()).all()
    for first, second in (("car", "van"), ("cabinet", "shelf"), ("house", "office")):
        assert 1 / 4 < pixels[LABEL[first]] / pixels[LABEL[second]] < 4


def test_seeded() -> None:
    first, second = PerspectiveScenes(4, size=SIZE, seed=1), PerspectiveScenes(9, size=SIZE, seed=1)
    state = torch.random.get_rng_state()
    assert torch.equal(first[3].image, second[3].image)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(first[3].labels, PerspectiveScenes(4, size=SIZE, seed=2)[3].labels)
    assert not torch.equal(first[3].labels, first[1].labels)


def test_noise_is_the_image_s_only() -> None:
    plain, noisy = (PerspectiveScenes(1, size=SIZE, noise=noise)[0] for noise in (0.0, 0.1))
    assert torch.equal(plain.labels, noisy.labels)
    assert torch.equal(plain.depth_m, noisy.depth_m)
    inside = (plain.image > 0.3) & (plain.image < 0.7)  # not clamped
    assert (noisy.image - plain.image)[inside].std().item() == pytest.approx(0.1, rel=0.05)


def test_any_size_and_batches() -> None:
    scenes = PerspectiveScenes(2, size=(40, 33))
    batch = collate([scenes[0], scenes[1]])
    assert batch.image.shape == (2, 3, 40, 33)
    assert batch.boundaries.shape == (2, 1, 40, 33)
    assert batch.image.min() >= 0
    assert batch.image.max() <= 1
    with pytest.raises(IndexError, match=r"index must be in \[0, 2\), got 2"):
        scenes[2]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="kind must be 'street', 'room' or 'both'"):
        PerspectiveScenes(1, kind="forest")
    with pytest.raises(ValueError, match="sides 8 pixels or more"):
        PerspectiveScenes(1, size=(4, 80))
