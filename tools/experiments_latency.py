"""Times the trained networks of group (e) in turn, into docs/experiments/latency.json.

    python tools/experiments_latency.py [--models build/experiments/models] [--threads 1]

The dense network of a pair is ``<task>-baseline`` of the same seed, BatchNorm folded like every
other; all see the same scene. Medians over rounds in which each runs once.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from experiments import FOLDER, GROUPS, ROWS

import perfconv
from perfconv._bench.timing import CpuClock
from perfconv.data import PerspectiveScenes
from perfconv.train import load_model

SIZES = ((64, 96), (256, 384))  # that of training, and four times as large
SEED = 1


def measure(models: Path, task: str, size: tuple[int, int], rounds: int) -> dict | None:
    """Median milliseconds and ratios to the baseline, by recipe; None without one."""
    names = [f"{task}-baseline", *(name for name in GROUPS["e"] if name.startswith(task))]
    files = {name: models / f"{name}-seed{SEED}.pt" for name in names}
    there = {name: path for name, path in files.items() if path.exists()}
    if names[0] not in there or len(there) < 2:
        return None
    scene = PerspectiveScenes(1, size=size, seed=7)[0].image[None]
    image = scene.to(memory_format=torch.channels_last)
    calls = {}
    for name, path in there.items():
        network = load_model(path).model.to(memory_format=torch.channels_last)
        fused = perfconv.fuse(network)
        calls[name] = lambda network=fused: network(image)
    with torch.inference_mode():
        times = CpuClock().measure(calls, rounds)
    base = times[names[0]]
    found = {}
    for name, values in times.items():
        ratios = [b / v for b, v in zip(base, values, strict=True) if b and v]
        quartiles = statistics.quantiles(ratios, n=4)
        found[name] = {
            "ms": statistics.median(value for value in values if value),
            "speed_up": quartiles[1],
            "speed_up_low": quartiles[0],
            "speed_up_high": quartiles[2],
        }
    return {"task": task, "size": list(size), "rounds": rounds, "recipes": found}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=FOLDER / "models")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--output", type=Path, default=ROWS.with_name("latency.json"))
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    tables = [
        measure(args.models, task, size, args.rounds)
        for task in ("segmentation", "boundary")
        for size in SIZES
    ]
    content = {
        "threads": args.threads,
        "isa": perfconv.build_info()["cpu_isa"],
        "torch": torch.__version__,
        "tables": [table for table in tables if table is not None],
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
