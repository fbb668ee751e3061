"""load_photo: every pixel format, and a clear refusal of what cannot be used."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

from perfconv.data.image import ImageError, load_photo  # noqa: E402

SHAPE = (70, 90)  # height, width


def gradient(top: int = 255) -> np.ndarray:
    return np.linspace(0, top, SHAPE[0] * SHAPE[1]).reshape(SHAPE)


def save(path: Path, image: "Image.Image", **options: object) -> Path:
    image.save(path, **options)
    return path


def rgb_image() -> "Image.Image":
    grey = gradient().astype(np.uint8)
    return Image.fromarray(np.stack([grey, grey.T.reshape(SHAPE), 255 - grey], 2))


def test_rgb_values_and_layout(tmp_path: Path) -> None:
    image = rgb_image()
    photo = load_photo(save(tmp_path / "a.png", image))
    assert photo.size == photo.file_size == SHAPE
    assert photo.name == "a.png"
    assert photo.notes == ()
    assert photo.pixels.dtype == torch.float32
    assert photo.pixels.is_contiguous(memory_format=torch.channels_last)
    expected = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
    assert torch.equal(photo.pixels, expected)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "LAB"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    lab = Image.new("LAB", SHAPE[::-1], (120, 128, 128))  # Pillow converts from it, not to it
    image = lab if mode == "LAB" else rgb_image().convert(mode)
    name = "a.png" if mode in ("L", "1", "P") else "a.tif"
    photo = load_photo(save(tmp_path / name, image))
    assert photo.pixels.shape == (1, 3, *SHAPE)
    assert 0 <= photo.pixels.min() <= photo.pixels.max() <= 1
    if mode == "L":
        assert torch.equal(photo.pixels[:, 0], photo.pixels[:, 2])


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white(tmp_path: Path, mode: str) -> None:
    image = rgb_image().convert("RGBA")
    alpha = np.full(SHAPE, 255, np.uint8)
    alpha[:10] = 0
    image.putalpha(Image.fromarray(alpha))
    if mode == "LA":
        image = image.convert("LA")
    elif mode == "P":
        image = image.quantize(16)
    photo = load_photo(save(tmp_path / "a.png", image))
    assert (photo.pixels[:, :, :10] == 1).all()
    assert photo.pixels[:, :, 12:].min() < 0.9
    assert "Transparent pixels put on white." in photo.notes


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(gradient(65535).astype(np.uint16))
    photo = load_photo(save(tmp_path / f"a.{suffix}", image))
    expected = torch.from_numpy(gradient()).float() / 255
    assert (photo.pixels[0, 1] - expected).abs().max() <= 1.01 / 255
    assert "16-bit grey, reduced to 8 bits." in photo.notes


def test_camera_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    photo = load_photo(save(tmp_path / "a.jpg", rgb_image(), exif=exif))
    assert photo.size == SHAPE[::-1]


def test_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (80, 80), colour) for colour in ("red", "blue")]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    photo = load_photo(path)
    assert (photo.pixels[0, 0] == 1).all()
    assert photo.notes == ("First of 2 frames.",)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_large_photo_is_scaled(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.new("RGB", (3000, 1500), (10, 200, 30)))
    photo = load_photo(path, max_side=200)
    assert photo.size == (100, 200)
    assert photo.file_size == (1500, 3000)
    assert photo.notes == ("Scaled from 3000 x 1500 to 200 x 100 pixels.",)
    assert (photo.pixels[0, 1] - 200 / 255).abs().max() < 0.02


def png_header(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


def bad_file(kind: str, folder: Path) -> Path:
    path = folder / "bad.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "text":
        path.write_text("no image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
        save(path, Image.fromarray(noise))
        path.write_bytes(path.read_bytes()[:20000])
    elif kind == "tiny":
        save(path, Image.new("RGB", (63, 500)))
    elif kind == "strip":
        save(path, Image.new("RGB", (5000, 70)))
    elif kind == "huge":
        path.write_bytes(png_header(20_000, 6_000))
    elif kind == "bomb":
        path.write_bytes(png_header(60_000, 60_000))
    elif kind == "float":
        path = save(folder / "bad.tif", Image.fromarray(gradient().astype(np.float32)))
    elif kind == "32-bit":
        path = save(folder / "bad.tif", Image.fromarray((gradient() * 10**6).astype(np.int32)))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "there is no file .*bad.png"),
        ("folder", "is a folder"),
        ("text", "not an image that Pillow can read"),
        ("empty", "not an image that Pillow can read"),
        ("truncated", "damaged or incomplete"),
        ("tiny", "63 x 500 pixels; each side must have at least 64"),
        ("strip", "scaled to 640 pixels is 640 x 9 pixels"),
        ("huge", "more than 100 megapixels"),
        ("bomb", "more than 100 megapixels"),
        ("float", "floating-point pixels"),
        ("32-bit", "32-bit pixels"),
    ],
)
def test_refusals(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_photo(bad_file(kind, tmp_path))


def test_max_side_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_side must be at least 64, got 63"):
        load_photo(tmp_path / "a.png", max_side=63)
