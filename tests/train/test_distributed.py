"""Which device and which backend a process takes, and two of them on GPUs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import train_runs

from perfconv.train.distributed import backend_of, process_of


def test_a_process_alone() -> None:
    with process_of("cpu") as process:
        assert (process.rank, process.ranks, process.device) == (0, 1, torch.device("cpu"))
    assert not dist.is_initialized()


@pytest.mark.parametrize("device", ["abacus", "meta", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    with (
        pytest.raises(
            ValueError, match=r"--device must be (one that is there|cpu, cuda or cuda:1), got"
        ),
        process_of(device),
    ):
        pass


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with (
        pytest.raises(ValueError, match=r"got cuda:1, and torch sees 1 GPUs"),
        process_of("cuda"),
    ):
        pass


@pytest.mark.parametrize(
    ("device", "has_nccl", "backend"),
    [
        ("cpu", True, "gloo"),
        ("cuda:1", True, "cpu:gloo,cuda:nccl"),  # metrics are on the CPU, gradients are not
        ("cuda:0", False, "gloo"),
    ],
)
def test_backend(
    device: str, has_nccl: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "is_nccl_available", lambda: has_nccl)
    assert backend_of(torch.device(device)) == backend


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
def test_two_gpus_train_as_one(tmp_path: Path) -> None:
    """By NCCL, and with the same global batch as one process; tests/train/test_loop.py: by gloo."""
    config = tmp_path / "recipe.json"
    config.write_text(json.dumps(train_runs.unmixed().to_dict()))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    for ranks in (1, 2):
        command = ["-m", "perfconv", "train", "--config", str(config), "--device", "cuda"]
        command += ["--output", str(tmp_path / str(ranks))]
        done = subprocess.run(
            [*launch, str(ranks), *command], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
    wanted = train_runs.weights(tmp_path / "1")
    for name, value in train_runs.weights(tmp_path / "2").items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-3, atol=1e-5)
