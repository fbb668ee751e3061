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
    depth_m: Tensor, camera: Camera, *, valid: Tensor | None = None, edge: float = 0.02
) -> Normals:
    """Surface normals of a depth map, facing the viewer; exact on planes.

    On a plane the inverse depth w is linear in the pixel's place: w = -n . ray / distance, so
    that its differences between neighbours give n. Pixels are not valid at the rim, beside missing
    depth, and where w bends (its second difference, relative) by more than ``edge``.

    Args:
        depth_m: (1, H, W), metres.
        camera: of the same image.
        valid: (1, H, W), bool; default: finite and above 0.
        edge: 0.02 suits a sensor's noise; 0.001 finds creases in depth without noise.

    Returns:
        Normals.

    Raises:
        ValueError: a shape is another.
    """
    if depth_m.dim() != 3 or depth_m.size(0) != 1:
        raise ValueError(
            f"normals_from_depth: depth_m must be (1, H, W), got {tuple(depth_m.shape)}."
        )
    known = torch.isfinite(depth_m) & (depth_m > 0)
    if valid is not None:
        known &= valid
    inverse = torch.where(known, 1 / depth_m, 0.0)[0]  # (H, W)
    padded = F.pad(inverse, (1, 1, 1, 1))
    left, right = padded[1:-1, :-2], padded[1:-1, 2:]
    above, below = padded[:-2, 1:-1], padded[2:, 1:-1]
    bend = torch.maximum((left + right - 2 * inverse).abs(), (above + below - 2 * inverse).abs())
    is_whole = torch.stack([left, right, above, below, inverse]).amin(0) > 0
    smooth = is_whole & (bend <= edge * inverse)
    rays = pixel_rays(camera, (inverse.size(0), inverse.size(1)))
    x = camera.focal_x * (left - right) / 2
    y = camera.focal_y * (below - above) / 2
    z = inverse + x * rays[0] + y * rays[1]
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
