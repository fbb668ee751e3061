"""Files of data sets: images, MATLAB and HDF5 files, and errors that name the file."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


class DataError(ValueError):
    """A file of a data set is missing or cannot be used; the message names it and says why."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong while this file is read becomes a DataError that names it."""
    try:
        yield
    except (DataError, ModuleNotFoundError):
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing. Check the folder's layout (docs/datasets.md)."
        ) from error
    except PermissionError as error:
        raise DataError(f"{path} may not be read by this user.") from error
    except Exception as error:  # decoders raise all kinds for damaged files
        raise DataError(
            f"{path} is damaged or not of the expected format ({type(error).__name__}: {error}). "
            "Copy or download it again."
        ) from error


def need(path: Path, source: str) -> Path:
    """``path``, if it is there.

    Raises:
        DataError: it is not; the message says where it comes from.
    """
    if not path.exists():
        raise DataError(f"{path} is missing. It comes from {source}; see docs/datasets.md.")
    return path


def read_rgb(path: Path) -> Tensor:
    """(3, H, W), float32, in [0, 1].

    Raises:
        DataError: missing, damaged, or not an image of 8-bit colours or greys.
    """
    values = _pixels(path, ("RGB", "L", "P", "RGBA"), "RGB")
    return torch.from_numpy(values).permute(2, 0, 1).float() / 255


def read_bytes_rgb(path: Path, size: tuple[int, int]) -> Tensor:
    """(3, H, W), int64, 0 .. 255: of files whose colours are numbers.

    Args:
        path: the file.
        size: (height, width) that it must have.

    Raises:
        DataError: missing, damaged, not RGB, or of another size.
    """
    values = torch.from_numpy(_pixels(path, ("RGB", "RGBA"), "RGB"))
    check_size(path, (values.size(0), values.size(1)), size)
    return values.permute(2, 0, 1).long()


def read_integers(path: Path, size: tuple[int, int]) -> Tensor:
    """(H, W), int64: the values of a PNG of one channel with 8 or 16 bits.

    Args:
        path: the file.
        size: (height, width) that it must have.

    Raises:
        DataError: missing, damaged, of other pixels, or of another size.
    """
    values = _pixels(path, ("L", "I", "I;16", "I;16B", "P"), None)
    check_size(path, (values.shape[0], values.shape[1]), size)
    return torch.from_numpy(values.astype(np.int64))


def check_size(path: Path, found: tuple[int, int], size: tuple[int, int]) -> None:
    """Raises DataError unless a file of labels is as large as its image; (height, width)."""
    if found != size:
        raise DataError(
            f"{path} must be as large as its image, {size[0]} x {size[1]}, got {found[0]} x "
            f"{found[1]} (height x width). Is it the file of another image?"
        )


def image_mode(path: Path) -> str:
    """Pillow's name of the pixel format.

    Raises:
        DataError: missing or damaged.
    """
    from PIL import Image

    with reading(path), Image.open(path) as image:
        return image.mode


def _pixels(path: Path, modes: tuple[str, ...], to: str | None) -> np.ndarray:
    from PIL import Image

    with reading(path), Image.open(path) as image:
        if image.mode not in modes:
            raise DataError(
                f"{path} must have pixels of one of the kinds {', '.join(modes)}, got "
                f"{image.mode}. Is it another kind of label?"
            )
        return np.array(image if to is None else image.convert(to))


def read_mat(path: Path, *names: str) -> dict[str, object]:
    """Variables of a MATLAB file (version 5 or 7); structures as objects, ones squeezed.

    Raises:
        DataError: missing, damaged, or without one of ``names``.
    """
    with reading(path):
        from scipy.io import loadmat

        found = loadmat(str(path), squeeze_me=True, struct_as_record=False)
    for name in names:
        if name not in found:
            present = sorted(key for key in found if not key.startswith("__"))
            raise DataError(f"{path} must hold the variable {name!r}, got {present}.")
    return found


def field(path: Path, structure: object, name: str) -> np.ndarray:
    """One field of a MATLAB structure, as an array.

    Raises:
        DataError: it is not there.
    """
    if not hasattr(structure, name):
        present = getattr(structure, "_fieldnames", [])
        raise DataError(f"{path} must hold the field {name!r}, got {present}.")
    return np.asarray(getattr(structure, name))


def read_json(path: Path) -> object:
    """The content of a JSON file.

    Raises:
        DataError: missing or damaged.
    """
    with reading(path):
        return json.loads(path.read_text())


def number(path: Path, content: object, *keys: str) -> float:
    """A number in nested dictionaries.

    Raises:
        DataError: it is not there.
    """
    for key in keys:
        if not isinstance(content, Mapping) or key not in content:
            raise DataError(f"{path} must hold {'.'.join(keys)}.")
        content = content[key]
    if not isinstance(content, int | float):
        raise DataError(f"{path}: {'.'.join(keys)} must be a number, got {content!r}.")
    return float(content)
