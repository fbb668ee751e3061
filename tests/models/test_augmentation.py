"""predict_augmented: what it undoes is undone exactly, runs are merged as said, refusals."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from perfconv.models import predict_augmented


def image(height: int = 6, width: int = 8) -> Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def slope(images: Tensor) -> dict[str, Tensor]:
    """A network that takes an image s times 8 pixels wide for a scene with depth / s."""
    scale = images.size(3) / 8
    vectors = torch.cat([images[:, :2], scale * images[:, 2:]], 1)
    return {"log_depth": (images[:, :1] / scale).log(), "normals": F.normalize(vectors, dim=1)}


def test_flips_are_undone() -> None:
    """A network whose x follows the slope of the image to the right, which a mirror turns round."""

    def network(images: Tensor) -> dict[str, Tensor]:
        to_the_right = images.roll(-1, 3) - images.roll(1, 3)
        vectors = torch.cat([to_the_right[:, :1], images[:, 1:]], 1)
        return {"normals": F.normalize(vectors, dim=1), "log_depth": images[:, :1]}

    merged, expected = predict_augmented(network, image()), network(image())
    torch.testing.assert_close(merged["normals"], expected["normals"])
    torch.testing.assert_close(merged["log_depth"], expected["log_depth"])


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_scales_are_undone(scale: float) -> None:
    """Of images without detail, whose scaling loses nothing."""
    flat = image()[:, :, :1, :1].expand(2, 3, 6, 8).contiguous()
    merged = predict_augmented(slope, flat, scales=(scale,), flip=False)
    expected = slope(flat)
    torch.testing.assert_close(merged["log_depth"], expected["log_depth"])
    torch.testing.assert_close(merged["normals"], expected["normals"])


def test_images_in_16_bits() -> None:
    merged = predict_augmented(slope, image().bfloat16(), scales=(0.5, 1.0))
    expected = predict_augmented(slope, image(), scales=(0.5, 1.0))
    torch.testing.assert_close(
        merged["log_depth"].float(), expected["log_depth"], atol=0.05, rtol=0.05
    )


def test_flip_commutes() -> None:
    """With mirrored runs the prediction of a mirrored image is the mirrored prediction."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(3, 9, 3, padding=1)

    def network(images: Tensor) -> dict[str, Tensor]:
        segmentation, depth, normals, boundary = layer(images).split([4, 1, 3, 1], 1)
        return {
            "segmentation": segmentation,
            "log_depth": depth,
            "normals": normals,
            "boundary": boundary,
        }

    options = {"scales": (0.5, 1.0, 1.5)}
    with torch.no_grad():
        first = predict_augmented(network, image(), **options)
        second = predict_augmented(network, image().flip(-1), **options)
    signs = torch.tensor([-1.0, 1, 1])[:, None, None]
    for task, map in first.items():
        expected = map.flip(-1) * signs if task == "normals" else map.flip(-1)
        torch.testing.assert_close(second[task], expected)
    assert first["segmentation"].shape == (2, 4, 6, 8)
    ones = torch.ones(2, 6, 8)
    torch.testing.assert_close(first["segmentation"].sum(1), ones)
    torch.testing.assert_close(first["normals"].norm(dim=1), ones)


@pytest.mark.parametrize("merge", ["mean", "max"])
def test_merging(merge: str) -> None:
    answers = iter([torch.tensor([0.0, math.log(3)]), torch.tensor([math.log(9), 0.0])])

    def network(images: Tensor) -> dict[str, Tensor]:
        return {"segmentation": next(answers).reshape(1, 2, 1, 1).expand(1, 2, 3, 4)}

    merged = predict_augmented(network, torch.zeros(1, 3, 3, 4), merge=merge)["segmentation"]
    first = {"mean": (0.25 + 0.9) / 2, "max": 0.9 / (0.9 + 0.75)}[merge]
    torch.testing.assert_close(merged[0, :, 0, 0], torch.tensor([first, 1 - first]))


def test_small_outputs_are_scaled_up() -> None:
    merged = predict_augmented(lambda x: {"boundary": x[:, :1, ::2, ::2]}, image())
    assert merged["boundary"].shape == (2, 1, 6, 8)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="scales must hold numbers above 0"):
        predict_augmented(slope, image(), scales=())
    with pytest.raises(ValueError, match="scales must hold numbers above 0"):
        predict_augmented(slope, image(), scales=(1.0, 0.0))
    with pytest.raises(ValueError, match="merge must be 'mean' or 'max'"):
        predict_augmented(slope, image(), merge="sum")
    with pytest.raises(ValueError, match="must not become empty"):
        predict_augmented(slope, image(), scales=(0.01,))
    with pytest.raises(ValueError, match="scales must hold numbers above 0"):
        predict_augmented(slope, image(), scales=(math.inf,))
    with pytest.raises(ValueError, match=r"images must be \(N, C, H, W\), got \(3, 6, 8\)"):
        predict_augmented(slope, image()[0])
    with pytest.raises(TypeError, match="images must be floating point, got torch.uint8"):
        predict_augmented(slope, image().byte())
    with pytest.raises(ValueError, match=r"boundary must be \(N, C, H, W\)"):
        predict_augmented(lambda x: {"boundary": x[:, 0]}, image())
    with pytest.raises(TypeError, match="predict must return a dictionary of tasks, got a Tensor"):
        predict_augmented(lambda x: x, image())
    with pytest.raises(KeyError, match="got 'depth'"):
        predict_augmented(lambda x: {"depth": x}, image())
