"""Stanford 2D-3D-S panoramas: classes, 16-bit depth, normals in the frame of the viewer."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from perfconv.data.dataset import LabelledImages, check_split, from_one
from perfconv.data.files import (
    DataError,
    image_mode,
    need,
    read_bytes_rgb,
    read_integers,
    read_json,
    read_rgb,
)
from perfconv.data.sample import IGNORE, Sample

CLASSES = (
    *("beam", "board", "bookcase", "ceiling", "chair", "column"),
    *("door", "floor", "sofa", "table", "wall", "window"),
)
TEST_AREAS = ("area_3", "area_4")
LABEL_LIST = "semantic_labels.json"
DEPTH_STEPS_PER_M = 512
NO_DEPTH = 65535
KINDS = {"depth": "_depth.png", "normal": "_normals.png", "semantic": "_semantic.png"}
FRAMES = ("viewer", "room")


class Stanford2D3D(LabelledImages):
    """Indoor panoramas with 12 classes (clutter does not count), depth and normals.

    Args:
        root: the folder with ``area_1`` .. ``area_6``, each with ``pano`` (as downloaded) or the
            folders ``rgb``, ``depth``, ``normal``, ``semantic`` themselves; or one folder with
            ``<name>_rgb.png`` and its siblings, which is then every split.
        split: "train" (areas 1, 2, 5a, 5b, 6) or "test" (3, 4).
        normals_frame: what the files hold: "viewer" (z towards the viewer at every column), or
            "room" (one frame for the whole panorama, which is turned about the upright axis by an
            angle that is found for each image). Both have x to the left and y down; samples have x
            to the right and y up, as everywhere.

    Raises:
        DataError: a file is missing or damaged; when a sample is read, too.
        ValueError: another split or frame.
    """

    classes = CLASSES

    def __init__(
        self, root: str | Path, split: str = "train", *, normals_frame: str = "viewer"
    ) -> None:
        check_split("Stanford2D3D", split, ("train", "test"))
        if normals_frame not in FRAMES:
            raise ValueError(
                f"Stanford2D3D: normals_frame must be 'viewer' or 'room', got {normals_frame!r}."
            )
        root = Path(root)
        self.normals_frame = normals_frame
        self._folders = _folders(root, split)
        self._label_classes: Tensor | None = None
        self._images = {
            path.name.removesuffix("_rgb.png"): path
            for folder in self._folders
            for path in sorted(folder.glob("*_rgb.png"))
        }
        super().__init__(root, list(self._images))

    def path(self, name: str, kind: str) -> Path:
        """Of one file; kind is "depth", "normal" or "semantic"."""
        image = self._images[name]
        folder = image.parent.parent / kind if image.parent.name == "rgb" else image.parent
        return folder / f"{name}{KINDS[kind]}"

    def read(self, name: str) -> Sample:
        image = read_rgb(self._images[name])
        size = image.size(1), image.size(2)
        values = read_integers(self.path(name, "depth"), size)
        valid = (values != NO_DEPTH) & (values > 1)
        normals, normals_valid = _normals(self.path(name, "normal"), size)
        if self.normals_frame == "room":
            normals = viewer_normals(normals, find_turn(normals, normals_valid))
        normals = normals * torch.tensor([-1.0, -1.0, 1.0])[:, None, None]
        return Sample(
            image=image,
            name=name,
            labels=self._labels(self.path(name, "semantic"), size),
            depth_m=torch.where(valid, values.float() / DEPTH_STEPS_PER_M, 0.0)[None],
            normals=normals,
            normals_valid=normals_valid,
        )

    def _labels(self, path: Path, size: tuple[int, int]) -> Tensor:
        if image_mode(path) in ("L", "P"):
            return from_one(path, read_integers(path, size), len(CLASSES))
        red, green, blue = read_bytes_rgb(path, size)
        numbers = red * 65536 + green * 256 + blue
        if self._label_classes is None:
            self._label_classes = _class_of_label(self.root)
        known = numbers < len(self._label_classes)
        return torch.where(known, self._label_classes[torch.where(known, numbers, 0)], IGNORE)


def _folders(root: Path, split: str) -> list[Path]:
    """Where the images of a split lie."""
    areas = sorted(path for path in root.glob("area_*") if path.is_dir())
    if not areas:
        return [root]
    folders = []
    for area in areas:
        if (area.name in TEST_AREAS) == (split == "test"):
            folders.append((area / "pano" if (area / "pano").exists() else area) / "rgb")
    return folders


def _class_of_label(root: Path) -> Tensor:
    """By the number that the colour encodes: instances are named <class>_<number>_<room>..."""
    places = (root / LABEL_LIST, root / "assets" / LABEL_LIST)
    path = next((place for place in places if place.exists()), places[0])
    names = read_json(need(path, "the data set's repository (assets)"))
    if not isinstance(names, list):
        raise DataError(f"{path} must hold a list of names.")
    classes = [str(name).split("_")[0] for name in names]
    return torch.tensor([CLASSES.index(c) if c in CLASSES else IGNORE for c in classes])


def _normals(path: Path, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Unit vectors, 0 where the file's are not nearly so; and where they are."""
    vectors = read_bytes_rgb(path, size).float() / 127.5 - 1
    length = torch.linalg.vector_norm(vectors, dim=0, keepdim=True)
    valid = (length > 0.8) & (length < 1.1)
    return torch.where(valid, F.normalize(vectors, dim=0), 0.0), valid


def viewer_normals(normals: Tensor, turn_deg: float) -> Tensor:
    """From one frame for the whole panorama to that of the viewer of each column, in the files'.

    At column x of W, (n_x, n_z) is turned by ``turn_deg`` + 360 x / W with the matrix
    [[cos, -sin], [sin, cos]]; n_y stays.

    Args:
        normals: (3, H, W), the panorama's whole turn.
        turn_deg: the turn at the first column.

    Source: Kong and Fowlkes 2019, released code, where a click on a wall gives the turn.
    """
    width = normals.size(2)
    angle = math.radians(turn_deg) + torch.arange(width) * (2 * math.pi / width)
    x, y, z = normals
    return torch.stack([angle.cos() * x - angle.sin() * z, y, angle.sin() * x + angle.cos() * z])


def find_turn(normals: Tensor, valid: Tensor) -> float:
    """The turn, in degrees, with which visible surfaces face away from the viewer least (n_z < 0).

    Every visible surface faces the viewer; of all whole degrees that come as near to that as the
    best, the middle.

    Args:
        normals: (3, H, W), in one frame for the whole panorama.
        valid: (1, H, W), bool.
    """
    step = max(1, normals.size(2) // 128)
    sparse, counts = normals[:, ::step, ::step], valid[0, ::step, ::step]
    upright = counts & (sparse[1].abs() < 0.5)  # floors and ceilings say nothing
    columns = torch.arange(sparse.size(2)) * (2 * math.pi / sparse.size(2))
    x, z = sparse[0][upright], sparse[2][upright]
    at = columns.expand(upright.shape)[upright]
    turns = torch.arange(360.0).deg2rad()
    away = torch.stack(
        [((at + turn).sin() * x + (at + turn).cos() * z).clamp(max=0).sum() for turn in turns]
    )
    best = turns[away >= away.max() - 1e-6 * len(x)]
    middle = torch.atan2(best.sin().sum(), best.cos().sum())
    return middle.rad2deg().item() % 360
