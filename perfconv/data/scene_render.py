"""Ray casting of planes, boxes and ellipsoids, for PerspectiveScenes; scene_shade.py paints them.

World: x to the right, y up, the camera looks along -z. Depth is along the optical axis.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from perfconv.data.geometry import pixel_rays
from perfconv.data.sample import Camera

NEAREST_M = 0.2

Colour = tuple[float, float, float]
Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Surface:
    """The look of one object, and its class."""

    label: int
    colour: Colour
    second_colour: Colour = (0.0, 0.0, 0.0)  # of the pattern
    pattern: str = "plain"  # or "stripes", "checker"
    period_m: float = 1.0  # of the pattern, on the surface
    band: str | None = None  # "top", "bottom": a coloured end of the upright faces
    band_colour: Colour = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Pose:
    """Where the camera stands and looks; positive pitch looks up, positive yaw to the left."""

    height_m: float
    yaw_deg: float = 0.0
    pitch_deg: float = 0.0


@dataclass(frozen=True)
class Shape:
    """Where a surface lies."""

    kind: str  # "level", "box", "room" (a box from inside), "ellipsoid"
    centre: Vector
    half: Vector
    cosine: float = 1.0  # of the turn about the upright axis
    sine: float = 0.0


_SIGNS = tuple(itertools.product((-1, 1), repeat=3))  # of the corners of a box
_EDGES = tuple(
    (a, b)
    for a, b in itertools.combinations(range(8), 2)
    if sum(x != y for x, y in zip(_SIGNS[a], _SIGNS[b], strict=True)) == 1
)


class _Window(NamedTuple):
    """The pixels that may see a shape."""

    rows: slice
    columns: slice
    nearest: np.ndarray  # views of what the canvas has there
    which: np.ndarray
    is_cut: bool  # the shape comes nearer than NEAREST_M


class Canvas:
    """The nearest surface of each pixel, of all that were cast so far.

    A scene is some hundred operations on small arrays, whose time is mostly that of the calls:
    NumPy's are quicker than torch's, and a shape is cast in its window only. What may round in more
    than one way (fused sums, roots, sines) is torch's: seeds stand for bits.
    """

    def __init__(self, camera: Camera, pose: Pose, size: tuple[int, int]) -> None:
        self.camera, self.pose, self.size = camera, pose, size
        yaw, pitch = math.radians(pose.yaw_deg), math.radians(pose.pitch_deg)
        self._yaw, self._pitch = (math.cos(yaw), math.sin(yaw)), (math.cos(pitch), math.sin(pitch))
        x = pixel_rays(camera, (1, size[1]))[0].numpy()  # (1, W)
        _, y, z = pixel_rays(camera, (size[0], 1)).numpy()  # (H, 1)
        y, z = self._pitch[0] * y - self._pitch[1] * z, self._pitch[1] * y + self._pitch[0] * z
        self.rays = np.empty((3, *size), np.float32)  # in the world, of depth 1
        self.rays[0] = self._yaw[0] * x + self._yaw[1] * z
        self.rays[1] = y
        self.rays[2] = self._yaw[0] * z - self._yaw[1] * x
        self._inverse = np.reciprocal(self.rays)
        self._steepness = np.abs(self._inverse)
        self.depth = np.full(size, np.inf, np.float32)  # metres
        self.which = np.zeros(size, np.int32)  # 0 = sky, else 1 + number of the surface
        self.surfaces: list[Surface] = []
        self.shapes: list[Shape] = []

    def level(self, height_m: float, surface_of: list[tuple[float, Surface]]) -> None:
        """A level plane, seen from above or below; surfaces by distance from x = 0.

        Args:
            height_m: of the plane.
            surface_of: (greatest |x|, surface), ascending; the last holds for everything beyond.
        """
        depth = (height_m - self.pose.height_m) * self._inverse[1, :, :1]  # (H, 1)
        hit = (depth < self.depth) & (depth > NEAREST_M)
        np.copyto(self.depth, depth, where=hit)
        aside = np.abs(self.rays[0] * depth) if len(surface_of) > 1 else depth
        limits = [0.0, *(limit for limit, _ in surface_of)]
        for number, (_, surface) in enumerate(surface_of):
            there = hit & (aside > limits[number]) if number else hit
            shape = Shape("level", (0.0, height_m, 0.0), (1.0, 1.0, 1.0))
            np.copyto(self.which, self._add(surface, shape), where=there)

    def box(self, centre: Vector, half: Vector, surface: Surface, *, yaw_deg: float = 0.0) -> None:
        """A box, turned about its upright axis; ``half`` are half its sides."""
        yaw = math.radians(yaw_deg)
        shape = Shape("box", centre, half, math.cos(yaw), math.sin(yaw))
        window = self._window(shape)
        if window is not None:
            enter, leave = self._slabs(shape, window.rows, window.columns)
            near = np.maximum(np.maximum(enter[0], enter[1]), enter[2])
            far = np.minimum(np.minimum(leave[0], leave[1]), leave[2])
            hit = near < np.minimum(far, window.nearest)
            self._write(window, near, hit, self._add(surface, shape))

    def room(self, centre: Vector, half: Vector, surface: Surface) -> None:
        """The inner walls of a box around the camera."""
        shape = Shape("room", centre, half)
        window = _Window(slice(None), slice(None), self.depth, self.which, is_cut=True)
        _, leave = self._slabs(shape, window.rows, window.columns)
        far = np.minimum(np.minimum(leave[0], leave[1]), leave[2])
        self._write(window, far, far < self.depth, self._add(surface, shape))

    def ellipsoid(self, centre: Vector, radii: Vector, surface: Surface) -> None:
        """An ellipsoid with axes along x, y and z."""
        shape = Shape("ellipsoid", centre, radii)
        window = self._window(shape)
        if window is None:
            return
        origin = [part / size for part, size in zip(self._start(shape), radii, strict=True)]
        x, y, z = self.rays[:, window.rows, window.columns] / _column(radii)
        a = x * x + y * y + z * z
        b = x * origin[0] + y * origin[1] + z * origin[2]
        root = b * b - a * (sum(part * part for part in origin) - 1)
        depth = -(b + torch.from_numpy(np.maximum(root, 0)).sqrt_().numpy()) / a
        hit = (depth < window.nearest) & (root > 0)
        self._write(window, depth, hit, self._add(surface, shape))

    def in_camera(self, vectors: np.ndarray) -> np.ndarray:
        """(3, ...): vectors of the world as the camera sees them."""
        x, y, z = vectors
        x, z = self._yaw[0] * x - self._yaw[1] * z, self._yaw[1] * x + self._yaw[0] * z
        y, z = self._pitch[0] * y + self._pitch[1] * z, self._pitch[0] * z - self._pitch[1] * y
        return np.stack([x, y, z])

    def _add(self, surface: Surface, shape: Shape) -> int:
        """Its number in ``which``."""
        self.surfaces.append(surface)
        self.shapes.append(shape)
        return len(self.surfaces)

    def _start(self, shape: Shape) -> Vector:
        """The camera, seen from the shape."""
        x, z = -shape.centre[0], -shape.centre[2]
        y = self.pose.height_m - shape.centre[1]
        return shape.cosine * x - shape.sine * z, y, shape.sine * x + shape.cosine * z

    def _slabs(self, shape: Shape, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """(3, h, w), twice: depths at which the rays enter and leave the three slabs of a box."""
        if shape.sine:
            inverse = self.rays[:, rows, columns].copy()
            x, _, z = inverse
            inverse[0], inverse[2] = (
                shape.cosine * x - shape.sine * z,
                shape.sine * x + shape.cosine * z,
            )
            np.reciprocal(inverse, out=inverse)
            steepness = np.abs(inverse)
        else:
            inverse, steepness = self._inverse[:, rows, columns], self._steepness[:, rows, columns]
        middle = torch.from_numpy(inverse * -_column(self._start(shape)))
        extent = torch.from_numpy(steepness), torch.from_numpy(_column(shape.half))
        enter = torch.addcmul(middle, *extent, value=-1)
        return enter.numpy(), torch.addcmul(middle, *extent, out=middle).numpy()

    def _write(self, window: _Window, depth: np.ndarray, hit: np.ndarray, number: int) -> None:
        if window.is_cut:
            hit &= depth > NEAREST_M
        np.copyto(window.nearest, depth, where=hit)
        np.copyto(window.which, number, where=hit)

    def _window(self, shape: Shape) -> _Window | None:
        """Where the shape may be seen; None: nowhere.

        One that reaches behind the camera has a window, and so a number, even if it is empty.
        """
        corners = self._corners(shape)
        seen = [corner for corner in corners if corner[2] >= NEAREST_M]
        if not seen:
            return None
        is_cut = len(seen) < len(corners)
        if is_cut:  # where it comes too near
            for a, b in _EDGES:
                one, other = corners[a], corners[b]
                if (one[2] < NEAREST_M) != (other[2] < NEAREST_M):
                    share = (NEAREST_M - one[2]) / (other[2] - one[2])
                    x, y = (one[i] + share * (other[i] - one[i]) for i in range(2))
                    seen.append((x, y, NEAREST_M))
        columns = [self.camera.centre_x + self.camera.focal_x * x / d for x, _, d in seen]
        rows = [self.camera.centre_y - self.camera.focal_y * y / d for _, y, d in seen]
        top, bottom = max(0, int(min(rows))), min(self.size[0], int(max(rows)) + 2)
        left, right = max(0, int(min(columns))), min(self.size[1], int(max(columns)) + 2)
        if not is_cut and (top >= bottom or left >= right):
            return None
        where = slice(top, max(top, bottom)), slice(left, max(left, right))
        return _Window(*where, self.depth[where], self.which[where], is_cut)

    def _corners(self, shape: Shape) -> list[Vector]:
        """Of the box around it, in the camera: right, up, depth."""
        x, y, z = shape.centre
        half_x, half_y, half_z = shape.half
        middle = self._turned(x, y - self.pose.height_m, z)
        sides = (
            self._turned(shape.cosine * half_x, 0.0, -shape.sine * half_x),
            self._turned(0.0, half_y, 0.0),
            self._turned(shape.sine * half_z, 0.0, shape.cosine * half_z),
        )
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = sides
        x, y, z = middle
        return [
            (
                x + i * ax + j * bx + k * cx,
                y + i * ay + j * by + k * cy,
                z + i * az + j * bz + k * cz,
            )
            for i, j, k in _SIGNS
        ]

    def _turned(self, x: float, y: float, z: float) -> Vector:
        """A vector of the world in the camera: right, up, depth."""
        x, z = self._yaw[0] * x - self._yaw[1] * z, self._yaw[1] * x + self._yaw[0] * z
        y, z = self._pitch[0] * y + self._pitch[1] * z, self._pitch[0] * z - self._pitch[1] * y
        return x, y, -z


def _column(vector: Sequence[float]) -> np.ndarray:
    """(3, 1, 1)"""
    return np.array(vector, np.float32)[:, None, None]
