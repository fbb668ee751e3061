"""What stands where in a street, and in a room: drawn at random, cast into a Canvas."""

import math
import random
from dataclasses import dataclass

from perfconv.data.sample import Camera
from perfconv.data.scene_render import Canvas, Colour, Pose, Surface
from perfconv.data.scenes import CLASSES

_LABEL = {name: number for number, name in enumerate(CLASSES)}


@dataclass(frozen=True)
class Scene:
    """What stands where, and the light on it."""

    canvas: Canvas
    sky: Colour
    light: tuple[float, float, float]
    haze_m: float


def _colour(draw: random.Random, low: float = 0.15, high: float = 0.85) -> Colour:
    return draw.uniform(low, high), draw.uniform(low, high), draw.uniform(low, high)


def _light(draw: random.Random) -> tuple[float, float, float]:
    """The direction to the light: from above, half of it behind the camera."""
    x, y, z = draw.uniform(-1, 1), draw.uniform(0.5, 1.5), draw.uniform(-0.5, 1)
    length = math.hypot(x, y, z)
    return x / length, y / length, z / length


def _patterned(draw: random.Random, name: str, period_m: float) -> Surface:
    """A checker whose period, within 15 %, is all that tells the class."""
    return Surface(
        _LABEL[name],
        _colour(draw, 0.3, 0.9),
        _colour(draw, 0.1, 0.6),
        pattern="checker",
        period_m=period_m * draw.uniform(0.85, 1.15),
    )


def _banded(draw: random.Random, names: tuple[str, str]) -> Surface:
    """One of two classes: the first has its band at the bottom, the second at the top."""
    is_second = draw.random() < 0.5
    return Surface(
        _LABEL[names[is_second]],
        _colour(draw),
        band="top" if is_second else "bottom",
        band_colour=_colour(draw),
    )


def street(draw: random.Random, camera: Camera, size: tuple[int, int]) -> Scene:
    pose = Pose(draw.uniform(1.3, 2.2), draw.uniform(-12, 12), draw.uniform(-6, 3))
    canvas = Canvas(camera, pose, size)
    road, edge = draw.uniform(3, 5), draw.uniform(7, 11)  # half widths
    grey = draw.uniform(0.25, 0.5)
    walk = draw.uniform(0.35, 0.6)
    ground = [
        (road, Surface(_LABEL["road"], (grey, grey, grey))),
        (
            road + draw.uniform(1.5, 3),
            Surface(
                _LABEL["sidewalk"],
                (walk, walk, walk * 0.9),
                (walk * 0.8, walk * 0.8, walk * 0.8),
                pattern="checker",
                period_m=draw.uniform(1.0, 1.6),
            ),
        ),
        (
            math.inf,
            Surface(
                _LABEL["terrain"],
                (0.25, draw.uniform(0.35, 0.55), 0.2),
                (0.35, 0.35, 0.2),
                pattern="stripes",
                period_m=draw.uniform(0.8, 2),
            ),
        ),
    ]
    canvas.level(0.0, ground)
    _buildings(draw, canvas, edge)
    for _ in range(draw.randint(3, 6)):  # vehicles, dense near and far alike
        distance = draw.uniform(4, 10) * 1.5 ** draw.uniform(0, 4)
        x = draw.choice((-1, 1)) * draw.uniform(0.35, 0.8) * road
        height, length = draw.uniform(0.65, 1.1), draw.uniform(1.8, 2.6)
        canvas.box(
            (x, height, -distance),
            (draw.uniform(0.8, 1.0), height, length),
            _banded(draw, ("car", "van")),
            yaw_deg=draw.uniform(-15, 15),
        )
    for _ in range(draw.randint(1, 4)):
        distance, x = draw.uniform(3.5, 30), draw.uniform(-1.3, 1.3) * road
        half = draw.uniform(0.75, 0.95)
        person = Surface(
            _LABEL["person"], _colour(draw), _colour(draw), pattern="stripes", period_m=0.3
        )
        canvas.ellipsoid((x, half, -distance), (0.28, half, 0.25), person)
    for _ in range(draw.randint(2, 5)):
        distance = draw.uniform(6, 45)
        _tree_or_pole(draw, canvas, draw.choice((-1, 1)) * draw.uniform(road + 0.5, edge), distance)
    sky = (draw.uniform(0.55, 0.8), draw.uniform(0.65, 0.85), draw.uniform(0.75, 0.95))
    return Scene(canvas, sky, _light(draw), draw.uniform(60, 250))


def _buildings(draw: random.Random, canvas: Canvas, edge: float) -> None:
    """A row on each side, with gaps."""
    for side in (-1, 1):
        begin = draw.uniform(-2, 6)
        while begin < 80:
            length, depth = draw.uniform(8, 20), draw.uniform(4, 8)
            height = draw.uniform(2.5, 9)  # half
            is_office = draw.random() < 0.5
            look = _patterned(draw, *(("office", 2.4) if is_office else ("house", 0.6)))
            centre = (side * (edge + depth), height, -(begin + length / 2))
            canvas.box(centre, (depth, height, length / 2), look)
            begin += length + draw.choice((0.0, 0.0, draw.uniform(2, 12)))


def _tree_or_pole(draw: random.Random, canvas: Canvas, x: float, distance: float) -> None:
    if draw.random() < 0.5:
        half, width = draw.uniform(1.5, 3), draw.uniform(0.1, 0.2)
        grey = draw.uniform(0.3, 0.7)
        look = Surface(_LABEL["pole"], (grey, grey, grey))
        canvas.box((x, half, -distance), (width, half, width), look)
        return
    trunk, crown = draw.uniform(0.6, 1.1), draw.uniform(1.0, 2.2)
    look = Surface(
        _LABEL["tree"],
        (0.2, draw.uniform(0.3, 0.5), 0.15),
        (0.3, draw.uniform(0.4, 0.65), 0.2),
        pattern="checker",
        period_m=draw.uniform(0.4, 0.8),
    )
    bark = Surface(_LABEL["tree"], (0.35, 0.25, 0.15))
    canvas.box((x, trunk, -distance), (0.15, trunk, 0.15), bark)
    canvas.ellipsoid((x, 2 * trunk + 0.8 * crown, -distance), (crown, 1.2 * crown, crown), look)


def room(draw: random.Random, camera: Camera, size: tuple[int, int]) -> Scene:
    pose = Pose(draw.uniform(1.1, 1.7), draw.uniform(-25, 25), draw.uniform(-18, 2))
    canvas = Canvas(camera, pose, size)
    half_width, height = draw.uniform(1.6, 3.2), draw.uniform(2.4, 3.2)
    back, behind = draw.uniform(3, 8), 1.0
    _shell(draw, canvas, half_width, height, back, behind)
    for _ in range(draw.randint(2, 4)):  # against the walls
        half_height, depth = draw.uniform(0.4, 1.0), draw.uniform(0.2, 0.4)
        half = draw.uniform(0.3, 0.7)
        look = _banded(draw, ("cabinet", "shelf"))
        if draw.random() < 0.4:
            x = draw.uniform(-half_width + half, half_width - half)
            canvas.box((x, half_height, -(back - depth)), (half, half_height, depth), look)
        else:
            x = draw.choice((-1, 1)) * (half_width - depth)
            z = -draw.uniform(1.2, back - half)
            canvas.box((x, half_height, z), (depth, half_height, half), look)
    for _ in range(draw.randint(1, 3)):
        half_height = draw.uniform(0.2, 0.4)
        place = (draw.uniform(-0.7, 0.7) * half_width, half_height, -draw.uniform(1.5, back - 0.7))
        wood = Surface(
            _LABEL["table"], _colour(draw), _colour(draw), pattern="stripes", period_m=0.25
        )
        sides = (draw.uniform(0.3, 0.7), half_height, draw.uniform(0.3, 0.6))
        canvas.box(place, sides, wood, yaw_deg=draw.uniform(-40, 40))
    for _ in range(draw.randint(0, 3)):
        radius = draw.uniform(0.1, 0.35)
        x, z = draw.uniform(-0.8, 0.8) * half_width, -draw.uniform(1.2, back - 0.4)
        look = Surface(_LABEL["ball"], _colour(draw))
        canvas.ellipsoid((x, radius, z), (radius, radius, radius), look)
    return Scene(canvas, (0.5, 0.5, 0.5), _light(draw), 1000.0)


def _shell(
    draw: random.Random,
    canvas: Canvas,
    half_width: float,
    height: float,
    back: float,
    behind: float,
) -> None:
    """Floor, ceiling, walls, and what hangs on them."""
    wall = Surface(_LABEL["wall"], _colour(draw, 0.45, 0.9))
    centre = (0.0, height / 2, (behind - back) / 2)
    inside = (half_width, height / 2, (back + behind) / 2)
    canvas.room(centre, inside, wall)
    planks = Surface(
        _LABEL["floor"],
        _colour(draw, 0.2, 0.7),
        _colour(draw, 0.2, 0.7),
        pattern=draw.choice(("stripes", "checker")),
        period_m=draw.uniform(0.3, 0.7),
    )
    canvas.level(0.001, [(math.inf, planks)])  # above the box's own lower side
    canvas.level(height - 0.001, [(math.inf, Surface(_LABEL["ceiling"], _colour(draw, 0.7, 0.95)))])
    for _ in range(draw.randint(1, 4)):
        is_window = draw.random() < 0.5
        look = _patterned(draw, *(("window", 0.4) if is_window else ("picture", 0.1)))
        half, half_height = draw.uniform(0.25, 0.6), draw.uniform(0.25, 0.45)
        y = draw.uniform(1.3, height - 0.6)
        if draw.random() < 0.5:
            x = draw.uniform(-half_width + half, half_width - half)
            canvas.box((x, y, -back), (half, half_height, 0.03), look)
        else:
            x, z = draw.choice((-1, 1)) * half_width, -draw.uniform(1.5, back - half)
            canvas.box((x, y, z), (0.03, half_height, half), look)
