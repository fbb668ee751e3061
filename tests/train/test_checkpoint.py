"""Checkpoints: whole or not at all, tensors only, and a model that comes back as it was."""

import errno
import os
from pathlib import Path

import pytest
import torch

from perfconv.train import build_network, load_model, read_checkpoint, write_checkpoint
from perfconv.train.checkpoint import CheckpointError

TRUNK = {"block": "bottleneck", "depths": [1, 1, 1, 2], "width": 4, "output_stride": 8}
MODEL = {"name": "pag_resnet50", "arguments": {"classes": 5, "trunk": TRUNK}}
CONFIG = {"model": MODEL, "tasks": ["segmentation"], "classes": ["a", "b", "c", "d", "e"]}


def make_model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_network(MODEL["name"], MODEL["arguments"]).eval()


def test_a_model_comes_back(tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "new" / "model.pt"
    write_checkpoint(path, config=CONFIG, model=model.state_dict())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    loaded = load_model(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.config == CONFIG
    assert loaded.tasks == ("segmentation",)
    assert not loaded.model.training
    image = torch.rand(1, 3, 32, 40)
    with torch.no_grad():
        wanted, got = model(image)["segmentation"], loaded.model(image)["segmentation"]
    assert torch.equal(wanted, got)
    assert os.listdir(path.parent) == ["model.pt"]


def test_averages_are_preferred(tmp_path: Path) -> None:
    model, path = make_model(), tmp_path / "model.pt"
    averages = {name: value + 1 for name, value in model.named_parameters()}
    write_checkpoint(path, config=CONFIG, model=model.state_dict(), ema=averages)
    for name, value in load_model(path).model.named_parameters():
        assert torch.equal(value, averages[name])


def fail(error: int) -> object:
    def raising(*args: object) -> None:
        raise OSError(error, os.strerror(error))

    return raising


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pt"
    write_checkpoint(path, config=CONFIG, model=make_model(0).state_dict())
    before = path.read_bytes()
    monkeypatch.setattr(os, step, fail(errno.ENOSPC))
    with pytest.raises(CheckpointError, match=r"No space left on device\. The file that was there"):
        write_checkpoint(path, config=CONFIG, model=make_model(1).state_dict())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["model.pt"]


def test_a_rest_of_a_killed_process_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    (tmp_path / "model.pt.writing").write_bytes(b"half a file")
    write_checkpoint(path, config=CONFIG, model=make_model().state_dict())
    assert os.listdir(tmp_path) == ["model.pt"]
    load_model(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    with pytest.raises(FileNotFoundError):
        read_checkpoint(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"must be a checkpoint of perfconv train"):
        read_checkpoint(path)
    torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"must be of format .* got None"):
        read_checkpoint(path)
    write_checkpoint(path, config=CONFIG, model={"weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"must hold the weights of pag_resnet50"):
        load_model(path)
    with pytest.raises(TypeError):
        write_checkpoint(path, config={"a": torch.zeros(1)}, model={})
