"""SUN RGB-D: 37 classes and depth, one file each for image, labels and depth."""

from pathlib import Path

from torch import Tensor

from perfconv.data.dataset import LabelledImages, check_split, from_one
from perfconv.data.files import read_integers, read_rgb
from perfconv.data.nyuv2 import CLASSES as NYU_CLASSES
from perfconv.data.sample import Sample

GREATEST_DEPTH_M = 8.0  # of the toolbox; beyond it sensors are guessing


class SUNRGBD(LabelledImages):
    """Indoor photos of four sensors; 5285 for training, 5050 for testing.

    Args:
        root: the folder with ``image/<split>/<name>.jpg``, ``label37/<split>/<name>.png`` (0 =
            unknown) and ``depth/<split>/<name>.png`` (as in the data set: 16 bits, turned by 3).
        split: "train" or "test".

    Raises:
        DataError: a file is missing or damaged; when a sample is read, too.
        ValueError: another split.
    """

    # The first 37 of NYU Depth V2's 40.
    classes = NYU_CLASSES[:37]

    def __init__(self, root: str | Path, split: str = "train") -> None:
        check_split("SUNRGBD", split, ("train", "test"))
        self._images = {
            path.stem: path for path in sorted(Path(root, "image", split).glob("*.jpg"))
        }
        self.split = split
        super().__init__(root, list(self._images))

    def read(self, name: str) -> Sample:
        image = read_rgb(self._images[name])
        size = image.size(1), image.size(2)
        label_path = self.root / "label37" / self.split / f"{name}.png"
        depth_path = self.root / "depth" / self.split / f"{name}.png"
        return Sample(
            image=image,
            name=name,
            labels=from_one(label_path, read_integers(label_path, size), len(self.classes)),
            depth_m=_metres(read_integers(depth_path, size)),
        )


def _metres(values: Tensor) -> Tensor:
    """(1, H, W): the file's 16 bits are the millimetres', turned left by 3."""
    millimetres = (values >> 3) | ((values & 7) << 13)
    return (millimetres.float() / 1000).clamp(max=GREATEST_DEPTH_M)[None]
