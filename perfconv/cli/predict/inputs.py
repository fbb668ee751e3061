"""What there is to predict: photos by file, folder or pattern, samples of a data set, or scenes."""

import glob
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from perfconv.data import PerspectiveScenes, Sample
from perfconv.data.dataset import LabelledImages
from perfconv.data.files import DataError
from perfconv.data.image import load_photo
from perfconv.data.nyuv2 import NYUv2
from perfconv.data.verify import DATASETS
from perfconv.train.datasets import TEST_SEED

NORMALS_RADIUS = 4  # of NYUv2, whose files hold no normals: computed from depth, as for training
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SCENES, SCENE_SIZE = 4, (96, 128)  # unless --limit says otherwise; (height, width)


class InputError(ValueError):
    """An image or a folder cannot be used; the message says why and what to do."""


class Reading(NamedTuple):
    """An image that was read."""

    sample: Sample
    notes: tuple[str, ...]  # what was done to it, one sentence each


class Input(NamedTuple):
    """One image that can be read later."""

    name: str  # of the pictures that will be written
    read: Callable[[], Reading]  # raises InputError


def find_inputs(
    sources: Sequence[str],
    *,
    dataset: str | None = None,
    split: str | None = None,
    names: Sequence[str] = (),
    limit: int | None = None,
    max_side: int = 1024,
) -> list[Input]:
    """The images that ``sources`` name, each once, in order.

    Args:
        sources: files, folders (their images, not those of folders inside) and patterns; with
            ``dataset`` its one folder, or nothing for "scenes".
        dataset: a key of ``DATASETS``, or "scenes"; None: photos.
        split: of the data set.
        names: of its samples; none: all.
        limit: this many, evenly spread; None: all.
        max_side: longer photos are scaled down to this, pixels.

    Raises:
        InputError: a source names no image, or the data set cannot be read.
    """
    if dataset == "scenes":
        return _scenes(sources, names, limit or SCENES)
    if dataset is None:
        if not sources:
            raise InputError("name an image, a folder or a pattern; or take --dataset scenes.")
        inputs = _photos(sources, max_side)
    else:
        inputs = _samples(sources, dataset, split or "test", names)
    if limit is not None and limit < len(inputs):
        inputs = [inputs[index * len(inputs) // limit] for index in range(limit)]
    return inputs


def _photos(sources: Sequence[str], max_side: int) -> list[Input]:
    paths = list(dict.fromkeys(path for source in sources for path in _paths(source)))
    stems = [path.stem for path in paths]
    inputs: dict[str, Input] = {}
    for path in paths:
        # Of images called the same, the suffix and then a number tell the pictures apart.
        name = first = path.stem if stems.count(path.stem) == 1 else path.name.replace(".", "-")
        number = 1
        while name in inputs:
            number += 1
            name = f"{first}-{number}"
        inputs[name] = Input(name, partial(_read_photo, path, max_side))
    return list(inputs.values())


def _paths(source: str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        if not found:
            raise InputError(
                f"the folder {source} must hold images ({', '.join(SUFFIXES)}), got none. Name the "
                "folder in which they lie, or a data set with --dataset."
            )
        return found
    if path.exists() or not glob.has_magic(source):
        return [path]  # if it is missing, reading it says so
    found = sorted(Path(name) for name in glob.glob(source, recursive=True))
    found = [path for path in found if path.is_file()]
    if not found:
        raise InputError(
            f"the pattern {source!r} must match a file, got none. Check where it starts: in the "
            "current folder, unless it begins with /."
        )
    return found


def _read_photo(path: Path, max_side: int) -> Reading:
    try:
        photo = load_photo(path, max_side=max_side)
    except ValueError as error:
        raise InputError(str(error)) from error
    return Reading(Sample(photo.pixels[0].contiguous(), path.stem), photo.notes)


def _scenes(sources: Sequence[str], names: Sequence[str], count: int) -> list[Input]:
    """Scenes of the recipes' test split, made when they are asked for."""
    if sources or names:
        raise InputError(
            "--dataset scenes makes its images: leave SOURCE and --samples out, and say how many "
            f"with --limit; got {' '.join([*sources, *names])}."
        )
    scenes = PerspectiveScenes(count, size=SCENE_SIZE, seed=TEST_SEED)
    return [
        Input(f"scene-{number}", lambda number=number: Reading(scenes[number], ()))  # type: ignore[misc]
        for number in range(count)
    ]


def _samples(sources: Sequence[str], dataset: str, split: str, names: Sequence[str]) -> list[Input]:
    if len(sources) != 1:
        raise InputError(
            f"--dataset must have one SOURCE, the folder of the data set, got {len(sources)}. "
            "Leave --dataset out to predict single images."
        )
    try:
        if dataset == "nyuv2":
            samples: LabelledImages = NYUv2(Path(sources[0]), split, normals_radius=NORMALS_RADIUS)
        else:
            samples = DATASETS[dataset](Path(sources[0]), split)
    except (DataError, ValueError) as error:
        raise InputError(str(error)) from error

    places = {name: index for index, name in enumerate(samples.names)}
    unknown = [name for name in names if name not in places]
    if unknown:
        some = ", ".join(samples.names[:3])
        raise InputError(
            f"--samples must be names of the {split} split, such as {some}, got {unknown[0]!r}. "
            "Check the split."
        )
    return [
        Input(name.replace("/", "-"), partial(_read_sample, samples, places[name]))
        for name in names or samples.names
    ]


def _read_sample(samples: LabelledImages, index: int) -> Reading:
    try:
        return Reading(samples[index], ())
    except DataError as error:
        raise InputError(str(error)) from error
