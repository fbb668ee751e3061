"""Checkpoints: whole or not at all, tensors only, and a model that comes back as it was."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from perfconv.train import (
    Loaded,
    build_network,
    load_model,
    read_checkpoint,
    shipped_model,
    write_checkpoint,
    write_model,
)
from perfconv.train.checkpoint import CheckpointError
from perfconv.train.datasets import open_split
from perfconv.train.evaluation import evaluate
from perfconv.train.networks import tasks_of
from perfconv.train.recipes import RECIPES
from perfconv.train.shipped import RECIPE, SHIPPED

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


def test_a_model_file(tmp_path: Path) -> None:
    """Config and weights, matrices in float16; the same bytes each time."""
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    model, path = make_model(), tmp_path / "new" / "model.safetensors"
    write_model(path, Loaded(model, CONFIG))
    before = path.read_bytes()
    loaded = load_model(path)
    assert loaded.config == CONFIG
    for name, value in model.state_dict().items():
        stored = value.half().float() if value.dim() > 1 else value
        assert torch.equal(loaded.model.state_dict()[name], stored), name
    write_model(path, loaded)
    assert path.read_bytes() == before
    path.write_bytes(before[:-100])
    with pytest.raises(CheckpointError, match="must be a safetensors file, got one that cannot be"):
        load_model(path)
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"write_model: path must end in .safetensors, .*model.pt"):
        write_model(tmp_path / "model.pt", loaded)


def test_the_model_that_ships() -> None:
    """It is what its recipe says now, small, and scores what its file says."""
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    assert SHIPPED.stat().st_size < 600_000
    loaded = shipped_model()
    recipe = RECIPES[RECIPE]
    assert loaded.config["recipe"] == recipe.to_dict(), "run tools/train_shipped_model.py"
    assert loaded.tasks == recipe.tasks == tasks_of(loaded.model)
    samples = open_split(replace(recipe.data, limit=20), None, is_training=False)
    found, stated = evaluate(loaded.model, samples, loaded.tasks, thresholds=2), loaded.config
    for task, score in (("segmentation", "pixel_accuracy"), ("log_depth", "rmse_log")):
        wanted = stated["results"][task][score]
        assert found[task][score] == pytest.approx(wanted, abs=0.1), task
    densities = found["density"].values()
    assert all(0.05 < density <= 1 for density in densities)
    assert sum(densities) / len(densities) < 0.85


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
