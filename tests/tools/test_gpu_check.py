"""tools/gpu_check.sh as far as a machine without a GPU shows it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "gpu_check.sh"
MOST_SECONDS = 9 * 60

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": sys.executable, "GPU_CHECK_FOLDER": str(folder)}
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert result.returncode == 3
    assert re.fullmatch(r"gpu_check: torch .* sees no GPU\. This script .*\.\n", result.stderr)


def test_unknown_arguments_are_refused(tmp_path: Path) -> None:
    assert run(tmp_path, "--fast").returncode == 2


def test_the_limits_of_its_steps_add_up_to_nine_minutes() -> None:
    script = SCRIPT.read_text()
    limits = re.findall(r"^ *(?:[A-Z_]+=1 )?step ([\w-]+) (\d+) ", script, re.MULTILINE)
    most = {name: max(int(limit) for other, limit in limits if other == name) for name, _ in limits}
    for function in ("sanitizer", "without", "few_tiles"):  # their callers name the steps
        (body,) = re.findall(rf"^{function}\(\).*?^}}", script, re.MULTILINE | re.DOTALL)
        limit = max(map(int, re.findall(r'step "\$1" (\d+)', body)))
        calls = re.findall(rf"^{function} \w", script, re.MULTILINE)
        assert len(calls) >= 2
        most[function] = limit * len(calls)
    assert len(most) >= 7
    assert sum(most.values()) <= MOST_SECONDS


@pytest.mark.slow
def test_dry_run_goes_through_every_step_once(tmp_path: Path) -> None:
    result = run(tmp_path, "--dry-run")
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    steps = {row["step"]: row["status"] for row in rows if "step" in row}
    expected = {"build", "tests", "graphs", "memcheck", "racecheck", "initcheck"}
    expected |= {"conformance", "benchmark", "older-tiles", "no-packs", "few-tiles", "no-clusters"}
    assert expected <= steps.keys()
    assert set(steps.values()) == {"passed"}
    assert {"device", "driver", "torch", "commit"} <= rows[0].keys()
    assert any(row.get("algorithm") == "im2col_gemm" for row in rows)
    for name in ("tests", "graphs", "memcheck", "conformance"):  # each selects something
        assert re.search(r"[1-9]\d*(/\d+)? tests collected", (tmp_path / f"{name}.log").read_text())

    (tmp_path / "state").write_text(
        (tmp_path / "state").read_text().replace("graphs passed", "graphs failed")
    )
    again = run(tmp_path, "--dry-run")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "===== tests: done before" in again.stdout
    assert "===== graphs: passed" in again.stdout
