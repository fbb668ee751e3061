"""perfconv predict: what is written and said, inputs and networks, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("PIL", reason="Pillow is not installed")
pytest.importorskip("scipy", reason="SciPy is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("safetensors", reason="safetensors is not installed")

import safetensors.torch
import small_datasets
from PIL import Image
from real_samples import sample_folder

from perfconv.cli import main
from perfconv.cli.predict.inputs import InputError, find_inputs
from perfconv.cli.predict.network import NetworkError, Predictor, open_network
from perfconv.cli.predict.pictures import loop_pictures, shown
from perfconv.data import Sample
from perfconv.train import build_network, write_checkpoint

TRUNK = {"block": "bottleneck", "depths": [1, 1, 1, 2], "width": 4, "output_stride": 8}
TASKS = ["segmentation", "log_depth", "normals", "boundary"]
PAG = {"classes": 40, "tasks": TASKS, "trunk": TRUNK}
RECURRENT = {"classes": 40, "loops": 1, "trunk": {**TRUNK, "res6_channels": 8}}
TRUE_DEPTH = {"classes": 40, "weighting": "true_depth", "trunk": {**TRUNK, "res6_channels": 8}}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.jpg"):
        pixels = np.random.default_rng(0).integers(0, 255, (68, 76, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def weights(folder: Path, name: str, arguments: dict) -> Path:
    torch.manual_seed(0)
    path = folder / f"{name}.safetensors"
    safetensors.torch.save_file(build_network(name, arguments).state_dict(), path)
    return path


def options(folder: Path, name: str, arguments: dict) -> list[str]:
    path = weights(folder, name, arguments)
    return ["--network", name, "--weights", str(path), "--arguments", json.dumps(arguments)]


def written(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- end to end ----------------------------------------------------------------------------------


def test_pictures_of_every_task(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a good photo beside one that cannot be read, which is named; the rest goes on."""
    (photos / "c.png").write_text("no image")
    output = tmp_path / "out"
    command = ["predict", str(photos / "c.png"), str(photos / "a.png"), "--arrays"]
    command += options(tmp_path, "pag_resnet50", PAG)
    assert main([*command, "--output", str(output), "--names", "nyuv2"]) == 1
    pictures = [f"a-{task}.png" for task in ("boundary", "depth", "gates", "normals")]
    assert written(output) == [*pictures, "a-segmentation.png", "a.npz"]
    assert all((output / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    arrays = np.load(output / "a.npz")
    assert {name: values.shape for name, values in arrays.items()} == {
        "labels": (68, 76), "depth_m": (1, 68, 76), "normals": (3, 68, 76), "boundary": (1, 68, 76),
    }  # fmt: skip
    assert arrays["labels"].min() >= 0
    assert arrays["labels"].max() < 40
    said = capsys.readouterr()
    assert "[2/2] a-segmentation.png, a-depth.png" in said.out
    assert "[1/2] c: " in said.err
    assert "is not an image that Pillow can read" in said.err
    assert "1 of 2 images could not be predicted" in said.err


def test_the_network_that_ships(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a photo without any option, and of scenes without any file."""
    output = tmp_path / "out"
    Image.new("RGB", (400, 300), "teal").save(photos / "large.png")
    assert main(["predict", str(photos / "large.png"), "--output", str(output)]) == 0
    kinds = ("boundary", "depth", "gates", "segmentation")
    assert written(output) == [f"large-{kind}.png" for kind in kinds]
    said = capsys.readouterr().out
    assert "made-up scenes only, and knows\nnothing of photos" in said
    assert "Scaled from 400 x 300 to 192 x 144 pixels." in said
    command = ["predict", "--dataset", "scenes", "--limit", "1", "--output", str(output)]
    assert main([*command, "--arrays"]) == 0
    scene = find_inputs([], dataset="scenes", limit=1)[0].read().sample
    labels = torch.from_numpy(np.load(output / "scene-0.npz")["labels"].astype(np.int64))
    assert (labels == scene.labels).float().mean() > 0.5


def test_samples_of_a_data_set_with_loops(tmp_path: Path) -> None:
    small_datasets.write_nyuv2_listed(tmp_path)
    torch.manual_seed(0)
    network = build_network("recurrent_depth_resnet50", RECURRENT)
    config = {
        "model": {"name": "recurrent_depth_resnet50", "arguments": RECURRENT},
        "tasks": ["segmentation", "log_depth"],
    }
    write_checkpoint(tmp_path / "run" / "last.pt", config=config, model=network.state_dict())
    output = tmp_path / "out"
    command = ["predict", str(tmp_path), "--dataset", "nyuv2", "--limit", "1"]
    command += ["--checkpoint", str(tmp_path / "run"), "--flip", "--output", str(output)]
    assert main(command) == 0
    assert written(output) == ["5001-depth.png", "5001-loops.png", "5001-segmentation.png"]


def test_normals_of_nyuv2_have_a_ground_truth() -> None:
    """Which its files do not hold."""
    folder = str(sample_folder("nyuv2"))
    (found,) = find_inputs([folder], dataset="nyuv2", split="test", names=["5017"])
    sample = found.read().sample
    assert sample.normals is not None
    assert sample.normals_valid.float().mean() > 0.5


# ---- inputs --------------------------------------------------------------------------------------


def test_files_folders_and_patterns(photos: Path) -> None:
    """Each image once, in order; equal names are told apart."""
    Image.new("RGB", (70, 70)).save(photos / "a.bmp")
    (photos / "notes.txt").write_text("not an image, and not asked for")
    inputs = find_inputs([str(photos / "b.jpg"), str(photos), str(photos / "*.png")])
    assert [input.name for input in inputs] == ["b", "a-bmp", "a-png"]
    sample, notes = inputs[0].read()
    assert sample.size == (68, 76)
    assert not notes
    scaled = find_inputs([str(photos / "b.jpg")], max_side=72)[0].read()
    assert max(scaled.sample.size) == 72
    assert "Scaled from 76 x 68" in scaled.notes[0]
    assert [i.name for i in find_inputs([str(photos)], limit=2)] == ["a-bmp", "a-png"]


def test_sources_without_images(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder .* must hold images \(.bmp, .* got none"):
        find_inputs([str(tmp_path)])
    with pytest.raises(InputError, match="pattern .* must match a file, got none"):
        find_inputs([str(tmp_path / "*.png")])
    with pytest.raises(InputError, match=r"there is no file .*x\.png"):
        find_inputs([str(tmp_path / "x.png")])[0].read()
    with pytest.raises(InputError, match="--dataset must have one SOURCE"):
        find_inputs(["a", "b"], dataset="nyuv2")
    with pytest.raises(InputError, match="NYUv2: .* must hold nyu_depth_v2_labeled.mat"):
        find_inputs([str(tmp_path)], dataset="nyuv2", split="test")
    with pytest.raises(InputError, match="name an image, a folder or a pattern; or take"):
        find_inputs([])
    with pytest.raises(InputError, match="must have one SOURCE, the folder of the data set, got 0"):
        find_inputs([], dataset="nyuv2", split="test")
    with pytest.raises(InputError, match="leave SOURCE and --samples out, .* got photos"):
        find_inputs(["photos"], dataset="scenes")
    small_datasets.write_nyuv2_listed(tmp_path)
    names = [i.name for i in find_inputs([str(tmp_path)], dataset="nyuv2", names=["5002"])]
    assert names == ["5002"]
    with pytest.raises(InputError, match="names of the test split, such as 5001, .* got '1'"):
        find_inputs([str(tmp_path)], dataset="nyuv2", names=["1"])
    (tmp_path / "5001.mat").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"5001\.mat is damaged"):
        find_inputs([str(tmp_path)], dataset="nyuv2", split="test")[0].read()


# ---- networks ------------------------------------------------------------------------------------


def test_refused_networks(tmp_path: Path) -> None:
    path = weights(tmp_path, "pag_resnet50", PAG)
    nothing = "give either --checkpoint, or --network and --weights, got"
    with pytest.raises(NetworkError, match=f"{nothing} --network"):
        open_network(None, "pag_resnet50", None, PAG)
    with pytest.raises(NetworkError, match=f"{nothing} --checkpoint and --network"):
        open_network(path, "pag_resnet50", path, PAG)
    with pytest.raises(NetworkError, match="there is no file"):
        open_network(tmp_path / "none.pt", None, None, {})
    with pytest.raises(NetworkError, match=r"must hold model\.pt or last\.pt, got neither"):
        open_network(tmp_path, None, None, {})
    with pytest.raises(NetworkError, match="A state dict alone needs its network"):
        open_network(path, None, None, {})
    with pytest.raises(NetworkError, match="name must be one of"):
        open_network(None, "resnet", path, {})
    with pytest.raises(NetworkError, match="state dict must fit"):
        open_network(None, "baseline_resnet50", path, PAG)
    with pytest.raises(NetworkError, match="the 12 classes of stanford2d3d, got 40"):
        open_network(None, "pag_resnet50", path, PAG, "stanford2d3d")
    with pytest.raises(NetworkError, match="the 20 classes of scenes, got 40"):
        open_network(None, "pag_resnet50", path, PAG, "scenes")


def test_names_and_colours_of_classes(tmp_path: Path) -> None:
    path = weights(tmp_path, "pag_resnet50", PAG)
    plain = open_network(None, "pag_resnet50", path, PAG).classes
    assert plain.names[39] == "class 39"
    assert open_network(None, "pag_resnet50", path, PAG, "nyuv2").classes.names[0] == "wall"
    config = {"model": {"name": "pag_resnet50", "arguments": PAG}, "tasks": TASKS,
              "classes": [f"thing {number}" for number in range(40)]}  # fmt: skip
    state = safetensors.torch.load_file(path)
    write_checkpoint(tmp_path / "model.pt", config=config, model=state)
    assert open_network(tmp_path, None, None, {}).classes.names[2] == "thing 2"


def test_refused_runs(tmp_path: Path) -> None:
    path = weights(tmp_path, "depth_aware_resnet50", TRUE_DEPTH)
    network = open_network(None, "depth_aware_resnet50", path, TRUE_DEPTH)
    sample = Sample(torch.rand(3, 64, 72))
    with pytest.raises(NetworkError, match="pools by true depth, and the image has none"):
        Predictor(network)(sample)
    with pytest.raises(NetworkError, match="must see the image as it is, got --flip or --scales"):
        Predictor(network, flip=True)
    with pytest.raises(NetworkError, match="--scales must be above 0"):
        Predictor(network, scales=(0.0,))
    with pytest.raises(NetworkError, match="--device must be one that torch can use"):
        Predictor(network, device="abacus")
    with torch.no_grad():
        network.model.classifier.bias[0] = torch.nan
    sample = Sample(torch.rand(3, 64, 72), depth_m=torch.rand(1, 64, 72) + 1)
    with pytest.raises(NetworkError, match="segmentation must be finite"):
        Predictor(network)(sample)


def test_what_is_shown_is_the_merged_prediction(tmp_path: Path) -> None:
    """Labels of merged runs; pictures of gates and loops of the image as it is."""
    path = weights(tmp_path, "recurrent_depth_resnet50", RECURRENT)
    network = open_network(None, "recurrent_depth_resnet50", path, RECURRENT)
    assert network.tasks == ("segmentation", "log_depth")
    sample = Sample(torch.rand(3, 64, 72), depth_m=torch.rand(1, 64, 72) + 1)
    once, twice = (
        Predictor(network)(sample),
        Predictor(network, flip=True, scales=(1.0, 0.75))(sample),
    )
    with torch.no_grad():
        stages = network.model(sample.image[None])
    torch.testing.assert_close(once.maps["segmentation"], stages[-1].segmentation[0].softmax(0))
    assert not torch.equal(once.maps["segmentation"], twice.maps["segmentation"])
    for prediction in (once, twice):
        rows = loop_pictures(prediction, sample)
        assert [row.name for row in rows] == ["ground truth", "feed-forward", "loop 1"]
        assert torch.equal(rows[2].labels, stages[1].segmentation[0].argmax(0))
        assert rows[1].pooling.shape == (8, 9)
        assert torch.equal(shown(prediction)["log_depth"], prediction.maps["log_depth"].exp())


def test_arguments_that_are_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["predict", "a.png", "--network", "pag_resnet50", "--arguments", "classes=3"])
    assert "must be JSON" in capsys.readouterr().err


def test_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("perfconv predict: the folder")
