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
    assert any(not torch.equal(value, wanted[name]) for name, value in initial(wanted).items())
    for other in ("parts", "two"):
        for name, value in train_runs.weights(tmp_path / other).items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-6)
    results = [(folder / f"rank{rank}.json").read_text() for rank in range(2)]
    assert results[0] == results[1]
    shares = [line["loss"] for line in train_runs.log(folder) if "loss" in line]
    alone = [line["loss"] for line in train_runs.log(tmp_path / "one") if "loss" in line]
    assert shares == pytest.approx(alone, rel=1e-4)
    assert one.results["images"] == 3


def initial(like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights before training."""
    recipe = train_runs.unmixed(learning_rate=1e-30, weight_decay=0.0, steps=1)
    from perfconv.train.loop import _Run

    with train_runs.process_of("cpu") as process:
        run = _Run(recipe, Path("/nonexistent"), process, None, None, 0, False)
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


def test_a_folder_belongs_to_one_recipe(tmp_path: Path) -> None:
    recipe = train_runs.unmixed(steps=2)
    train_runs.run(recipe, tmp_path)
    other = with_overrides(recipe, ["stages.0.learning_rate=0.5", "seed=3"])
    with pytest.raises(ValueError, match=r"same recipe, got one with other seed, stages"):
        train_runs.run(other, tmp_path)


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
