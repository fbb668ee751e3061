"""Training runs: killed at any moment, divided among processes, out of disk, out of numbers."""

import errno
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import train_runs

from perfconv.train import load_model, read_checkpoint
from perfconv.train.config import with_overrides
from perfconv.train.loop import TrainingStopped


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Processes that start fast: forked from a server that has imported torch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_runs"])
    with pytest.MonkeyPatch.context() as patch:  # older Pythons' servers do not get our sys.path
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        forkserver.ensure_running()
    return context


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def total_steps(folder: Path) -> list[int]:
    return [line["total_step"] for line in train_runs.log(folder) if "loss" in line]


def logged(folder: Path) -> int:
    path = folder / "log.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "before the first checkpoint": lambda folder: logged(folder) >= 2,
    "while a checkpoint is written, if it is seen": (
        lambda folder: (folder / "last.pt.writing").exists() or logged(folder) >= 5
    ),
    "between two checkpoints": lambda folder: logged(folder) >= 6,
    "in the second stage": lambda folder: logged(folder) >= 9,
    "late in the second stage": lambda folder: logged(folder) >= 14,
}


def test_a_killed_run_ends_at_the_same_bits(
    tmp_path: Path, processes: multiprocessing.context.ForkServerContext
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_runs.run(train_runs.staged(), whole)
    for moment, has_come in MOMENTS.items():
        process = processes.Process(target=train_runs.run_staged, args=(str(killed),))
        process.start()
        while not has_come(killed) and process.is_alive():
            time.sleep(0.0005)
        process.kill()
        process.join()
        assert process.exitcode == -9, f"{moment}: the run was over before it could be killed"
    train_runs.run(train_runs.staged(), killed)
    assert_same(train_runs.weights(whole), train_runs.weights(killed))
    assert total_steps(killed) == total_steps(whole) == list(range(15))
    losses = [
        [line["loss"] for line in train_runs.log(f) if "loss" in line] for f in (whole, killed)
    ]
    assert losses[0] == losses[1]
    assert (whole / "results.json").read_bytes() == (killed / "results.json").read_bytes()


def test_two_processes_train_as_one(
    tmp_path: Path, processes: multiprocessing.context.ForkServerContext
) -> None:
    if not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    one = train_runs.run(train_runs.unmixed(), tmp_path / "one")
    train_runs.run(train_runs.unmixed(accumulate=4), tmp_path / "parts")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "two"
    folder.mkdir()
    ranks = [
        processes.Process(target=train_runs.run_on_rank, args=(rank, 2, port, str(folder)))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    wanted = train_runs.weights(tmp_path / "one")
    assert any(
        not torch.equal(value, wanted[name]) for name, value in initial(wanted, tmp_path).items()
    )
    for other in ("parts", "two"):
        for name, value in train_runs.weights(tmp_path / other).items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-6)
    results = [(folder / f"rank{rank}.json").read_text() for rank in range(2)]
    assert results[0] == results[1]
    shares = [line["loss"] for line in train_runs.log(folder) if "loss" in line]
    alone = [line["loss"] for line in train_runs.log(tmp_path / "one") if "loss" in line]
    assert shares == pytest.approx(alone, rel=1e-4)
    assert one.results["images"] == 3


def initial(like: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """Weights before training."""
    recipe = train_runs.unmixed(learning_rate=1e-30, weight_decay=0.0, steps=1)
    from perfconv.train.loop import _Run

    with train_runs.process_of("cpu") as process:
        run = _Run(recipe, folder / "initial", process, None, None, 0, False)
    return {name: value for name, value in run.network.state_dict().items() if name in like}


def test_a_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "full"
    recipe = train_runs.unmixed(steps=6)
    train_runs.run(recipe, whole)
    flush, calls = os.fsync, []

    def fsync(file: int) -> None:
        calls.append(file)
        if len(calls) == 5:  # two flushes a file: the log as it begins, two checkpoints
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(TrainingStopped, match=r"No space left on device.*last good checkpoint is"):
        train_runs.run(recipe, folder)
    saved = read_checkpoint(folder / "last.pt")["training"]
    assert (saved["stage"], saved["step"]) == (0, 4)
    assert sorted(os.listdir(folder)) == ["last.pt", "log.jsonl"]
    train_runs.run(recipe, folder)
    assert_same(train_runs.weights(whole), train_runs.weights(folder))


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    recipe = train_runs.unmixed(steps=40, learning_rate=1e9)
    with pytest.raises(TrainingStopped) as stopped:
        train_runs.run(recipe, tmp_path)
    message = str(stopped.value)
    assert "must have finite losses and gradients, got segmentation" in message
    assert "Lower the learning rate" in message
    if (tmp_path / "last.pt").exists():
        assert f"The last good checkpoint is {tmp_path / 'last.pt'}" in message
    else:
        assert "No checkpoint was written before it." in message
    assert not (tmp_path / "model.pt").exists()


def test_a_late_nan_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perfconv.train import loop

    losses_of = loop.task_losses
    calls = []

    def losses(*args: object) -> dict[str, torch.Tensor]:
        calls.append(args)
        found = losses_of(*args)
        return found if len(calls) < 6 else {name: loss * torch.nan for name, loss in found.items()}

    monkeypatch.setattr(loop, "task_losses", losses)
    with pytest.raises(TrainingStopped, match=r"got segmentation nan.*step 4 of stage 'base'"):
        train_runs.run(train_runs.unmixed(steps=8), tmp_path)
    saved = read_checkpoint(tmp_path / "last.pt")
    assert all(bool(value.isfinite().all()) for value in saved["model"].values())


WRONG = {
    'tasks=["normals"]': "among those of baseline_resnet50, segmentation; got normals",
    'stages.1.model.arguments.tasks=["normals"]': "pag_resnet50, normals; got segmentation",
    "stages.1.model.arguments.at=res9": "at must be a stage with a second bottleneck",
    "stages.1.model.arguments.classes=many": "pag_resnet50 got an argument of another type",
    "data.options.sizes=[24, 32]": "recipe: data.options does not fit: .*'sizes'",
    "data.options.noise=loud": "recipe: data.options does not fit",
    "data.augmentation.flip=1": "recipe: data.augmentation does not fit: .*'flip'",
    "data.augmentation.flip_share=2": "flip_share must be in its range",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_recipe_is_checked_before_its_first_step(override: str, tmp_path: Path) -> None:
    recipe = with_overrides(train_runs.staged(), [override])
    with pytest.raises(ValueError, match=WRONG[override]):
        train_runs.run(recipe, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_belongs_to_one_recipe(tmp_path: Path) -> None:
    recipe = train_runs.unmixed(steps=2)
    train_runs.run(recipe, tmp_path)
    other = with_overrides(recipe, ["stages.0.learning_rate=0.5", "seed=3"])
    with pytest.raises(ValueError, match=r"same recipe, got one with other seed, stages"):
        train_runs.run(other, tmp_path)
    (tmp_path / "last.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"last.pt must be a checkpoint.* Or remove it, and the"):
        train_runs.run(recipe, tmp_path)


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    recipe = train_runs.unmixed(steps=2)
    first = train_runs.run(recipe, tmp_path)
    before = (tmp_path / "model.pt").stat().st_mtime_ns, (tmp_path / "log.jsonl").read_bytes()
    again = train_runs.run(recipe, tmp_path)
    assert again.results == first.results
    assert (
        (tmp_path / "model.pt").stat().st_mtime_ns,
        (tmp_path / "log.jsonl").read_bytes(),
    ) == before
    loaded = load_model(tmp_path / "model.pt")
    assert_same(dict(loaded.model.state_dict()), dict(again.model.state_dict()))
    assert loaded.tasks == ("segmentation",)


def test_what_a_run_logs(tmp_path: Path) -> None:
    train_runs.run(train_runs.staged(), tmp_path)
    lines = train_runs.log(tmp_path)
    gated = [line for line in lines if line["stage"] == "gated" and "loss" in line]
    assert len(gated) == 8
    assert set(gated[0]["losses"]) == {"segmentation", "density"}
    assert len(gated[0]["density"]) == 4
    assert all(0 <= value <= 1 for value in gated[0]["density"].values())
    assert gated[0]["temperature"] == 1.0
    assert gated[-1]["temperature"] == 0.5
    assert gated[0]["learning_rate"] == 0.01
    assert gated[-1]["learning_rate"] == pytest.approx(0.01 * (1 / 8) ** 0.9)
    results = lines[-1]["results"]
    assert 0 < results["segmentation"]["pixel_accuracy"] < 1
    assert len(results["density"]) == 4
    assert results["macs"]["active"] <= results["macs"]["dense"]


@pytest.mark.parametrize("workers", [0, 1])
def test_the_seed_decides(workers: int, tmp_path: Path) -> None:
    recipe = train_runs.unmixed(steps=2)
    before = torch.get_rng_state()
    train_runs.run(recipe, tmp_path / "one")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    train_runs.run(recipe, tmp_path / "two", workers=workers)
    assert_same(train_runs.weights(tmp_path / "one"), train_runs.weights(tmp_path / "two"))
    if not workers:
        train_runs.run(with_overrides(recipe, ["seed=3"]), tmp_path / "three")
        other = train_runs.weights(tmp_path / "three")
        one = train_runs.weights(tmp_path / "one")
        assert not torch.equal(other["trunk.conv1.weight"], one["trunk.conv1.weight"])


def test_open_gates_stay_open_and_out_of_the_loss(tmp_path: Path) -> None:
    recipe = train_runs.recipe(
        {
            "name": "gated",
            "model": train_runs.network("pag_resnet50", train_runs.FROZEN),
            "target_density": 0.3,
            "density_weight": 1.0,
            "weight_decay": 0.0,
            "open_gates": ["trunk.layer2.*", "trunk.layer3.*", "trunk.layer4.*"],
        }
    )
    train_runs.run(recipe, tmp_path)
    for line in train_runs.log(tmp_path):
        for name, value in line.get("density", {}).items():
            assert value == 1.0 or name == "trunk.layer1.0", line
    loaded = load_model(tmp_path / "model.pt").model
    assert loaded.trunk.layer2[0].gate.conv.bias.tolist() == [0.0, 2.0]
    assert loaded.trunk.layer1[0].gate.conv.bias.tolist() != [0.0, 2.0]


WITH_RES6 = {"block": "basic", "depths": [1, 1, 1, 1], "width": 4, "output_stride": 8}
WITH_RES6["res6_channels"] = 8
BINS = [2.0, 3.0, 5.0, 9.0]
KINDS = {
    "true depth": {"weighting": "true_depth", "assignment": "hard"},
    "predicted depth": {"weighting": "predicted_depth"},
    "loops": {"loops": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_depth_aware_networks_train(kind: str, tmp_path: Path) -> None:
    arguments = {"bins": BINS, "dropout": 0.0, **KINDS[kind]}
    model = train_runs.network("small_depth_aware", WITH_RES6, **arguments)
    weights = [[1.0, 0.2, 0.1]] * 3
    recipe = train_runs.recipe(
        {"name": "aware", "model": model, "stage_weights": weights, "steps": 12, "batch_size": 2,
         "optimizer": "adamw"},
        data={**train_runs.SCENES, "limit": 2, "augmentation": STILL},
    )  # fmt: skip
    finished = train_runs.run(recipe, tmp_path)
    losses = [line["loss"] for line in train_runs.log(tmp_path) if "loss" in line]
    assert losses[-1] < 0.9 * losses[0]
    assert finished.results["segmentation"]["pixel_accuracy"] > 0


STILL = {
    **dict.fromkeys(("flip_share", "colour_share", "rotate_share", "scale_share"), 0.0),
    "gamma_spread": 0.0,
}


def test_a_trained_part_leaves_the_rest(tmp_path: Path) -> None:
    model = train_runs.network("small_depth_aware", WITH_RES6, bins=BINS)
    base = {"name": "base", "model": model, "steps": 1}
    branch = {
        **base,
        "name": "branch",
        "trained": ["pool.depth_branch.*"],
        "frozen_statistics": True,
        "stage_weights": [[0.0, 1.0, 1.0]],
        "steps": 3,
    }
    train_runs.run(train_runs.recipe(base), tmp_path / "one")
    train_runs.run(train_runs.recipe(base, branch), tmp_path / "two")
    before, after = (train_runs.weights(tmp_path / name) for name in ("one", "two"))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    learned = {name for name in changed if "num_batches" not in name}
    assert learned
    assert all(name.startswith("pool.depth_branch.") for name in learned)


def test_bfloat16_autocast(tmp_path: Path) -> None:
    train_runs.run(train_runs.unmixed(steps=2), tmp_path / "wide")
    recipe = with_overrides(train_runs.unmixed(steps=2), ["bf16=true"])
    train_runs.run(recipe, tmp_path / "narrow")
    wide, narrow = (train_runs.weights(tmp_path / name) for name in ("wide", "narrow"))
    for name, value in wide.items():
        assert narrow[name].dtype == value.dtype
    name = "trunk.conv1.weight"
    assert not torch.equal(wide[name], narrow[name])
    torch.testing.assert_close(wide[name], narrow[name], rtol=0.2, atol=0.02)


def test_rates_follow_their_patterns() -> None:
    from perfconv.train.networks import build_network
    from perfconv.train.optimizer import choose_trained, make_optimizer, set_rates

    stage = train_runs.recipe(
        {
            "name": "rates",
            "model": train_runs.network("pag_resnet50"),
            "rate_factors": {"heads.*": 10, "*.branches.*": 5, "*.conv2.gate.*": 3},
            "gate_rate_factor": 2.0,
            "weight_decay": 0.1,
        }
    ).stages[0]
    network = build_network(stage.model.name, stage.model.arguments)
    choose_trained(network, stage)
    optimizer = make_optimizer(network, stage)
    assert set_rates(optimizer, stage, 1, 4) == pytest.approx(0.75**0.9)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    seen = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen[names[id(parameter)]] = (group["lr"] / 0.75**0.9, group["weight_decay"])
    assert seen.keys() == dict(network.named_parameters()).keys()
    expected = {
        "trunk.conv1.weight": (0.01, 0.1),
        "heads.segmentation.classifier.weight": (0.1, 0.1),
        "trunk.layer4.1.conv2.branches.dilation1.conv.weight": (0.05, 0.1),
        "trunk.layer4.1.conv2.gate.classifier.bias": (0.03, 0.1),
        "trunk.layer1.0.gate.conv.weight": (0.02, 0.0),
    }
    for name, (rate, decay) in expected.items():
        assert seen[name] == (pytest.approx(rate), decay), name


def test_patterns_must_match(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="trained must match parameters of the network"):
        train_runs.run(train_runs.unmixed(trained=["head.*"]), tmp_path)
    with pytest.raises(ValueError, match="must divide into 1 processes times 3 micro-batches"):
        train_runs.run(train_runs.unmixed(accumulate=3), tmp_path)
    with pytest.raises(ValueError, match="tasks is empty, not one of the choices"):
        with_overrides(train_runs.unmixed(), ['tasks=["edges"]'])


def test_tensorboard_gets_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    from perfconv.train import log

    seen: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            assert (folder, purge_step) == (str(tmp_path), 3)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            seen.append((name, value, step))

        def close(self) -> None: ...

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(log.importlib.util, "find_spec", lambda name: name == "tensorboard")
    lines = log.Log(tmp_path, start=3, steps=9, shows_bar=True)
    lines.add({"stage": "a", "step": 3, "total_step": 3, "loss": 0.5, "density": {"layer1.0": 0.7}})
    lines.close()
    assert seen == [("loss", 0.5, 3), ("density/layer1.0", 0.7, 3)]
