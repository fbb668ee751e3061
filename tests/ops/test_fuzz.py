"""Nothing that Python can pass may end the process (tests/fuzzer.py, in a process of its own)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import perfconv

FUZZER = Path(__file__).resolve().parents[1] / "fuzzer.py"


# At this shape torch's own float16 convolution ends the process (2.13, AVX-512 with float16).
FLOAT16 = """
import torch, perfconv
input = torch.randn(1, 3, 13, 1, dtype=torch.float16, requires_grad=True)
weight = torch.randn(7, 3, 2, 1, dtype=torch.float16, requires_grad=True)
mask = torch.ones(1, 1, 3, 2, dtype=torch.bool)
for algorithm in ("auto", "dense"):
    output = perfconv.perforated_conv2d(
        input, weight, mask, stride=(4, 3), padding=(0, 2), dilation=3, algorithm=algorithm
    )
    output.sum().backward()
"""


def run(arguments: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    package = str(Path(perfconv.__file__).parents[1])
    kept = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**kept, "PYTHONPATH": package, "PYTHONFAULTHANDLER": "1"},
    )


def fuzz(seed: int, calls: int, timeout_s: float) -> None:
    result = run([str(FUZZER), str(seed), str(calls)], timeout_s)
    last = "\n".join(result.stderr.splitlines()[-20:])
    assert result.returncode == 0, f"seed {seed}: exit code {result.returncode}\n{last}"
    good = int(result.stdout.split()[2])
    assert 0.1 * calls < good < 0.9 * calls, result.stdout


def test_no_crash() -> None:
    fuzz(seed=0, calls=20_000, timeout_s=120)


def test_float16_where_torch_crashes() -> None:
    result = run(["-c", FLOAT16], timeout_s=60)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_no_crash_for_longer(seed: int) -> None:
    fuzz(seed, calls=40_000, timeout_s=600)
