"""The examples run, those of README.md too."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from cuda_backend import open_backend
from foreign import make_importable
from no_waiting import NoWaiting
from torch import Tensor

import perfconv
from perfconv.train import shipped_model

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
ARGUMENTS = {"stream_frames": ("--frames", "4", "--every", "2")}
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(
    path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path), *ARGUMENTS.get(path.stem, ())])
    if "torchvision" in path.read_text():
        make_importable("torchvision")
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme(number: int) -> None:
    if "torchvision" in BLOCKS[number]:
        make_importable("torchvision")
    exec(compile(BLOCKS[number], f"README.md, example {number + 1}", "exec"), {})


STREAM = ROOT / "examples" / "stream_frames.py"


def stream(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(STREAM), *map(str, arguments)])
    runpy.run_path(str(STREAM), run_name="__main__")


def save_frames(folder: Path, *sizes: tuple[int, int]) -> None:
    """Noise, (width, height)."""
    images = pytest.importorskip("PIL.Image")
    for number, size in enumerate(sizes):
        images.effect_noise(size, 90).convert("RGB").save(folder / f"{number}.png")


def check_stream(printed: str, count: int) -> None:
    assert printed.startswith(f"{count} frames of 64x96")
    lines = {line.split(":")[0]: line for line in printed.splitlines()}
    for kind in ("gated", "gated, labels only", "dense, labels only"):
        ranks = [float(value) for value in re.findall(r"p\d+ ([\d.]+)", lines[kind])]
        assert len(ranks) == 3
        assert ranks == sorted(ranks)
        assert "frames/s" in lines[kind]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_stream_of_files(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures of every second frame, percentiles in order, gates that follow the frames."""
    if device == "cuda":
        open_backend("cuda")
    save_frames(tmp_path, *[(96, 64)] * 3)
    out = tmp_path / "out"
    stream(monkeypatch, tmp_path, "--device", device, "--every", 2, "--output", out)
    assert sorted(path.name for path in out.iterdir()) == ["0.png", "2.png"]
    printed = capsys.readouterr().out
    check_stream(printed, 3)
    assert float(re.search(r"mean density ([\d.]+)", printed)[1]) < 1


def test_stream_refuses_frames_of_two_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_frames(tmp_path, (96, 64), (64, 96))
    with pytest.raises(SystemExit, match=r"shape of its example, \(1, 3, 64, 96\), got"):
        stream(monkeypatch, tmp_path, "--every", 0)


def test_stream_waits_for_no_device() -> None:
    """Labels, ponder map and density of a frame, as a CUDA graph needs them; they are viz's."""
    model = shipped_model().model
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    see = runpy.run_path(str(STREAM))["watched"](model)
    with torch.no_grad():
        wanted = model(image)["segmentation"].argmax(1)
        with NoWaiting():
            seen = see(image)
    ponder: Tensor = perfconv.viz.ponder_map(model, image)
    assert torch.equal(seen.labels, wanted)
    assert torch.equal(seen.ponder, ponder)
    assert 0 < ponder.mean() < len(perfconv.gates(model))
