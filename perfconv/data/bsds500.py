"""BSDS500: photos and the boundaries that each of five or so annotators drew."""

from pathlib import Path

import numpy as np
import torch

from perfconv.data.dataset import LabelledImages, check_split
from perfconv.data.files import DataError, check_size, field, read_mat, read_rgb, reading
from perfconv.data.sample import Sample

IMAGE_LIST = "imdb_bsds500.mat"


class BSDS500(LabelledImages):
    """Photos of 321 x 481 pixels, also upright; 200 for training, 100 to validate, 200 to test.

    Args:
        root: the folder with ``images/<split>/<name>.jpg`` and ``groundTruth/<split>/<name>.mat``
            (as downloaded: BSR/BSDS500/data); or one with ``<name>.mat`` files that hold the
            image ``im`` and the union ``GT`` of the annotators, which is then every split.
        split: "train", "val" or "test".

    Raises:
        DataError: a file is missing or damaged; when a sample is read, too.
        ValueError: another split.
    """

    def __init__(self, root: str | Path, split: str = "train") -> None:
        check_split("BSDS500", split, ("train", "val", "test"))
        root = Path(root)
        self.split, self._is_joined = split, not (root / "images").exists()
        if self._is_joined:
            files = [path for path in root.glob("*.mat") if path.name != IMAGE_LIST]
        else:
            files = list((root / "images" / split).glob("*.jpg"))
        super().__init__(root, sorted(path.stem for path in files))

    def read(self, name: str) -> Sample:
        if self._is_joined:
            return self._read_joined(name)
        path = self.root / "groundTruth" / self.split / f"{name}.mat"
        annotators = np.atleast_1d(np.asarray(read_mat(path, "groundTruth")["groundTruth"]))
        with reading(path):
            maps = [np.asarray(field(path, one, "Boundaries")) > 0 for one in annotators]
            if not maps:
                raise DataError(f"{path} must hold an annotator, got none.")
            boundaries = torch.from_numpy(np.stack(maps))
        image = read_rgb(self.root / "images" / self.split / f"{name}.jpg")
        size = image.size(1), image.size(2)
        check_size(path, (boundaries.size(1), boundaries.size(2)), size)
        return Sample(image, name, boundaries=boundaries)

    def _read_joined(self, name: str) -> Sample:
        path = self.root / f"{name}.mat"
        data = read_mat(path, "im", "GT")
        with reading(path):
            image = torch.from_numpy(np.asarray(data["im"])).permute(2, 0, 1).float() / 255
            boundaries = torch.from_numpy(np.asarray(data["GT"]) > 0)[None]
            return Sample(image.contiguous(), name, boundaries=boundaries)
