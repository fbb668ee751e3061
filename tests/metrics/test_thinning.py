"""Skeletons and non-maximum suppression."""

import pytest
import torch
import torch.nn.functional as F

from perfconv.metrics import suppress_non_maxima, thin


@pytest.mark.parametrize("density", [0.1, 0.4, 0.7, 0.95])
@pytest.mark.parametrize("blobs", [False, True])
def test_against_scikit_image(density: float, blobs: bool) -> None:
    reason = "scikit-image is not installed"
    morphology = pytest.importorskip("skimage.morphology", reason=reason)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, 41, 52, generator=generator)
    if blobs:
        noise = F.avg_pool2d(noise, 5, 1, 2)
    maps = noise[0] < noise.flatten().quantile(density)
    thinned = thin(maps)
    for map, found in zip(maps, thinned, strict=True):
        assert torch.equal(found, torch.from_numpy(morphology.thin(map.numpy())))
    assert 0 < thinned.sum() < maps.sum()


def test_thin_shapes() -> None:
    assert not thin(torch.zeros(2, 4, 4, dtype=torch.bool)).any()
    line = torch.zeros(5, 7, dtype=torch.bool)
    line[2] = True
    assert torch.equal(thin(line), line)
    full = torch.ones(1, 1, dtype=torch.bool)
    assert torch.equal(thin(full), full)
    with pytest.raises(TypeError, match="boundaries must be bool, got torch.float32"):
        thin(torch.ones(3, 3))


def ridge(angle_deg: float, size: int = 41) -> torch.Tensor:
    """(1, 1, size, size): a straight ridge through the middle; and the distance from it."""
    angle = torch.tensor(angle_deg).deg2rad()
    coordinates = torch.arange(size) - size // 2
    y, x = torch.meshgrid(coordinates, coordinates, indexing="ij")
    return (x * angle.sin() - y * angle.cos()).abs()[None, None]


@pytest.mark.parametrize("angle_deg", [0.0, 30.0, 45.0, 90.0, 120.0])
def test_only_the_crest_stays(angle_deg: float) -> None:
    distance = ridge(angle_deg)
    kept = suppress_non_maxima((-distance.square() / 18).exp()) > 0
    inside = torch.zeros_like(kept)
    inside[..., 8:-8, 8:-8] = True
    assert (distance[kept & inside] <= 0.75).all()
    assert kept[inside & (distance < 0.3)].all()


def test_values_fall_towards_the_rim() -> None:
    kept = suppress_non_maxima(torch.ones(1, 1, 20, 30))
    assert kept[0, 0, 10, :6].tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert kept[0, 0, 2, 3].item() == pytest.approx(0.4 * 0.6)


def test_refusals() -> None:
    with pytest.raises(TypeError, match="must be float32 or float64"):
        suppress_non_maxima(torch.ones(1, 1, 20, 20).half())
    with pytest.raises(ValueError, match=r"must be \(N, 1, H, W\) with sides above 4"):
        suppress_non_maxima(torch.ones(1, 1, 4, 20))
