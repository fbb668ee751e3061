"""LabelledImages: what all readers have in common; Readable: leaves damaged files out."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from perfconv.data.files import DataError
from perfconv.data.sample import IGNORE, Sample


class LabelledImages(Dataset[Sample]):
    """The samples of one split of a data set, read from their files when asked for.

    Sub-classes name their samples and read one. Every error of a file is a DataError naming it.
    """

    classes: tuple[str, ...] = ()  # names of the labels 0 .. C - 1; none: no labels
    colours: tuple[tuple[int, int, int], ...] | None = None  # to draw the classes with

    def __init__(self, root: str | Path, names: Sequence[str]) -> None:
        self.root = Path(root)
        self.names = tuple(names)
        if not self.names:
            raise DataError(
                f"{type(self).__name__}: {root} holds no image of this split. Check the folder's "
                "layout (docs/datasets.md)."
            )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        name = self.names[index]
        try:
            return self.read(name)
        except DataError:
            raise
        except (TypeError, ValueError) as error:  # the parts of a sample do not fit together
            raise DataError(f"{self.root}, sample {name}: {error}") from error

    def read(self, name: str) -> Sample:
        """One sample by its name."""
        raise NotImplementedError


class Readable(Dataset[Sample]):
    """The samples of a data set that can be read; ``skipped`` holds the errors of the others.

    Reads every sample once, at the beginning.

    Args:
        dataset: any reader.
        progress: called with each index before it is read.
    """

    def __init__(
        self, dataset: LabelledImages, *, progress: Callable[[int], None] | None = None
    ) -> None:
        self.dataset = dataset
        self.indices: list[int] = []
        self.skipped: list[DataError] = []
        for index in range(len(dataset)):
            if progress is not None:
                progress(index)
            try:
                dataset[index]
            except DataError as error:
                self.skipped.append(error)
            else:
                self.indices.append(index)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.indices[index]]


def check_split(dataset: str, split: str, splits: Sequence[str]) -> None:
    """Raises ValueError for a split that the data set does not have."""
    if split not in splits:
        raise ValueError(
            f"{dataset}: split must be one of {', '.join(map(repr, splits))}, got {split!r}."
        )


def from_one(path: Path, numbers: Tensor, classes: int) -> Tensor:
    """Labels 1 .. C to 0 .. C - 1; 0, unknown, to 255.

    Raises:
        DataError: other numbers.
    """
    if numbers.numel() and not 0 <= int(numbers.min()) <= int(numbers.max()) <= classes:
        raise DataError(
            f"{path} must hold labels in [0, {classes}], got {int(numbers.min())} .. "
            f"{int(numbers.max())}. Is it another set of classes?"
        )
    return torch.where(numbers == 0, IGNORE, numbers.long() - 1)
