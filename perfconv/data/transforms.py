"""Transforms of a Sample that move or change all of its labels together.

Geometry: a transformed sample is again an image of a scene by its camera, so that normals computed
from its depth are its normals. Images are interpolated, everything else takes the nearest pixel.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from perfconv.data.sample import IGNORE, Camera, Sample

GREATEST_ANGLE_DEG = 45.0


def _moved(
    sample: Sample,
    image: Callable[[Tensor], Tensor],
    nearest: Callable[[Tensor, int], Tensor],
) -> Sample:
    """``image`` applied to the image; ``nearest(map, fill)``, of (C, H, W), to everything else."""

    def of(tensor: Tensor | None, fill: int = 0) -> Tensor | None:
        return None if tensor is None else nearest(tensor, fill)

    def of_plane(tensor: Tensor | None, fill: int) -> Tensor | None:
        return None if tensor is None else nearest(tensor[None], fill)[0]

    return replace(
        sample,
        image=image(sample.image),
        labels=of_plane(sample.labels, IGNORE),
        instances=of_plane(sample.instances, 0),
        depth_m=of(sample.depth_m),
        depth_valid=of(sample.depth_valid),
        normals=of(sample.normals),
        normals_valid=of(sample.normals_valid),
        boundaries=of(sample.boundaries),
    )


def flip(sample: Sample) -> Sample:
    """Mirrored left to right: normals' x changes sign."""
    mirrored = _moved(sample, lambda map: map.flip(-1), lambda map, fill: map.flip(-1))
    camera = sample.camera
    if camera is not None:
        camera = replace(camera, centre_x=sample.size[1] - 1 - camera.centre_x)
    normals = mirrored.normals
    if normals is not None:
        normals = normals * normals.new_tensor([-1.0, 1.0, 1.0])[:, None, None]
    return replace(mirrored, normals=normals, camera=camera)


def scale(sample: Sample, factor: float) -> Sample:
    """``factor`` times as large, as if seen from nearer: depth is divided by ``factor``.

    The camera stays as it is; the scene shrinks along the optical axis, so that z of normals is
    multiplied by ``factor`` before they become unit vectors again.

    Raises:
        ValueError: ``factor`` is not above 0, or leaves no pixel.
    """
    height, width = (round(side * factor) for side in sample.size) if factor > 0 else (0, 0)
    if not (height and width):
        raise ValueError(
            f"scale: factor must be above 0 and leave a pixel of {sample.size}, got {factor}."
        )
    ratio_y, ratio_x = height / sample.size[0], width / sample.size[1]

    def image(map: Tensor) -> Tensor:
        return F.interpolate(
            map[None], (height, width), mode="bilinear", align_corners=False, antialias=True
        )[0].clamp(0, 1)

    rows = _source_pixels(sample.size[0], height)
    columns = _source_pixels(sample.size[1], width)
    scaled = _moved(sample, image, lambda map, fill: map[:, rows[:, None], columns])
    depth, normals, camera = scaled.depth_m, scaled.normals, sample.camera
    if depth is not None:
        depth = depth / factor
    if normals is not None:
        stretch = normals.new_tensor([1.0, 1.0, factor])[:, None, None]
        normals = F.normalize(normals * stretch, dim=0)
    if sample.boundaries is not None:  # nearest would break lines
        boundaries = F.adaptive_max_pool2d(sample.boundaries.float(), (height, width)) > 0
        scaled = replace(scaled, boundaries=boundaries)
    if camera is not None:
        camera = Camera(
            focal_x=camera.focal_x * ratio_x / factor,
            focal_y=camera.focal_y * ratio_y / factor,
            centre_x=(camera.centre_x + 0.5) * ratio_x - 0.5,
            centre_y=(camera.centre_y + 0.5) * ratio_y - 0.5,
        )
    return replace(scaled, depth_m=depth, normals=normals, camera=camera)


def _source_pixels(size: int, new_size: int) -> Tensor:
    """For each new pixel the old one that holds its centre."""
    return ((torch.arange(new_size) + 0.5) * size / new_size).long().clamp(max=size - 1)


def rotate(sample: Sample, angle_deg: float) -> Sample:
    """Turned counter-clockwise about the middle; the size stays, what was outside is unknown.

    Normals turn along. Of cameras whose focal lengths differ, the mean is kept.

    Raises:
        ValueError: the angle is beyond 45 degrees either way.
    """
    if not abs(angle_deg) <= GREATEST_ANGLE_DEG:
        raise ValueError(f"rotate: angle_deg must be in [-45, 45], got {angle_deg}.")
    cosine, sine = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    height, width = sample.size
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    right = torch.arange(width, dtype=torch.float64) - middle_x
    up = (middle_y - torch.arange(height, dtype=torch.float64))[:, None]
    from_x = middle_x + cosine * right + sine * up  # (H, W), columns in the sample
    from_y = middle_y - (cosine * up - sine * right)
    columns, rows = from_x.round().long(), from_y.round().long()
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    columns, rows = columns.clamp(0, width - 1), rows.clamp(0, height - 1)
    grid = torch.stack([2 * from_x / max(width - 1, 1), 2 * from_y / max(height - 1, 1)], 2) - 1

    def image(map: Tensor) -> Tensor:
        turned = F.grid_sample(map[None], grid[None].to(map.dtype), align_corners=True)[0]
        return turned.clamp(0, 1)

    def nearest(map: Tensor, fill: int) -> Tensor:
        return torch.where(inside, map[:, rows, columns], torch.tensor(fill, dtype=map.dtype))

    turned = _moved(sample, image, nearest)
    normals, camera = turned.normals, sample.camera
    if normals is not None:
        x, y, z = normals
        normals = torch.stack([cosine * x - sine * y, sine * x + cosine * y, z])
    if camera is not None:
        off_x, off_y = camera.centre_x - middle_x, middle_y - camera.centre_y
        focal = (camera.focal_x + camera.focal_y) / 2
        camera = Camera(
            focal_x=focal,
            focal_y=focal,
            centre_x=middle_x + cosine * off_x - sine * off_y,
            centre_y=middle_y - (sine * off_x + cosine * off_y),
        )
    return replace(turned, normals=normals, camera=camera)


def inner_size(size: tuple[int, int], angle_deg: float) -> tuple[int, int]:
    """The largest (height, width) of the same shape that is known everywhere after ``rotate``."""
    height, width = size
    cosine, sine = math.cos(math.radians(angle_deg)), abs(math.sin(math.radians(angle_deg)))
    share = min(
        (width - 1) / (width * cosine + height * sine),
        (height - 1) / (width * sine + height * cosine),
    )
    if angle_deg == 0:
        share = 1.0
    return max(1, int(height * share)), max(1, int(width * share))


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """A window of the sample; it may reach beyond the right and the lower rim, where it is unknown.

    Raises:
        ValueError: the window does not begin inside, or is empty.
    """
    if not (0 <= top < sample.size[0] and 0 <= left < sample.size[1] and min(height, width) > 0):
        raise ValueError(
            f"crop: the window must begin inside {sample.size} and hold a pixel, got row {top}, "
            f"column {left}, size {(height, width)}."
        )

    def window(map: Tensor, fill: int) -> Tensor:
        part = map[..., top : top + height, left : left + width]
        missing = (0, width - part.size(-1), 0, height - part.size(-2))
        return F.pad(part, missing, value=fill) if any(missing) else part

    camera = sample.camera
    if camera is not None:
        centre_x, centre_y = camera.centre_x - left, camera.centre_y - top
        camera = replace(camera, centre_x=centre_x, centre_y=centre_y)
    return replace(_moved(sample, lambda map: window(map, 0), window), camera=camera)


def colour(sample: Sample, factors: tuple[float, float, float]) -> Sample:
    """Red, green and blue times a factor each, clamped to [0, 1]; labels stay."""
    channels = sample.image.new_tensor(factors)[:, None, None]
    return replace(sample, image=(sample.image * channels).clamp(0, 1))


def gamma(sample: Sample, exponent: float) -> Sample:
    """The image to the power of ``exponent``; labels stay.

    Raises:
        ValueError: ``exponent`` is not above 0.
    """
    if not exponent > 0:
        raise ValueError(f"gamma: exponent must be above 0, got {exponent}.")
    return replace(sample, image=sample.image.pow(exponent))


@dataclass(frozen=True)
class Augmentation:
    """Random transforms of a training sample, in the authors' order and with their ranges.

    Source: Kong and Fowlkes 2018, released code for NYUv2; there scaling happened only together
        with rotation, here each by itself.
    """

    crop_size: tuple[int, int] | None = None  # (height, width); None keeps what there is
    flip_share: float = 0.5  # of samples
    gamma_spread: float = 0.03  # z in [-spread, spread]; see gamma_exponent
    colour_share: float = 0.7
    colour_range: tuple[float, float] = (0.8, 1.2)
    rotate_share: float = 0.7
    rotate_deg: float = 15.0  # either way
    scale_share: float = 0.7
    scale_range: tuple[float, float] = (0.4, 2.0)

    def __post_init__(self) -> None:
        rules = {
            "flip_share": 0 <= self.flip_share <= 1,
            "gamma_spread": 0 <= self.gamma_spread < math.sqrt(0.5),
            "colour_share": 0 <= self.colour_share <= 1,
            "colour_range": 0 <= self.colour_range[0] <= self.colour_range[1],
            "rotate_share": 0 <= self.rotate_share <= 1,
            "rotate_deg": 0 <= self.rotate_deg <= GREATEST_ANGLE_DEG,
            "scale_share": 0 <= self.scale_share <= 1,
            "scale_range": 0 < self.scale_range[0] <= self.scale_range[1],
        }
        for name, holds in rules.items():
            if not holds:
                raise ValueError(
                    f"Augmentation: {name} must be in its range, got {getattr(self, name)}. Shares "
                    "are in [0, 1], ranges (low, high) above 0, rotate_deg in [0, 45], "
                    "gamma_spread in [0, 0.7]."
                )

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """A transformed sample; the same numbers are drawn whatever the settings."""
        draws = torch.rand(12, generator=generator, dtype=torch.float64).tolist()

        def between(low: float, high: float, share: float) -> float:
            return low + (high - low) * share

        sample = gamma(sample, gamma_exponent(between(-1, 1, draws[0]) * self.gamma_spread))
        if draws[1] < self.colour_share:
            red, green, blue = (between(*self.colour_range, share) for share in draws[2:5])
            sample = colour(sample, (red, green, blue))
        if draws[5] < self.rotate_share:
            angle = round(between(-self.rotate_deg, self.rotate_deg, draws[6]))
            sample = _cut_to_middle(rotate(sample, angle), inner_size(sample.size, angle))
        if draws[7] < self.scale_share:
            sample = scale(sample, round(between(*self.scale_range, draws[8]), 2))
        if self.crop_size is not None:
            height, width = self.crop_size
            top = int(draws[9] * (max(sample.size[0] - height, 0) + 1))
            left = int(draws[10] * (max(sample.size[1] - width, 0) + 1))
            sample = crop(sample, top, left, height, width)
        return flip(sample) if draws[11] < self.flip_share else sample


def gamma_exponent(z: float) -> float:
    """log(0.5 + z / sqrt 2) / log(0.5 - z / sqrt 2): 1 at 0, symmetric in its logarithm."""
    return math.log(0.5 + z / math.sqrt(2)) / math.log(0.5 - z / math.sqrt(2))


def _cut_to_middle(sample: Sample, size: tuple[int, int]) -> Sample:
    top, left = ((whole - part) // 2 for whole, part in zip(sample.size, size, strict=True))
    return crop(sample, top, left, *size)
