"""``perfconv data verify``: reports, contact sheets and exit codes."""

from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="Pillow is not installed")
pytest.importorskip("h5py", reason="h5py is not installed")
pytest.importorskip("scipy", reason="SciPy is not installed")

import small_datasets
from PIL import Image
from real_samples import sample_folder

from perfconv.cli import main

NAMES = tuple(f"aachen_00000{number}_000019" for number in range(3))


def test_all_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_datasets.write_cityscapes(tmp_path, NAMES)
    sheet = tmp_path / "sheet.png"
    root = str(tmp_path)
    assert (
        main(["data", "verify", "cityscapes", root, "--split", "train", "--sheet", str(sheet)]) == 0
    )
    output = capsys.readouterr().out
    assert "train: 3 images, 3 read" in output
    assert "the complete data set has 2975" in output
    assert "sizes: 12 x 16" in output
    assert "OK: every sample can be used" in output
    with Image.open(tmp_path / "sheet-train.png") as image:
        assert image.size == (3 * 160, 3 * 120)  # image, labels, depth; three samples
        assert len(image.getcolors(10**6)) > 50


def test_wrong_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_datasets.write_cityscapes(tmp_path, NAMES)
    damaged = tmp_path / f"disparity/train/aachen/{NAMES[1]}_disparity.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    assert main(["data", "verify", "cityscapes", str(tmp_path), "--split", "train"]) == 1
    output = capsys.readouterr().out
    assert f"WRONG: {damaged} is damaged" in output
    assert "WRONG: 1 problems" in output


def test_values_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    small_datasets.write_sunrgbd(tmp_path)
    zeros = np.zeros(small_datasets.SIZE, np.uint8)
    small_datasets.save(tmp_path / "label37/train/img-000001.png", zeros)
    small_datasets.save(tmp_path / "depth/train/img-000001.png", zeros.astype(np.uint16))
    assert main(["data", "verify", "sunrgbd", str(tmp_path), "--split", "train"]) == 1
    output = capsys.readouterr().out
    assert "sample img-000001: no pixel is labelled." in output
    assert "sample img-000001: no pixel has depth." in output


def test_every_split_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_datasets.write_bsds500(tmp_path)
    assert main(["data", "verify", "bsds500", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "train: 1 images" in output
    assert f"val: BSDS500: {tmp_path} holds no image of this split" in output
    assert main(["data", "verify", "bsds500", str(tmp_path), "--split", "all"]) == 2
    assert "split must be one of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [("--limit", "0"), ("--limit", "-2"), ("--sheet", "sheet"), ("--sheet", "absent/sheet.png")],
    ids=" ".join,
)
def test_options_are_checked_before_reading(
    option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as found:
        main(["data", "verify", "bsds500", "nowhere", *option])
    assert found.value.code == 2
    assert f"argument {option[0]}: must be" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["stanford2d3d", "bsds500"])
def test_real_samples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "verify", name, str(sample_folder(name)), "--split", "test"]) == 0
    assert "OK" in capsys.readouterr().out
