"""Metrics of two processes add up."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from perfconv.metrics import DepthMetric

WORKER = """
import sys
import torch
import torch.distributed as dist
from perfconv.metrics import DepthMetric

rank, path = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
metric = DepthMetric()
metric.update(torch.full((rank + 1,), 3.0), torch.full((rank + 1,), 2.0 + rank))
metric.all_reduce()
scores = metric.compute()
print(scores.pixels, scores.abs_rel)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    whole = DepthMetric()
    whole.update(torch.full((3,), 3.0), torch.tensor([2.0, 3.0, 3.0]))
    expected = f"{whole.compute().pixels} {whole.compute().abs_rel}\n"
    assert outputs == [expected, expected]
