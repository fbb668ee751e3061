"""Paints what a Canvas has seen: normals, patterns in metres, bands, light, haze."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from perfconv.data.scene_render import Canvas, Colour, Shape, Surface, Vector

BAND_SHARE = 0.22  # of an object's height
AMBIENT = 0.6  # share of the light that comes from everywhere

# Faces of a box, by number: twice the axis, plus one at its negative end.
_FACES = ((1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1))
_SKY = Surface(0, (0.0, 0.0, 0.0))
_NOWHERE = Shape("box", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Painting(NamedTuple):
    """What each pixel shows."""

    image: Tensor  # (3, H, W), float32, in [0, 1]
    normals: Tensor  # (3, H, W), float32, in the camera; 0 in the sky


class _Places(NamedTuple):
    """Where on its surface each pixel lies."""

    face: np.ndarray  # (H, W), int8, of _FACES; without meaning on ellipsoids
    rise: np.ndarray  # (H, W), share of the object's height
    on_surface: np.ndarray  # (2, H, W), metres: to the right, and up
    round_pixels: np.ndarray  # (P,), those on ellipsoids
    curved: np.ndarray  # (3, P), their normals


def paint(canvas: Canvas, sky: Colour, light: Vector, haze_m: float) -> Painting:
    """Colours, patterns, bands, light from one side, haze; and the normals.

    A pattern fades to its mean where a period is less than four pixels. What is the same on a whole
    surface, or on a face of it, is computed once and looked up.

    Args:
        canvas: with everything cast.
        sky: colour where nothing is, and of the haze.
        light: the direction to the light, of length 1.
        haze_m: the distance over which contrast falls to 1 / e.
    """
    depth = np.where(canvas.which, canvas.depth, np.float32(1))  # of the sky any
    places = _places(canvas, depth)
    faces, face = _faces(canvas, light), canvas.which * len(_FACES) + places.face
    normals = _looked_up(faces[:3], face)
    lit, top, bottom = _looked_up(faces[3:], face)
    is_band = (places.rise > top) | (places.rise < bottom)
    if len(places.round_pixels):
        at, curved = places.round_pixels, places.curved
        normals.reshape(3, -1)[:, at] = canvas.in_camera(curved)
        lit.reshape(-1)[at] = _lit(curved, light)
        is_band.reshape(-1)[at] &= _is_upright(curved)
    row = canvas.which + is_band * np.int32(1 + len(canvas.surfaces))
    colours = torch.from_numpy(_looked_up(_colours(canvas, sky), row))
    share = torch.from_numpy(_pattern(canvas, places.on_surface, depth))
    image = torch.lerp(colours[:3], colours[3:], share).mul_(torch.from_numpy(lit))
    clear = torch.from_numpy(depth / -haze_m).exp_()
    image = torch.lerp(torch.tensor(sky)[:, None, None], image, clear)
    return Painting(image, torch.from_numpy(normals))


def _places(canvas: Canvas, depth: np.ndarray) -> _Places:
    shapes = [_NOWHERE, *canvas.shapes]
    rows = [(*s.centre, *_halves(s), s.cosine, s.sine) for s in shapes]
    table = np.array(rows, np.float32).T.copy()
    table[1] = canvas.pose.height_m - table[1]
    # So that y has the sign of the ray's, not of rounding.
    table[1, [shape.kind == "level" for shape in shapes]] = 0
    looked_up = _looked_up(table, canvas.which)
    halves, cosine, sine = looked_up[3:6], looked_up[6], looked_up[7]
    local = canvas.rays * depth
    local[0] -= looked_up[0]
    local[1] += looked_up[1]
    local[2] -= looked_up[2]
    x, y, z = local
    local[0], local[2] = cosine * x - sine * z, sine * x + cosine * z
    unit = local / halves  # 1 on the faces of a box, length 1 on an ellipsoid
    size_x, size_y, size_z = np.abs(unit)
    is_z = size_z > np.maximum(size_x, size_y)
    is_x = (size_x > size_y) & ~is_z
    is_y = ~(is_x | is_z)
    below = unit < 0
    is_negative = (below[0] & is_x) | (below[1] & is_y) | (below[2] & is_z)
    face = 2 * is_y.view(np.int8) + 4 * is_z.view(np.int8) + is_negative.view(np.int8)
    is_round = np.array([shape.kind == "ellipsoid" for shape in shapes])
    round_pixels, curved = np.empty(0, np.int64), np.empty((3, 0), np.float32)
    if is_round.any():
        on_round = is_round[canvas.which]
        is_x, is_y = is_x & ~on_round, is_y & ~on_round
        round_pixels = np.flatnonzero(on_round)
        curved = unit.reshape(3, -1)[:, round_pixels] / halves.reshape(3, -1)[:, round_pixels]
        x, y, z = curved
        squares = torch.from_numpy(x * x + y * y + z * z).clamp_(min=1e-12)
        curved *= squares.rsqrt_().numpy()
    x, y, z = local
    on_surface = np.stack([np.where(is_x, z, x), np.where(is_y, z, y)])
    return _Places(face, (unit[1] + 1) / 2, on_surface, round_pixels, curved)


def _halves(shape: Shape) -> Vector:
    """Of a level plane they are such that all of it is the upper or lower face."""
    return (math.inf, 1.0, math.inf) if shape.kind == "level" else shape.half


def _faces(canvas: Canvas, light: Vector) -> np.ndarray:
    """(6, surfaces * 6): of every face its normal in the camera, light, limits of its bands."""
    shapes, surfaces = [_NOWHERE, *canvas.shapes], [_SKY, *canvas.surfaces]
    # A room's faces, and levels, are seen from the side to which their axis does not point.
    sides = [-1 if shape.kind in ("room", "level") else 1 for shape in shapes]
    turns = np.array([(shape.cosine, shape.sine) for shape in shapes], np.float32)
    cosine, sine = turns.T[:, :, None]
    x, y, z = np.array(_FACES, np.float32).T[:, None] * np.array(sides, np.float32)[:, None]
    normals = np.stack([cosine * x + sine * z, y, cosine * z - sine * x])  # (3, surfaces, 6)
    is_round = np.array([shape.kind == "ellipsoid" for shape in shapes])
    has_band = _is_upright(normals) | is_round[:, None]
    at_top, at_bottom = (
        has_band & np.array([surface.band == band for surface in surfaces])[:, None]
        for band in ("top", "bottom")
    )
    table = np.empty((6, *has_band.shape), np.float32)
    table[:3] = canvas.in_camera(normals) + 0  # without -0
    table[3] = _lit(normals, light)
    table[4] = np.where(at_top, 1 - BAND_SHARE, np.inf)
    table[5] = np.where(at_bottom, BAND_SHARE, -np.inf)
    table[:3, 0], table[3, 0] = 0, 1  # the sky: no normal, its colour as it is
    return table.reshape(6, -1)


def _is_upright(normals: np.ndarray) -> np.ndarray:
    return np.abs(normals[1]) < 0.5


def _lit(normals: np.ndarray, light: Vector) -> np.ndarray:
    """The share of its colour that a surface shows."""
    x, y, z = normals
    towards = np.maximum(x * light[0] + y * light[1] + z * light[2], 0)
    return AMBIENT + (1 - AMBIENT) * towards


def _colours(canvas: Canvas, sky: Colour) -> np.ndarray:
    """(6, 2 * (1 + surfaces)): both colours of the pattern, then, twice, that of the band."""
    plain = [(*surface.colour, *surface.second_colour) for surface in canvas.surfaces]
    bands = [surface.band_colour * 2 for surface in canvas.surfaces]
    return np.array([sky * 2, *plain, sky * 2, *bands], np.float32).T.copy()


def _pattern(canvas: Canvas, on_surface: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """(H, W): the share of the second colour."""
    surfaces = [_SKY, *canvas.surfaces]
    period = np.array([surface.period_m for surface in surfaces], np.float32)
    half = [0.0 if surface.pattern == "plain" else 0.5 for surface in surfaces]
    table = np.stack([1 / period * (2 * math.pi), canvas.camera.focal_x * period, half], 0)
    steps, size, share = _looked_up(table.astype(np.float32), canvas.which)
    is_checker = np.array([surface.pattern == "checker" for surface in surfaces])
    first, second = torch.from_numpy(on_surface * steps).sin_().numpy()
    wave = np.where(is_checker[canvas.which], first * second, first)
    pixels = size / depth  # of a period
    strength = np.minimum(np.maximum((pixels - 2) / 2, 0), 1)
    return (1 + strength * np.minimum(np.maximum(3 * wave, -1), 1)) * share


def _looked_up(table: np.ndarray, row: np.ndarray) -> np.ndarray:
    """(columns of the table, H, W): for each pixel what its row says."""
    found = torch.from_numpy(table).index_select(1, torch.from_numpy(row).view(-1))
    return found.view(-1, *row.shape).numpy()
