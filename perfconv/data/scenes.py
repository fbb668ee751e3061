"""PerspectiveScenes: made-up streets and rooms whose labels, depth and normals agree.

scene_plans.py says what stands where, scene_render.py casts rays at it, scene_shade.py paints.
"""

import random

import torch
from torch.utils.data import Dataset

from perfconv.data.geometry import boundaries_from_labels
from perfconv.data.sample import Camera, Sample

CLASSES = (
    *("sky", "road", "sidewalk", "terrain", "house", "office"),
    *("car", "van", "person", "tree", "pole"),
    *("floor", "ceiling", "wall", "cabinet", "shelf", "table", "ball", "picture", "window"),
)
KINDS = ("street", "room", "both")
SKY = CLASSES.index("sky")
FOCAL_SHARE = 0.9  # focal length over the image's width


class PerspectiveScenes(Dataset[Sample]):
    """Scenes in true perspective, computed when asked for: no files, any size, any number.

    A "street" has ground, houses, vehicles, people and trees from 3 to 80 metres away, a "room"
    its walls, furniture and things from 1 to 8. What makes pooling by depth worth while:

    - The same object fills 5 or 100 pixels, as its distance has it.
    - Pairs of classes look the same in their middle and differ at one end, so that their pixels
      can only be told by context as far away as the object is large: cars carry a coloured band
      at the bottom and vans at the top, cabinets at the bottom and shelves at the top.
    - Others differ in the period of a pattern in metres only: houses (0.6) and offices (2.4),
      windows (0.4) and pictures (0.1), each times a factor in 0.85 .. 1.15. In pixels, near houses
      are like far offices.
    - Light, colours, haze and noise differ from scene to scene and say nothing of the class.

    Labels are classes of ``CLASSES`` (all are known), ``instances`` number the objects,
    boundaries lie between objects, depth and normals are valid everywhere but in the sky.

    Args:
        length: number of scenes.
        size: (height, width), pixels.
        kind: "street", "room" or "both" (every other one).
        seed: scenes of different seeds differ; a scene depends on seed, number, size and kind only.
        noise: standard deviation of the pixels' noise.

    Raises:
        ValueError: an argument is out of range.

    Notes: needs NumPy (``perfconv[data]``). A scene is made in one thread.

    Example:
        >>> scene = PerspectiveScenes(10, size=(32, 40), kind="room")[0]
        >>> scene.image.shape, bool(scene.depth_valid.all())
        (torch.Size([3, 32, 40]), True)
    """

    classes = CLASSES

    def __init__(
        self,
        length: int,
        *,
        size: tuple[int, int] = (128, 160),
        kind: str = "both",
        seed: int = 0,
        noise: float = 0.05,
    ) -> None:
        if length < 0 or min(size) < 8 or not noise >= 0:
            raise ValueError(
                "PerspectiveScenes: length must be 0 or more, sides 8 pixels or more and noise 0 "
                f"or more, got {length}, {size} and {noise}."
            )
        if kind not in KINDS:
            raise ValueError(
                f"PerspectiveScenes: kind must be 'street', 'room' or 'both', got {kind!r}."
            )
        self.length, self.size, self.kind, self.seed, self.noise = length, size, kind, seed, noise

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(
                f"PerspectiveScenes: index must be in [0, {self.length}), got {index}."
            )
        # Small tensors wait for a second thread longer than it helps.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._make(index)
        finally:
            torch.set_num_threads(threads)

    def _make(self, index: int) -> Sample:
        import numpy as np

        from perfconv.data.scene_plans import room, street
        from perfconv.data.scene_shade import paint

        is_street = self.kind == "street" or (self.kind == "both" and index % 2 == 0)
        draw = random.Random(f"perfconv scene {self.seed} {index} {is_street}")
        height, width = self.size
        focal = FOCAL_SHARE * width * draw.uniform(0.9, 1.1)
        camera = Camera(focal, focal, (width - 1) / 2, (height - 1) / 2)
        with np.errstate(divide="ignore", invalid="ignore"):  # rays along a face
            scene = (street if is_street else room)(draw, camera, self.size)
            image, normals = paint(scene.canvas, scene.sky, scene.light, scene.haze_m)
        generator = torch.Generator().manual_seed(draw.getrandbits(63))
        gains = torch.tensor([draw.uniform(0.85, 1.15) for _ in range(3)])[:, None, None]
        noise = torch.randn(image.shape, generator=generator)
        which = torch.from_numpy(scene.canvas.which)
        seen = which.bool()[None]
        labels = torch.tensor([SKY, *(surface.label for surface in scene.canvas.surfaces)])
        return Sample(
            image=image.mul_(gains).add_(noise.mul_(self.noise)).clamp_(0, 1),
            name=f"{'street' if is_street else 'room'}_{index:06d}",
            labels=labels.index_select(0, which.view(-1)).view(self.size),
            instances=which.long(),
            depth_m=torch.where(seen, torch.from_numpy(scene.canvas.depth), 0.0),
            depth_valid=seen,
            normals=normals,
            normals_valid=seen,
            boundaries=boundaries_from_labels(which),
            camera=camera,
        )
