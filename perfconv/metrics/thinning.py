"""Thin boundaries: skeletons of binary maps, and non-maximum suppression of soft ones."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

# x1 .. x8 of Guo and Hall: from the right neighbour, counter-clockwise; (row, column).
NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def thin(boundaries: Tensor) -> Tensor:
    """Skeletons one pixel wide, connected as before.

    Two half-steps alternate until none removes a pixel: each removes, all at once, the pixels of
    its kind (a function of the eight neighbours) that are on the rim and hold nothing together.

    Args:
        boundaries: (..., H, W), bool. Maps are thinned one by one.

    Returns:
        The same shape, bool.

    Raises:
        TypeError: not bool.

    Notes: syncs with the host once a half-step.
    Source: Guo and Hall 1989, algorithm A1, as in the evaluation of BSDS500.
    Example:
        >>> thin(torch.ones(3, 5, dtype=torch.bool)).int().tolist()
        [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    """
    if boundaries.dtype != torch.bool:
        raise TypeError(
            f"thin: boundaries must be bool, got {boundaries.dtype}. Compare with a threshold."
        )
    padded = F.pad(boundaries, (1, 1, 1, 1)).contiguous()
    flat = padded.view(-1)  # a map's rim keeps its neighbours from the next map
    width = padded.size(-1)
    steps = [row * width + column for row, column in NEIGHBOURS]
    positions = flat.nonzero().squeeze(1)
    tables = [table.to(flat.device) for table in _removal_tables()]
    quiet = 0
    half = 0
    while quiet < 2 and positions.numel():
        code = torch.zeros_like(positions)
        for bit, step in enumerate(steps):
            code |= flat[positions + step].long() << bit
        removed = tables[half][code]
        flat[positions[removed]] = False
        quiet = 0 if bool(removed.any()) else quiet + 1
        positions = positions[~removed]
        half = 1 - half
    return padded[..., 1:-1, 1:-1].contiguous()


@cache
def _removal_tables() -> tuple[Tensor, Tensor]:
    """For the 256 codes of neighbours: whether the first and the second half-step removes."""
    code = torch.arange(256)
    x = [(code >> bit & 1).bool() for bit in range(8)]  # x[0] is x1 of the paper
    crossings = sum((~x[2 * i] & (x[2 * i + 1] | x[(2 * i + 2) % 8])).long() for i in range(4))
    first = sum((x[2 * i] | x[2 * i + 1]).long() for i in range(4))
    second = sum((x[2 * i + 1] | x[(2 * i + 2) % 8]).long() for i in range(4))
    fewest = torch.minimum(torch.as_tensor(first), torch.as_tensor(second))
    is_rim = (torch.as_tensor(crossings) == 1) & (fewest >= 2) & (fewest <= 3)
    first_half = is_rim & ~((x[1] | x[2] | ~x[7]) & x[0])
    second_half = is_rim & ~((x[5] | x[6] | ~x[3]) & x[4])
    return first_half, second_half


def suppress_non_maxima(
    boundaries: Tensor, *, blur_radius: int = 4, border: int = 5, margin: float = 1.01
) -> Tensor:
    """Soft boundaries with 0 wherever a neighbour across the boundary is larger.

    The direction across is that of the strongest second derivative of the map after a triangle
    blur. A pixel stays if ``margin`` times its value is at least that of both points one pixel
    away along it. Towards the image's rim the values fall linearly to 0.

    Args:
        boundaries: (N, 1, H, W), float32 or float64.
        blur_radius: of the triangle filter, pixels.
        border: pixels over which values fall to the rim.
        margin: 1 or a little more: keeps pixels of plateaus.

    Returns:
        The same shape.

    Raises:
        TypeError: another dtype.
        ValueError: another shape, or an image not larger than ``blur_radius``.

    Source: the suppression of structured edges (Dollar and Zitnick 2015); the direction is the
        eigenvector of the second derivatives, which also holds for lines along an axis.
    Example:
        >>> ridge = torch.tensor([0.1, 0.5, 0.9, 0.5, 0.1]).expand(1, 1, 7, 5)
        >>> kept = suppress_non_maxima(ridge, blur_radius=1, border=0)
        >>> (kept[0, 0, 3] > 0).tolist()
        [False, False, True, False, False]
    """
    if boundaries.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"suppress_non_maxima: boundaries must be float32 or float64, got {boundaries.dtype}."
        )
    if boundaries.dim() != 4 or boundaries.size(1) != 1 or min(boundaries.shape[2:]) <= blur_radius:
        raise ValueError(
            f"suppress_non_maxima: boundaries must be (N, 1, H, W) with sides above {blur_radius}, "
            f"got {tuple(boundaries.shape)}."
        )
    smooth = _triangle_blur(boundaries, blur_radius)
    along_y, along_x = torch.gradient(smooth, dim=(2, 3))
    yy, xy = torch.gradient(along_y, dim=(2, 3))
    xx = torch.gradient(along_x, dim=3)[0]
    angle = 0.5 * torch.atan2(2 * xy, xx - yy)  # of the largest second derivative
    angle = torch.where(xx + yy < 0, angle + torch.pi / 2, angle)  # of the one largest in size
    kept = boundaries.clone()
    for side in (-1, 1):
        neighbour = _sample(boundaries, side * angle.sin(), side * angle.cos())
        kept[boundaries * margin < neighbour] = 0
    return kept * _fade(kept, 2, border) * _fade(kept, 3, border)


def _triangle_blur(maps: Tensor, radius: int) -> Tensor:
    rise = torch.arange(1, radius + 2, dtype=maps.dtype, device=maps.device)
    filter = torch.cat([rise, rise[:-1].flip(0)]) / (radius + 1) ** 2  # (2 * radius + 1,)
    padded = F.pad(maps, (radius,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, filter[None, None, :, None]), filter[None, None, None])


def _sample(maps: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Bilinear values ``down`` and ``right`` of each pixel; outside, those of the rim."""
    height, width = maps.shape[2:]
    rows = torch.arange(height, dtype=maps.dtype, device=maps.device)[:, None] + down[:, 0]
    columns = torch.arange(width, dtype=maps.dtype, device=maps.device) + right[:, 0]
    grid = torch.stack([columns / max(width - 1, 1), rows / max(height - 1, 1)], 3) * 2 - 1
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=True)


def _fade(maps: Tensor, dim: int, border: int) -> Tensor:
    """1 inside, falling to 0 over ``border`` pixels at both ends of ``dim``."""
    size = maps.size(dim)
    from_rim = torch.arange(size, dtype=maps.dtype, device=maps.device)
    from_rim = torch.minimum(from_rim, from_rim.flip(0))
    factor = (from_rim / border).clamp(max=1) if border else torch.ones_like(from_rim)
    return factor[:, None] if dim == 2 else factor
