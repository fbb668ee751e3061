"""SUN RGB-D: 37 classes and depth, as downloaded with its toolbox, or one file each."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from perfconv.data.dataset import LabelledImages, check_split, from_one
from perfconv.data.files import (
    DataError,
    check_size,
    field,
    need,
    read_integers,
    read_mat,
    read_rgb,
    reading,
)
from perfconv.data.nyuv2 import CLASSES as NYU_CLASSES
from perfconv.data.sample import Camera, Sample

GREATEST_DEPTH_M = 8.0  # of the toolbox; beyond it sensors are guessing
IMAGES, TOOLBOX = "SUNRGBD", "SUNRGBDtoolbox"
IMAGE_LIST = f"{TOOLBOX}/Metadata/SUNRGBDMeta.mat"
LABELS = f"{TOOLBOX}/Metadata/SUNRGBD2Dseg.mat"
SPLITS = f"{TOOLBOX}/traintestSUNRGBD/allsplit.mat"


@dataclass(frozen=True)
class _Files:
    """Where the parts of a sample are."""

    image: Path
    depth: Path
    labels: Path | int  # a PNG, or the place in the toolbox's file
    camera: Camera | None = None


class SUNRGBD(LabelledImages):
    """Indoor photos of four sensors; 5285 for training, 5050 for testing.

    The folder holds either what is downloaded, ``SUNRGBD`` and ``SUNRGBDtoolbox`` side by side, or
    ``image/<split>/<name>.jpg``, ``label37/<split>/<name>.png`` (0 = unknown) and
    ``depth/<split>/<name>.png`` (as in the data set: 16 bits, turned by 3).

    Args:
        root: the folder.
        split: "train" or "test".

    Raises:
        DataError: a file is missing or damaged; when a sample is read, too.
        ValueError: another split.
    """

    # The first 37 of NYU Depth V2's 40.
    classes = NYU_CLASSES[:37]

    def __init__(self, root: str | Path, split: str = "train") -> None:
        check_split("SUNRGBD", split, ("train", "test"))
        root = Path(root)
        if (root / TOOLBOX).exists():
            self._files = dict(_official(root, split))
        elif (root / "image").exists():
            self._files = dict(_one_each(root, split))
        else:
            raise DataError(
                f"SUNRGBD: {root} must hold {IMAGES} and {TOOLBOX} (both from the SUN RGB-D page), "
                "or image, label37 and depth. See docs/datasets.md."
            )
        super().__init__(root, list(self._files))

    def read(self, name: str) -> Sample:
        files = self._files[name]
        image = read_rgb(files.image)
        size = image.size(1), image.size(2)
        if isinstance(files.labels, Path):
            path, numbers = files.labels, read_integers(files.labels, size)
        else:
            path, numbers = self.root / LABELS, _official_labels(self.root, files.labels, size)
        return Sample(
            image=image,
            name=name,
            labels=from_one(path, numbers, len(self.classes)),
            depth_m=_metres(read_integers(files.depth, size)),
            camera=files.camera,
        )


def _one_each(root: Path, split: str) -> Iterator[tuple[str, _Files]]:
    for path in sorted((root / "image" / split).glob("*.jpg")):
        file = f"{split}/{path.stem}.png"
        yield path.stem, _Files(path, root / "depth" / file, root / "label37" / file)


def _official(root: Path, split: str) -> Iterator[tuple[str, _Files]]:
    """Samples are called by their folders, such as "kv2/kinect2data/000002_...-resize"."""
    source = f"the SUN RGB-D page ({TOOLBOX}.zip)"
    path, splits = need(root / IMAGE_LIST, source), need(root / SPLITS, source)
    need(root / LABELS, source)
    variable = "alltrain" if split == "train" else "alltest"
    chosen = {
        _local(splits, folder)
        for folder in np.atleast_1d(np.asarray(read_mat(splits, variable)[variable])).tolist()
    }
    entries = np.atleast_1d(np.asarray(read_mat(path, "SUNRGBDMeta")["SUNRGBDMeta"]))
    for place, entry in enumerate(entries):
        image = _local(path, field(path, entry, "rgbpath").item())
        depth = _local(path, field(path, entry, "depthpath").item())
        folder = str(Path(image).parent.parent)  # that of <folder>/image/<name>.jpg
        if folder in chosen:
            with reading(path):
                matrix = field(path, entry, "K").astype(float)
                camera = Camera(  # the toolbox counts pixels from 1
                    matrix[0, 0], matrix[1, 1], matrix[0, 2] - 1, matrix[1, 2] - 1
                )
            yield folder, _Files(root / IMAGES / image, root / IMAGES / depth, place, camera)


def _local(path: Path, place: object) -> str:
    """A path of the machine on which the files were written, from ``SUNRGBD`` on."""
    head, mark, tail = str(place).partition(f"/{IMAGES}/")
    if not mark:
        raise DataError(f"{path} must hold paths below /{IMAGES}/, got {head!r}.")
    return str(Path(tail))


def _official_labels(root: Path, place: int, size: tuple[int, int]) -> Tensor:
    """(H, W), int64, of one image."""
    path = root / LABELS
    with reading(path):
        import h5py

        with h5py.File(path) as file:
            references = np.asarray(file["SUNRGBD2Dseg"]["seglabel"]).flatten()
            if place >= len(references):
                raise DataError(
                    f"{path} must hold the labels of every image of {IMAGE_LIST}, got "
                    f"{len(references)}. Are both from the same download?"
                )
            # MATLAB's dimensions, last first: columns before rows.
            numbers = torch.from_numpy(file[references[place]][()].T.astype(np.int64))
    check_size(path, (numbers.size(0), numbers.size(1)), size)
    return numbers


def _metres(values: Tensor) -> Tensor:
    """(1, H, W): the file's 16 bits are the millimetres', turned left by 3."""
    millimetres = (values >> 3) | ((values & 7) << 13)
    return (millimetres.float() / 1000).clamp(max=GREATEST_DEPTH_M)[None]
