"""Cityscapes: fine labels as train ids, instances, and depth from disparity with calibration."""

from pathlib import Path

import torch
from torch import Tensor

from perfconv.data.dataset import LabelledImages, check_split
from perfconv.data.files import DataError, number, read_integers, read_json, read_rgb
from perfconv.data.sample import IGNORE, Camera, Sample

# Train id order: (name, label id, colour).
_TABLE = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
LAST_LABEL_ID = 33
FIRST_INSTANCE = 1000  # instance ids below are of regions without instances


class Cityscapes(LabelledImages):
    """Street photos of 1024 x 2048 pixels; 2975 for training, 500 for validation, 1525 for testing.

    Labels are the 19 train ids. Disparity and camera files are used where their folders are there.
    Depth = baseline * focal length / disparity, disparity = (value - 1) / 256 of values above
    ``min_disparity``, 0 = not measured.

    Args:
        root: the folder with ``leftImg8bit``, ``gtFine``, and perhaps ``disparity``, ``camera``.
        split: "train", "val" or "test" (without labels).
        min_disparity: values of at most this are not valid (the authors': 10).

    Raises:
        DataError: a file is missing or damaged; when a sample is read, too.
        ValueError: another split.
    """

    classes = tuple(name for name, _, _ in _TABLE)
    colours = tuple(colour for _, _, colour in _TABLE)

    def __init__(self, root: str | Path, split: str = "train", *, min_disparity: int = 10) -> None:
        check_split("Cityscapes", split, ("train", "val", "test"))
        root = Path(root)
        folder = root / "leftImg8bit" / split
        suffix = "_leftImg8bit.png"
        names = sorted(path.name[: -len(suffix)] for path in folder.glob(f"*/*{suffix}"))
        self.split, self.min_disparity = split, min_disparity
        self._has_depth = (root / "disparity" / split).exists()
        self._train_ids = torch.full((LAST_LABEL_ID + 1,), IGNORE)
        for train_id, (_, label_id, _) in enumerate(_TABLE):
            self._train_ids[label_id] = train_id
        super().__init__(root, names)

    def path(self, name: str, kind: str, suffix: str) -> Path:
        """Of one file: <root>/<kind>/<split>/<city>/<name>_<suffix>."""
        return self.root / kind / self.split / name.split("_")[0] / f"{name}_{suffix}"

    def read(self, name: str) -> Sample:
        image = read_rgb(self.path(name, "leftImg8bit", "leftImg8bit.png"))
        size = image.size(1), image.size(2)
        labels = instances = None
        if self.split != "test":
            labels = self._labels(self.path(name, "gtFine", "gtFine_labelIds.png"), size)
            ids = read_integers(self.path(name, "gtFine", "gtFine_instanceIds.png"), size)
            instances = torch.where(ids >= FIRST_INSTANCE, ids, 0)
        camera, depth = self._depth(name, size) if self._has_depth else (None, None)
        return Sample(image, name, labels=labels, instances=instances, depth_m=depth, camera=camera)

    def _labels(self, path: Path, size: tuple[int, int]) -> Tensor:
        ids = read_integers(path, size)
        if int(ids.max()) > LAST_LABEL_ID:
            raise DataError(
                f"{path} must hold label ids in [0, {LAST_LABEL_ID}], got {int(ids.max())}. Are "
                "these train ids, or colours?"
            )
        return self._train_ids[ids]

    def _depth(self, name: str, size: tuple[int, int]) -> tuple[Camera, Tensor]:
        path = self.path(name, "camera", "camera.json")
        content = read_json(path)
        focal_x = number(path, content, "intrinsic", "fx")
        camera = Camera(
            focal_x,
            number(path, content, "intrinsic", "fy"),
            number(path, content, "intrinsic", "u0"),
            number(path, content, "intrinsic", "v0"),
        )
        baseline_m = number(path, content, "extrinsic", "baseline")
        values = read_integers(self.path(name, "disparity", "disparity.png"), size)
        disparity = (values - 1).float() / 256  # pixels
        depth = torch.where(
            values > max(self.min_disparity, 1), baseline_m * focal_x / disparity, 0.0
        )
        return camera, depth[None]
