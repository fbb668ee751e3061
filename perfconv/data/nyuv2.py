"""NYU Depth V2: the official labelled file, and one .mat file for each image."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perfconv.data.dataset import LabelledImages, check_split, from_one
from perfconv.data.files import DataError, field, need, read_mat, reading
from perfconv.data.geometry import normals_from_depth
from perfconv.data.sample import Camera, Sample

CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror"),
    *("floor mat", "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel"),
    *("shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp"),
    *("bathtub", "bag", "otherstructure", "otherfurniture", "otherprop"),
)
OFFICIAL = "nyu_depth_v2_labeled.mat"
SPLITS = "splits.mat"
CLASS_MAP = "classMapping40.mat"
IMAGE_LIST = "imdb_NYUv2_offline.mat"
# Rows and columns whose depth was measured; the sensor's picture has a white frame around them.
INNER_ROWS, INNER_COLUMNS = slice(44, 471), slice(40, 601)
# Colour camera of the official toolbox, counted from 0, in the cut image. Images of one file each
# are two pixels smaller, nobody says at which side: a shift too small for normals to show.
CAMERA = Camera(518.8579, 519.4696, 325.5824 - 1 - 40, 253.7362 - 1 - 44)


class NYUv2(LabelledImages):
    """Indoor photos with 40 classes and depth; 795 for training, 654 for testing.

    The folder holds either the official ``nyu_depth_v2_labeled.mat`` with ``splits.mat`` and
    ``classMapping40.mat`` (images are cut to the 427 x 561 pixels with measured depth), or one
    ``<number>.mat`` for each image with ``imdb_NYUv2_offline.mat`` (425 x 560).

    Args:
        root: the folder.
        split: "train" or "test".
        normals_radius: also compute normals, from depth in windows of this radius (pixels; 4 is
            good for this sensor); None: no normals.

    Raises:
        DataError: a file is missing or damaged; when a sample is read, too.
        ValueError: another split.
    """

    classes = CLASSES

    def __init__(
        self, root: str | Path, split: str = "train", *, normals_radius: int | None = None
    ) -> None:
        check_split("NYUv2", split, ("train", "test"))
        root = Path(root)
        self.normals_radius = normals_radius
        self._class_map: Tensor | None = None  # 894 names to 1 .. 40
        if (root / OFFICIAL).exists():
            names = _official_names(root, split)
            self._class_map = _class_map(root)
        elif (root / IMAGE_LIST).exists():
            names = _listed_names(root, split)
        else:
            raise DataError(
                f"NYUv2: {root} must hold {OFFICIAL} (from the NYU Depth V2 page), or "
                f"{IMAGE_LIST} with one .mat file for each image. See docs/datasets.md."
            )
        super().__init__(root, names)

    def read(self, name: str) -> Sample:
        is_listed = self._class_map is None
        sample = self._read_listed(name) if is_listed else self._read_official(name)
        if self.normals_radius is None or sample.depth_m is None:
            return sample
        found = normals_from_depth(sample.depth_m, CAMERA, radius=self.normals_radius)
        return replace(sample, normals=found.normals, normals_valid=found.valid)

    def _read_listed(self, name: str) -> Sample:
        path = self.root / f"{name}.mat"
        data = read_mat(path, "datamat")["datamat"]
        with reading(path):
            image = torch.from_numpy(field(path, data, "img").astype(np.float32) / 255)
            numbers = torch.from_numpy(field(path, data, "segGT").astype(np.int64))
            depth_mm = torch.from_numpy(field(path, data, "depth").astype(np.float32))
            image = image.permute(2, 0, 1)  # (3, H, W)
            labels = from_one(path, numbers, len(CLASSES))
            # The authors' rule: depth of at most 1 mm is missing.
            depth = torch.where(depth_mm > 1, depth_mm / 1000, 0.0)[None]
            return Sample(image.contiguous(), name, labels=labels, depth_m=depth, camera=CAMERA)

    def _read_official(self, name: str) -> Sample:
        path, index = self.root / OFFICIAL, int(name) - 1
        assert self._class_map is not None
        with reading(path):
            import h5py

            with h5py.File(path) as file:  # MATLAB's dimensions, last first: columns before rows
                image = torch.from_numpy(file["images"][index])
                depth = torch.from_numpy(file["depths"][index].astype(np.float32))
                numbers = torch.from_numpy(file["labels"][index].astype(np.int64))
            if int(numbers.max()) >= len(self._class_map):
                raise DataError(f"{path}, image {name}: label {int(numbers.max())} has no class.")
            image = image.transpose(1, 2)[:, INNER_ROWS, INNER_COLUMNS]
            labels = from_one(path, self._class_map[numbers], len(CLASSES))
        return Sample(
            image=image.float() / 255,
            name=name,
            labels=labels.T[INNER_ROWS, INNER_COLUMNS].contiguous(),
            depth_m=depth.T[None, INNER_ROWS, INNER_COLUMNS].contiguous(),
            camera=CAMERA,
        )


def _official_names(root: Path, split: str) -> list[str]:
    path = need(root / SPLITS, "the NYU Depth V2 page (train/test split)")
    name = "trainNdxs" if split == "train" else "testNdxs"
    indices = read_mat(path, name)[name]
    with reading(path):
        return [f"{int(index):04d}" for index in np.atleast_1d(np.asarray(indices))]


def _class_map(root: Path) -> Tensor:
    source = "the support code of Gupta et al., Learning Rich Features from RGB-D Images (metadata)"
    path = need(root / CLASS_MAP, source)
    values = read_mat(path, "mapClass")["mapClass"]
    with reading(path):
        classes = torch.from_numpy(np.asarray(values).astype(np.int64).flatten())
    return torch.cat([torch.zeros(1, dtype=torch.int64), classes])  # label 0 has no class


def _listed_names(root: Path, split: str) -> list[str]:
    path = root / IMAGE_LIST
    names = field(path, read_mat(path, "imdb")["imdb"], "train" if split == "train" else "val")
    return [Path(str(name)).stem for name in np.atleast_1d(names)]
