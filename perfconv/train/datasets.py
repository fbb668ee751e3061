"""The samples of a recipe, in an order that is a function of the seed and the step alone.

So a run that was stopped goes on with the very samples, crops and flips that would have come.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from perfconv.data import Augmentation, Batch, PerspectiveScenes, Sample, collate
from perfconv.data.dataset import LabelledImages, Readable
from perfconv.train.config import Data

Made = TypeVar("Made")
TRAIN_SEED, TEST_SEED = 1, 2  # of made-up scenes; the same for every run


class Samples(Protocol):
    """A data set: its length, its samples, the names of its classes."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class Scenes(Dataset[Sample]):
    """``PerspectiveScenes`` that are made once and kept.

    Args: those of ``PerspectiveScenes``.
    """

    classes: tuple[str, ...] = PerspectiveScenes.classes
    colours = None

    def __init__(self, length: int, **options: object) -> None:
        self.scenes = PerspectiveScenes(length, **options)  # type: ignore[arg-type]
        self.kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        if index not in self.kept:
            self.kept[index] = self.scenes[index]
        return self.kept[index]


def open_split(data: Data, root: str | Path | None, *, is_training: bool) -> Samples:
    """The samples of a split, as they are.

    Args:
        data: of a recipe.
        root: the folder of a data set's files; not needed for "scenes".
        is_training: ``train_split``, or ``test_split``.

    Raises:
        DataError: files are missing.
        ValueError: no root for a data set that has files.
    """
    if data.name == "scenes":
        options = {"size": (96, 128), **data.options}
        size = tuple(options.pop("size"))
        lengths = options.pop("length", 400), options.pop("test_length", 100)
        length = lengths[0] if is_training else lengths[1]
        if data.limit is not None:
            length = min(length, data.limit)
        seed = TRAIN_SEED if is_training else TEST_SEED
        text = json.dumps({"size": size, "seed": seed, **options})
        return called("data.options", _scenes, length, text)
    if root is None:
        raise ValueError(
            f"data set {data.name} needs its files: name their folder with --data "
            "(docs/datasets.md says what it holds)."
        )
    split = data.train_split if is_training else data.test_split
    dataset = called("data.options", _readers()[data.name], root, split, **data.options)
    samples: Samples = _Kept(dataset) if data.skip_damaged else dataset
    return samples if data.limit is None else _First(samples, data.limit)


def called(
    where: str, function: Callable[..., Made], *arguments: object, **options: object
) -> Made:
    """``function(...)``, where the options come from a recipe.

    Raises:
        ValueError: it does not take them.
    """
    try:
        return function(*arguments, **options)
    except TypeError as error:
        raise ValueError(
            f"recipe: {where} does not fit: {error}. See the recipe with --show."
        ) from error


@functools.lru_cache(maxsize=4)
def _scenes(length: int, options: str) -> Scenes:
    """Kept from run to run of one process."""
    given = json.loads(options)
    return Scenes(length, **{**given, "size": tuple(given["size"])})


def _readers() -> dict:
    from perfconv.data.bsds500 import BSDS500
    from perfconv.data.cityscapes import Cityscapes
    from perfconv.data.nyuv2 import NYUv2
    from perfconv.data.stanford import Stanford2D3D
    from perfconv.data.sunrgbd import SUNRGBD

    return {
        "nyuv2": NYUv2,
        "cityscapes": Cityscapes,
        "stanford2d3d": Stanford2D3D,
        "sunrgbd": SUNRGBD,
        "bsds500": BSDS500,
    }


class _Kept(Dataset[Sample]):
    """The samples of a data set that can be read; says on stderr which cannot."""

    def __init__(self, dataset: LabelledImages) -> None:
        self.readable = Readable(dataset)
        self.classes, self.colours = dataset.classes, dataset.colours
        for error in self.readable.skipped:
            print(f"left out: {error}", file=sys.stderr)
        if not len(self.readable):
            raise self.readable.skipped[0]

    def __len__(self) -> int:
        return len(self.readable)

    def __getitem__(self, index: int) -> Sample:
        return self.readable[index]


class _First(Dataset[Sample]):
    """The first samples of a data set."""

    def __init__(self, dataset: Samples, limit: int) -> None:
        self.dataset, self.limit = dataset, limit
        self.classes = dataset.classes
        self.colours = getattr(dataset, "colours", None)

    def __len__(self) -> int:
        return min(self.limit, len(self.dataset))

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[index]


class _Augmented(Dataset[Sample]):
    """Samples by (index, seed of the augmentation)."""

    def __init__(self, samples: Samples, augmentation: Augmentation) -> None:
        self.samples, self.augmentation = samples, augmentation

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        index, seed = key
        return self.augmentation(self.samples[index], torch.Generator().manual_seed(seed))


def mixed(*parts: object) -> int:
    """A seed in [0, 2^63) out of anything that has a repr."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class Order:
    """Which sample comes when: batch after batch through shuffled epochs.

    Args:
        samples: number of samples.
        batch_size: of all processes together, ``ranks * accumulate`` times a micro-batch.
        seed: of the shuffling, anything that has a repr.
        start, steps: first step, and the one after the last.
        rank, ranks, accumulate: this process takes ``accumulate`` micro-batches of each batch.

    Iterating gives micro-batches, lists of (index, seed of the augmentation).

    Raises:
        ValueError: a batch does not divide.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        seed: object,
        start: int,
        steps: int,
        rank: int = 0,
        ranks: int = 1,
        accumulate: int = 1,
    ) -> None:
        parts = ranks * accumulate
        if batch_size % parts or not samples:
            raise ValueError(
                f"a batch of {batch_size} out of {samples} samples must divide into {ranks} "
                f"processes times {accumulate} micro-batches. Change batch_size or accumulate."
            )
        self.samples, self.batch_size, self.seed = samples, batch_size, seed
        self.start, self.steps = start, steps
        self.first_part, self.parts = rank * accumulate, accumulate
        self.part_size = batch_size // parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        for step in range(self.start, self.steps):
            batch = []
            for position in range(step * self.batch_size, (step + 1) * self.batch_size):
                if position // self.samples != epoch:
                    epoch = position // self.samples
                    shuffle = torch.Generator().manual_seed(mixed(self.seed, "epoch", epoch))
                    order = torch.randperm(self.samples, generator=shuffle)
                index = int(order[position % self.samples])
                batch.append((index, mixed(self.seed, "augmentation", position)))
            for part in range(self.first_part, self.first_part + self.parts):
                yield batch[part * self.part_size : (part + 1) * self.part_size]

    def __len__(self) -> int:
        return (self.steps - self.start) * self.parts


def make_augmentation(data: Data) -> Augmentation:
    """What ``data`` says of it.

    Raises:
        ValueError: a value does not fit.
    """
    options = {**_tuples(data.augmentation), "crop_size": data.crop_size}
    return called("data.augmentation", Augmentation, **options)


def training_batches(
    samples: Samples, augmentation: Augmentation, order: Order, *, workers: int, is_pinned: bool
) -> Iterator[Batch]:
    """The micro-batches of ``order``, augmented; in pinned memory for a GPU."""
    loader = DataLoader(
        _Augmented(samples, augmentation),
        batch_sampler=order,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=is_pinned,
    )
    return iter(loader)


def _tuples(options: dict) -> dict:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}


def share(count: int, rank: int, ranks: int) -> Sequence[int]:
    """The indices that a process evaluates."""
    return range(rank, count, ranks)
