"""Nothing that Python can pass may end the process (tests/fuzzer.py, in a process of its own)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import perfconv

FUZZER = Path(__file__).resolve().parents[1] / "fuzzer.py"


def fuzz(seed: int, calls: int, timeout_s: float) -> None:
    package = str(Path(perfconv.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(FUZZER), str(seed), str(calls)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, "PYTHONPATH": package, "PYTHONFAULTHANDLER": "1"},
    )
    last = "\n".join(result.stderr.splitlines()[-20:])
    assert result.returncode == 0, f"seed {seed}: exit code {result.returncode}\n{last}"
    good = int(result.stdout.split()[2])
    assert 0.1 * calls < good < 0.9 * calls, result.stdout


def test_no_crash() -> None:
    fuzz(seed=0, calls=20_000, timeout_s=120)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 9))
def test_no_crash_for_longer(seed: int) -> None:
    fuzz(seed, calls=40_000, timeout_s=600)
