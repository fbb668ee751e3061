"""What follows from depth, labels and a camera: rays, normals, boundaries."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from perfconv.data.sample import Camera


class Normals(NamedTuple):
    """Normals and where they are known."""

    normals: Tensor  # (3, H, W), float32, unit vectors, 0 where not valid
    valid: Tensor  # (1, H, W), bool


def pixel_rays(camera: Camera, size: tuple[int, int]) -> Tensor:
    """(3, H, W): the point at depth 1 seen by each pixel; x to the right, y up, z = -1."""
    rows = torch.arange(size[0], dtype=torch.float32)
    columns = torch.arange(size[1], dtype=torch.float32)
    right = ((columns - camera.centre_x) / camera.focal_x).expand(size)
    up = ((camera.centre_y - rows) / camera.focal_y)[:, None].expand(size)
    return torch.stack([right, up, torch.full(size, -1.0)])


def normals_from_depth(
    depth_m: Tensor,
    camera: Camera,
    *,
    valid: Tensor | None = None,
    radius: int = 1,
    edge: float = 0.02,
) -> Normals:
    """Surface normals of a depth map, facing the viewer; exact on planes.

    On a plane the inverse depth w is linear in the pixel's place: w = -n . ray / distance. A
    least-squares fit of w in a window gives n. Pixels are not valid where the window leaves the
    image, holds missing depth, or holds an edge: a pixel where w bends (its second difference,
    relative) by more than ``edge``.

    Args:
        depth_m: (1, H, W), metres.
        camera: of the same image.
        valid: (1, H, W), bool; default: finite and above 0.
        radius: pixels from the middle of the window to its rim; 1 for exact depth, 3 to 5 for a
            sensor's.
        edge: 0.02 suits a sensor's noise; 0.001 finds creases in exact depth.

    Returns:
        Normals.

    Raises:
        ValueError: a shape is another, or ``radius`` below 1.
    """
    if depth_m.dim() != 3 or depth_m.size(0) != 1:
        raise ValueError(
            f"normals_from_depth: depth_m must be (1, H, W), got {tuple(depth_m.shape)}."
        )
    if radius < 1:
        raise ValueError(f"normals_from_depth: radius must be 1 or more, got {radius}.")
    known = torch.isfinite(depth_m) & (depth_m > 0)
    if valid is not None:
        known &= valid
    inverse = torch.where(known, 1 / depth_m, 0.0)  # (1, H, W)
    padded = F.pad(inverse, (1, 1, 1, 1))
    left, right = padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]
    above, below = padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]
    bend = torch.maximum((left + right - 2 * inverse).abs(), (above + below - 2 * inverse).abs())
    is_whole = torch.stack([left, right, above, below]).amin(0) > 0  # else there is no bend
    is_edge = is_whole & (bend > edge * inverse)
    spoilt = F.max_pool2d((~known | is_edge).float(), 2 * radius + 1, 1, radius) > 0
    smooth = ~spoilt[0]
    smooth[:radius], smooth[-radius:] = False, False
    smooth[:, :radius], smooth[:, -radius:] = False, False

    offsets = torch.arange(-radius, radius + 1, dtype=inverse.dtype)
    slope = (offsets / (2 * radius + 1) / offsets.square().sum()).expand(2 * radius + 1, -1)
    mean = torch.full_like(slope, 1 / (2 * radius + 1) ** 2)
    filters = torch.stack([slope, slope.T, mean])[:, None]
    rightwards, downwards, level = F.conv2d(inverse[None], filters, padding=radius)[0]
    rays = pixel_rays(camera, (inverse.size(1), inverse.size(2)))
    x, y = -camera.focal_x * rightwards, camera.focal_y * downwards
    z = level + x * rays[0] + y * rays[1]
    normals = F.normalize(torch.stack([x, y, z]), dim=0)
    return Normals(torch.where(smooth, normals, 0.0), smooth[None])


def boundaries_from_labels(labels: Tensor) -> Tensor:
    """True where the right or the lower neighbour has another label: lines one pixel wide.

    Args:
        labels: (H, W), integers: classes, or instances.

    Returns:
        (1, H, W), bool.
    """
    boundaries = torch.zeros_like(labels, dtype=torch.bool)
    boundaries[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    boundaries[:-1] |= labels[:-1] != labels[1:]
    return boundaries[None]
