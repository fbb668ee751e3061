"""Ray casting of planes, boxes and ellipsoids with textures in metres, for PerspectiveScenes.

World: x to the right, y up, the camera looks along -z. Depth is along the optical axis.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from perfconv.data.geometry import pixel_rays
from perfconv.data.sample import Camera

NEAREST_M = 0.2
PATTERNS = ("plain", "stripes", "checker")
BANDS = (None, "top", "bottom")
BAND_SHARE = 0.22  # of an object's height

Colour = tuple[float, float, float]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Surface:
    """The look of one object, and its class."""

    label: int
    colour: Colour
    second_colour: Colour = (0.0, 0.0, 0.0)  # of the pattern
    pattern: str = "plain"
    period_m: float = 1.0  # of the pattern, on the surface
    band: str | None = None  # a coloured end of the upright faces
    band_colour: Colour = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Pose:
    """Where the camera stands and looks; positive pitch looks up, positive yaw to the left."""

    height_m: float
    yaw_deg: float = 0.0
    pitch_deg: float = 0.0


@dataclass(frozen=True)
class _Shape:
    """Where a surface lies: what ``Canvas.looks`` needs to find a point's place on it."""

    kind: float  # 0 level plane, 1 box, 2 box from inside, 3 ellipsoid
    centre: Vector
    half: Vector
    cosine: float = 1.0  # of the turn about the upright axis
    sine: float = 0.0


@dataclass(frozen=True)
class Looks:
    """What each pixel sees."""

    normal: Tensor  # (3, H, W), in the world; 0 in the sky
    place: Tensor  # (2, H, W), on the surface, metres
    rise: Tensor  # (H, W), share of the object's height


class Canvas:
    """The nearest surface of each pixel, of all that were cast so far."""

    def __init__(self, camera: Camera, pose: Pose, size: tuple[int, int]) -> None:
        self.camera, self.pose, self.size = camera, pose, size
        yaw, pitch = math.radians(pose.yaw_deg), math.radians(pose.pitch_deg)
        self._yaw, self._pitch = (math.cos(yaw), math.sin(yaw)), (math.cos(pitch), math.sin(pitch))
        x, y, z = pixel_rays(camera, size)
        y, z = self._pitch[0] * y - self._pitch[1] * z, self._pitch[1] * y + self._pitch[0] * z
        x, z = self._yaw[0] * x + self._yaw[1] * z, self._yaw[0] * z - self._yaw[1] * x
        self.rays = torch.stack([x, y, z])  # in the world, of depth 1
        self._inverse = self.rays.reciprocal()
        self.depth = torch.full(size, torch.inf)  # metres
        self.which = torch.full(size, -1)  # number of the surface, -1 = sky
        self.surfaces: list[Surface] = []
        self._shapes: list[_Shape] = []

    def level(self, height_m: float, surface_of: list[tuple[float, Surface]]) -> None:
        """A level plane, seen from above or below; surfaces by distance from x = 0.

        Args:
            height_m: of the plane.
            surface_of: (greatest |x|, surface), ascending; the last holds for everything beyond.
        """
        depth = (height_m - self.pose.height_m) * self._inverse[1]
        limits = torch.tensor([limit for limit, _ in surface_of[:-1]])
        number = torch.bucketize((self.rays[0] * depth).abs(), limits) + len(self.surfaces)
        for _, surface in surface_of:
            self._add(surface, _Shape(0.0, (0.0, height_m, 0.0), (1.0, 1.0, 1.0)))
        self._write(slice(None), slice(None), depth, depth > NEAREST_M, number)

    def box(self, centre: Vector, half: Vector, surface: Surface, *, yaw_deg: float = 0.0) -> None:
        """A box, turned about its upright axis; ``half`` are half its sides."""
        yaw = math.radians(yaw_deg)
        shape = _Shape(1.0, centre, half, math.cos(yaw), math.sin(yaw))
        window = self._window(shape)
        if window is None:
            return
        near, far = self._slabs(shape, *window)
        self._add(surface, shape)
        self._write(*window, near, (near < far) & (near > NEAREST_M), len(self.surfaces) - 1)

    def room(self, centre: Vector, half: Vector, surface: Surface) -> None:
        """The inner walls of a box around the camera."""
        shape = _Shape(2.0, centre, half)
        everything = slice(None), slice(None)
        _, far = self._slabs(shape, *everything)
        self._add(surface, shape)
        self._write(*everything, far, far > NEAREST_M, len(self.surfaces) - 1)

    def ellipsoid(self, centre: Vector, radii: Vector, surface: Surface) -> None:
        """An ellipsoid with axes along x, y and z."""
        shape = _Shape(3.0, centre, radii)
        window = self._window(shape)
        if window is None:
            return
        origin = [part / size for part, size in zip(self._start(shape), radii, strict=True)]
        x, y, z = (self.rays[i, window[0], window[1]] / radii[i] for i in range(3))
        a = x * x + y * y + z * z
        b = x * origin[0] + y * origin[1] + z * origin[2]
        root = b * b - a * (sum(part * part for part in origin) - 1)
        depth = -(b + root.clamp(min=0).sqrt()) / a
        self._add(surface, shape)
        hit = (root > 0) & (depth > NEAREST_M)
        self._write(*window, depth, hit, len(self.surfaces) - 1)

    def looks(self) -> Looks:
        """Normals and places on the surfaces, for all pixels at once."""
        shapes = torch.tensor(
            [(s.kind, *s.centre, *s.half, s.cosine, s.sine) for s in self._shapes]
        )
        seen = self.which >= 0
        kind, *rest = _of_pixels(shapes, self.which)  # 9 of (H, W)
        cosine, sine = rest[6:]
        depth = torch.where(seen, self.depth, 1.0)
        x = self.rays[0] * depth - rest[0]
        y = self.rays[1] * depth + (self.pose.height_m - rest[1])
        z = self.rays[2] * depth - rest[2]
        local = torch.stack([cosine * x - sine * z, y, sine * x + cosine * z])
        halves = torch.stack(rest[3:6])
        unit = local / halves  # 1 on the faces of a box, length 1 on an ellipsoid
        size_x, size_y, size_z = unit.abs()
        axis = torch.where(size_x > size_y, 0, 1)
        axis = torch.where(size_z > torch.maximum(size_x, size_y), 2, axis)
        is_round = kind == 3
        axis = torch.where(kind == 0, 1, torch.where(is_round, 2, axis))
        towards = torch.where(kind == 2, -1.0, 1.0) * unit.gather(0, axis[None])[0].sign()
        towards = torch.where(kind == 0, -self.rays[1].sign(), towards)
        face = torch.zeros_like(local).scatter_(0, axis[None], towards[None])
        curved = unit / halves
        curved = curved * (curved * curved).sum(0).clamp(min=1e-12).rsqrt()
        normal = torch.where(is_round, curved, face) * seen
        normal = torch.stack(
            [
                cosine * normal[0] + sine * normal[2],
                normal[1],
                cosine * normal[2] - sine * normal[0],
            ]
        )
        right = torch.where(axis == 0, local[2], local[0])
        up = torch.where(axis == 1, local[2], local[1])
        place = torch.stack([right, up])
        return Looks(normal, place, (unit[1] + 1) / 2)

    def in_camera(self, normal: Tensor) -> Tensor:
        """(3, H, W): vectors of the world as the camera sees them."""
        x, y, z = normal
        x, z = self._yaw[0] * x - self._yaw[1] * z, self._yaw[1] * x + self._yaw[0] * z
        y, z = self._pitch[0] * y + self._pitch[1] * z, self._pitch[0] * z - self._pitch[1] * y
        return torch.stack([x, y, z])

    def _add(self, surface: Surface, shape: _Shape) -> None:
        self.surfaces.append(surface)
        self._shapes.append(shape)

    def _start(self, shape: _Shape) -> Vector:
        """The camera, seen from the shape."""
        x, z = -shape.centre[0], -shape.centre[2]
        y = self.pose.height_m - shape.centre[1]
        return shape.cosine * x - shape.sine * z, y, shape.sine * x + shape.cosine * z

    def _slabs(self, shape: _Shape, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Depths at which the rays enter and leave the three slabs of a box."""
        inverse = list(self._inverse[:, rows, columns])
        if shape.sine:
            x, _, z = self.rays[:, rows, columns]
            inverse[0] = (shape.cosine * x - shape.sine * z).reciprocal_()
            inverse[2] = (shape.sine * x + shape.cosine * z).reciprocal_()
        near, far = None, None
        for start, half, steepness in zip(self._start(shape), shape.half, inverse, strict=True):
            middle, size = steepness * -start, steepness.abs()
            enter = torch.sub(middle, size, alpha=half)
            leave = torch.add(middle, size, alpha=half)
            near = enter if near is None else torch.maximum(near, enter)
            far = leave if far is None else torch.minimum(far, leave)
        assert near is not None
        assert far is not None
        return near, far

    def _write(
        self, rows: slice, columns: slice, depth: Tensor, hit: Tensor, number: int | Tensor
    ) -> None:
        nearest, which = self.depth[rows, columns], self.which[rows, columns]
        hit = hit & (depth < nearest)
        torch.where(hit, depth, nearest, out=nearest)
        if isinstance(number, int):
            which.masked_fill_(hit, number)
        else:
            torch.where(hit, number, which, out=which)

    def _window(self, shape: _Shape) -> tuple[slice, slice] | None:
        """Rows and columns of the pixels that may see the shape; None: none can."""
        corners = []
        for signs in itertools.product((-1, 1), repeat=3):
            x, y, z = (sign * half for sign, half in zip(signs, shape.half, strict=True))
            x, z = shape.cosine * x + shape.sine * z, shape.cosine * z - shape.sine * x
            corners.append(self._seen(x, y, z, shape.centre))
        if all(corner[2] < NEAREST_M for corner in corners):
            return None
        if any(corner[2] < NEAREST_M for corner in corners):
            return slice(None), slice(None)
        columns = [self.camera.centre_x + self.camera.focal_x * x / d for x, _, d in corners]
        rows = [self.camera.centre_y - self.camera.focal_y * y / d for _, y, d in corners]
        top, bottom = max(0, int(min(rows))), min(self.size[0], int(max(rows)) + 2)
        left, right = max(0, int(min(columns))), min(self.size[1], int(max(columns)) + 2)
        return (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None

    def _seen(self, x: float, y: float, z: float, centre: Vector) -> Vector:
        """A point, given from ``centre``, in the camera: right, up, depth."""
        x, y, z = x + centre[0], y + centre[1] - self.pose.height_m, z + centre[2]
        x, z = self._yaw[0] * x - self._yaw[1] * z, self._yaw[1] * x + self._yaw[0] * z
        y, z = self._pitch[0] * y + self._pitch[1] * z, self._pitch[0] * z - self._pitch[1] * y
        return x, y, -z


def shade(canvas: Canvas, looks: Looks, sky: Colour, light: Vector, haze_m: float) -> Tensor:
    """(3, H, W), in [0, 1]: colours, patterns, bands, light from one side, haze.

    A pattern fades to its mean where a period is less than four pixels.

    Args:
        canvas: with everything cast.
        looks: of the canvas.
        sky: colour where nothing is, and of the haze.
        light: the direction to the light, of length 1.
        haze_m: the distance over which contrast falls to 1 / e.
    """
    table = torch.tensor([_row(surface) for surface in canvas.surfaces])
    row = _of_pixels(table, canvas.which)  # (12, H, W)
    period, pattern, band = row[9], row[10], row[11]
    depth = torch.where(canvas.which >= 0, canvas.depth, 1e4)
    waves = (looks.place * (2 * math.pi / period)).sin()
    wave = torch.where(pattern == 2, waves[0] * waves[1], waves[0])
    pixels = canvas.camera.focal_x * period / depth  # of a period
    strength = ((pixels - 2) / 2).clamp(0, 1)
    share = 0.5 * (1 + strength * (3 * wave).clamp(-1, 1)) * (pattern > 0)
    image = torch.lerp(row[0:3], row[3:6], share)
    at_top = (band == 1) & (looks.rise > 1 - BAND_SHARE)
    at_bottom = (band == 2) & (looks.rise < BAND_SHARE)
    is_upright = looks.normal[1].abs() < 0.5
    image = torch.where(is_upright & (at_top | at_bottom), row[6:9], image)
    x, y, z = looks.normal
    towards = (x * light[0] + y * light[1] + z * light[2]).clamp(min=0)
    image = image * (0.6 + 0.4 * towards)
    return torch.lerp(torch.tensor(sky)[:, None, None], image, (-depth / haze_m).exp())


def _of_pixels(table: Tensor, which: Tensor) -> Tensor:
    """(columns of the table, H, W): the row of each pixel's surface."""
    rows = table.T.contiguous().index_select(1, which.clamp(min=0).flatten())
    return rows.reshape(-1, *which.shape)


def _row(surface: Surface) -> tuple[float, ...]:
    """12 numbers: three colours, the period, which pattern, which band."""
    colours = (*surface.colour, *surface.second_colour, *surface.band_colour)
    pattern, band = PATTERNS.index(surface.pattern), BANDS.index(surface.band)
    return (*colours, surface.period_m, pattern, band)
