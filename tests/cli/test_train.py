"""``perfconv train`` and ``perfconv evaluate``: recipes, runs, results, and real samples."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("PIL", reason="Pillow is not installed")
pytest.importorskip("h5py", reason="h5py is not installed")
pytest.importorskip("scipy", reason="SciPy is not installed")

import small_datasets
import train_runs
from real_samples import sample_folder

from perfconv.cli import main
from perfconv.data import PerspectiveScenes
from perfconv.train import build_network, load_model
from perfconv.train.distributed import Process
from perfconv.train.evaluation import evaluate


def test_names_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--list"]) == 0
    output = capsys.readouterr().out
    assert "scenes-predicted-depth " in output
    assert "nyuv2-pag-0.7 " in output
    assert main(["train", "--config", "nyuv2-pag-0.7", "--show", "--set", "seed=5"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["seed"] == 5
    assert "not run here" in shown["expected"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --config NAME"),
        (["--config", "scenes-averag"], "got 'scenes-averag'. Did you mean scenes-average"),
        (["--config", "scenes-average", "--device", "abacus"], "--device must be cpu, cuda or"),
        (["--config", "nyuv2-pag-0.7"], "pretrained weights of resnet50: name their file"),
        (["--config", "absent.json"], "absent.json cannot be read"),
        (["--config", "scenes-average", "--set", "seed"], "must be key=value"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_data_set_needs_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--config", "nyuv2-segmentation-baseline", "--weights", "none"]
    assert main([*command, "--output", str(tmp_path)]) == 1
    assert "name their folder with --data" in capsys.readouterr().err
    assert main([*command, "--output", str(tmp_path), "--data", str(tmp_path)]) == 1
    assert "must hold nyu_depth_v2_labeled.mat" in capsys.readouterr().err


def test_train_then_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(train_runs.staged().to_dict()))
    command = ["train", "--config", str(recipe), "--output", str(run), "--set", "pictures=2"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert f"model: {run / 'model.pt'}" in output
    assert {"model.pt", "results.json", "log.jsonl", "samples.png"} <= {
        p.name for p in run.iterdir()
    }
    trained = json.loads((run / "results.json").read_text())

    pictures = tmp_path / "pictures"
    command = ["evaluate", str(run / "model.pt"), "--pictures", str(pictures)]
    assert main(command) == 0
    assert f"results: {run / 'model-results.json'}" in capsys.readouterr().out
    found = json.loads((run / "model-results.json").read_text())
    assert found["results"] == trained
    assert found["model"]["name"] == "pag_resnet50"
    assert (pictures / "samples.png").exists()

    photo = tmp_path / "photo.png"
    small_datasets.save(photo, small_datasets.colours(1, (64, 72)))
    command = ["predict", str(photo), "--checkpoint", str(run), "--output", str(pictures)]
    assert main(command) == 0
    assert len(list(pictures.glob("photo*.png"))) >= 1

    assert main(["evaluate", str(run), "--scales", "0.5", "1", "--limit", "1"]) == 0
    assert json.loads((run / "model-results.json").read_text())["results"]["images"] == 1
    assert main(["evaluate", str(tmp_path / "absent.pt")]) == 1
    assert "No such file" in capsys.readouterr().err
    assert main(["evaluate", str(run / "model.pt"), "--dataset", "nyuv2"]) == 1
    assert "needs its files" in capsys.readouterr().err
    assert main(["evaluate", str(tmp_path)]) == 1
    assert "must hold model.pt or last.pt, got neither" in capsys.readouterr().err


def test_the_network_that_ships_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--limit", "1", "--thresholds", "2"]) == 0
    found = json.loads((tmp_path / "scenes_parser-results.json").read_text())
    assert found["checkpoint"] == "scenes_parser.safetensors"
    assert found["results"]["segmentation"]["pixel_accuracy"] > 0.5


def test_every_task_has_its_scores(tmp_path: Path) -> None:
    recipe = train_runs.recipe(
        {
            "name": "all",
            "steps": 1,
            "model": train_runs.network(
                "baseline_resnet50", tasks=["segmentation", "log_depth", "normals", "boundary"]
            ),
            "frozen_statistics": True,
        },
        tasks=["segmentation", "log_depth", "normals", "boundary"],
    )
    results = train_runs.run(recipe, tmp_path).results
    assert set(results["segmentation"]) >= {"mean_iou", "pixel_accuracy", "class_iou"}
    assert len(results["log_depth"]["delta"]) == 3
    assert len(results["normals"]["within"]) == 3
    assert 0 <= results["boundary"]["ods"] <= 1
    json.dumps(results, allow_nan=False)


def test_every_process_needs_an_image() -> None:
    network = train_runs.network("baseline_resnet50")
    model = build_network(network["name"], network["arguments"])
    process = Process(0, 4, torch.device("cpu"))
    with pytest.raises(ValueError, match="an image for each process, got 3 for 4"):
        evaluate(model, PerspectiveScenes(3, size=(24, 32)), ["segmentation"], process=process)


def test_cityscapes_has_instance_scores(tmp_path: Path) -> None:
    names = tuple(f"aachen_00000{number}_000019" for number in range(2))
    small_datasets.write_cityscapes(tmp_path / "data", names)
    small_datasets.write_cityscapes(tmp_path / "val", names)
    for folder in ("leftImg8bit", "gtFine", "disparity", "camera"):
        (tmp_path / f"val/{folder}/train").rename(tmp_path / f"data/{folder}/val")
    trunk = json.dumps(train_runs.TRUNK)
    options = ["--set", f"stages.0.model.arguments.trunk={trunk}", "--set", "stages.0.steps=1"]
    options += ["--set", "data.crop_size=[12, 16]", "--data", str(tmp_path / "data")]
    options += ["--weights", "none", "--output", str(tmp_path / "run")]
    command = ["train", "--config", "cityscapes-segmentation-baseline", *options]
    assert main(command) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["images"] == 2
    assert "mean_iiou" in results["instances"]


def test_damaged_files_are_named_or_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_datasets.write_sunrgbd(tmp_path / "data")
    images = sorted((tmp_path / "data/image/train").iterdir())
    damaged = images[0]
    damaged.write_bytes(damaged.read_bytes()[:40])
    second = damaged.with_name("img-000009.jpg")
    small_datasets.save(second, small_datasets.colours(2))
    for folder in ("label37", "depth"):
        source = tmp_path / f"data/{folder}/train/{damaged.stem}.png"
        (source.parent / "img-000009.png").write_bytes(source.read_bytes())
    recipe = train_runs.unmixed(steps=1).to_dict()
    recipe["data"] = {"name": "sunrgbd", "test_split": "train", "augmentation": {"scale_share": 0}}
    recipe["data"]["augmentation"]["rotate_share"] = 0
    recipe["stages"][0]["model"]["arguments"]["classes"] = 37
    config = tmp_path / "recipe.json"
    config.write_text(json.dumps(recipe))
    command = ["train", "--config", str(config), "--data", str(tmp_path / "data")]
    command += ["--output", str(tmp_path / "run")]
    assert main(command) == 1
    assert f"{damaged} is damaged" in capsys.readouterr().err
    assert main([*command, "--set", "data.skip_damaged=true", "--set", "seed=2"]) == 0
    assert f"left out: {damaged} is damaged" in capsys.readouterr().err
    assert json.loads((tmp_path / "run/results.json").read_text())["images"] == len(images)


# Data set: recipe, split of the samples, and what there must be afterwards.
REAL = {
    "nyuv2": ("nyuv2-pag-0.7", ("segmentation", "mean_iou")),
    "stanford2d3d": ("stanford-normals-pag-0.7", ("normals", "mean_deg")),
    "bsds500": ("bsds500-pag-0.7", ("boundary", "ods")),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("stanford2d3d", "bsds500")]


@pytest.mark.parametrize("name", ["nyuv2", *SLOW])
def test_real_samples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of every stage, on a narrow trunk, and the scores of one real image."""
    folder = sample_folder(name)
    recipe, (task, score) = REAL[name]
    from perfconv.train.recipes import RECIPES

    content = RECIPES[recipe].to_dict()
    for stage in content["stages"]:
        stage["steps"] = 1
        stage["model"]["arguments"]["trunk"] = train_runs.TRUNK
    height, width = content["data"]["crop_size"]
    content["data"] |= {"limit": 1, "crop_size": [height // 4, width // 4]}
    content |= {"pictures": 1, "thresholds": 2}
    if name == "nyuv2":  # the two samples are of the test split
        content["data"]["train_split"] = "test"
        folder = listed(folder, tmp_path, monkeypatch)
    config = tmp_path / "recipe.json"
    config.write_text(json.dumps(content))
    run = tmp_path / "run"
    command = ["train", "--config", str(config), "--data", str(folder), "--weights", "none"]
    assert main([*command, "--output", str(run)]) == 0
    command = ["evaluate", str(run / "model.pt"), "--data", str(folder), "--thresholds", "2"]
    assert main(command) == 0
    results = json.loads((run / "model-results.json").read_text())["results"]
    assert results["images"] == 1
    assert 0 <= results[task][score] < 180
    assert len(results["density"]) == 4
    assert load_model(run / "model.pt").tasks == (task,)


def listed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose list names the samples that are there only."""
    from perfconv.data.nyuv2 import NYUv2

    there = [name for name in NYUv2(folder, "test").names if (folder / f"{name}.mat").exists()]
    assert there
    monkeypatch.setattr("perfconv.data.nyuv2._listed_names", lambda root, split: there)
    return folder


@pytest.mark.slow
def test_under_torchrun(tmp_path: Path) -> None:
    """Two gloo processes by the command itself; they end, and leave what one would."""
    config = tmp_path / "recipe.json"
    config.write_text(json.dumps(train_runs.unmixed().to_dict()))
    run = tmp_path / "run"
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    command = ["-m", "perfconv", "train", "--config", str(config), "--output", str(run)]
    done = subprocess.run(
        [*launch, *command, "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("model:") == 1
    train_runs.run(train_runs.unmixed(), tmp_path / "one")
    wanted = train_runs.weights(tmp_path / "one")
    for name, value in train_runs.weights(run).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-6)
    done = subprocess.run(
        [*launch, "-m", "perfconv", "evaluate", str(run / "model.pt"), "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((run / "model-results.json").read_text())["results"]
    assert results == json.loads((run / "results.json").read_text())
