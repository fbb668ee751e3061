"""Runs the authors' experiments in small, on made-up scenes, and keeps a row for each finished run.

    python tools/experiments.py --groups a d --seeds 3    # what is finished is skipped
    python tools/experiments.py --list                    # what is, and what is not
    python tools/experiments_latency.py                   # how long the networks of (e) take
    python tools/experiments_report.py                    # tables and plots from the rows

A run takes about half a minute on one core. Rows are appended to docs/experiments/rows.jsonl;
runs that were stopped go on from their checkpoints in build/experiments. Seeds are paired: with one
seed, all recipes see the same samples in the same order, and those of groups (c) to (e) start from
the same trained base network.
"""

import argparse
import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

import perfconv
from perfconv.train.checkpoint import read_checkpoint, write_checkpoint
from perfconv.train.config import Recipe
from perfconv.train.distributed import process_of
from perfconv.train.loop import FINAL, LAST, train
from perfconv.train.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[1]
ROWS = ROOT / "docs" / "experiments" / "rows.jsonl"
FOLDER = ROOT / "build" / "experiments"
TASKS = ("segmentation", "log-depth", "normals", "boundary")
VARIANTS = ("truncated", "skipping", "pag")
GROUPS = {
    "a": ["average", "attention", "true-depth", "predicted-depth", "true-depth-tied"],
    "b": ["predicted-depth", *(f"loops-{n}-{kind}" for n in (1, 2) for kind in ("plain", "depth"))],
    # The pool at nothing, res3, res4, res5, res6.
    "c": ["segmentation-baseline", "pool-res3", "pool-res4", "segmentation-attention", "pool-res6"],
    "d": [f"{task}-{kind}" for task in TASKS for kind in ("baseline", "attention", "pag")],
    "e": [
        "segmentation-pag",
        *(f"segmentation-{kind}-{rho}" for rho in (0.7, 0.5, 0.9) for kind in VARIANTS),
        "boundary-pag",
        *(f"boundary-{kind}-{rho}" for rho in (0.7, 0.5, 0.9) for kind in VARIANTS),
    ],
}


def seeded(name: str, seed: int) -> Recipe:
    return replace(RECIPES[f"scenes-{name}"], seed=seed)


def digest(recipe: Recipe) -> str:
    """Changes with anything that decides the run, and not with a new option left at its default."""
    silent = {"summary": "", "expected": "", "log_every": 1, "checkpoint_every": 1, "pictures": 0}
    text = json.dumps(_settings(replace(recipe, **silent)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _settings(value: object) -> object:
    """Dataclasses as dictionaries of what differs from its default."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: _settings(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if getattr(value, field.name) != _default(field)
        }
    if isinstance(value, list | tuple):
        return [_settings(one) for one in value]
    return value


def _default(field: dataclasses.Field) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def read_rows(path: Path = ROWS) -> list[dict]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def finished(rows: list[dict], name: str, seed: int) -> dict | None:
    """The row of a run of the recipe as it is now."""
    wanted = digest(seeded(name, seed))
    return next((row for row in rows if row["digest"] == wanted), None)


def share_base(recipe: Recipe, output: Path, folder: Path) -> None:
    """Lets a run begin where the first stage of an equal one ended: it would be the same again."""
    first = recipe.stages[0]
    if len(recipe.stages) == 1 or (output / LAST).exists():
        return
    key = digest(replace(recipe, name="base", summary="", stages=(first,)))
    base = folder / f"base-{key}"
    alone = replace(recipe, name="base", summary="", stages=(first,))
    with process_of("cpu") as process:
        train(alone, base, process=process)
    saved = read_checkpoint(base / LAST)
    config = {**saved["config"], "recipe": recipe.to_dict()}
    write_checkpoint(output / LAST, config=config, model=saved["model"], training=saved["training"])


def run(name: str, seed: int, folder: Path) -> dict:
    """Trains and scores; the row."""
    recipe = seeded(name, seed)
    output = folder / f"{name}-seed{seed}-{digest(recipe)}"
    share_base(recipe, output, folder)
    began = time.perf_counter()
    with process_of("cpu") as process:
        done = train(recipe, output, process=process)
    results = done.results
    return {
        "recipe": name,
        "seed": seed,
        "digest": digest(recipe),
        "results": {key: value for key, value in results.items() if key != "images"},
        "images": results["images"],
        "seconds": round(time.perf_counter() - began, 1),
        "threads": torch.get_num_threads(),
        "isa": perfconv.build_info()["cpu_isa"],
        "torch": torch.__version__,
        "commit": commit(),
    }


def commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    parser.add_argument("--only", nargs="+", help="these recipes of the groups")
    parser.add_argument("--seeds", type=int, default=3, help="1, 2, ... up to this one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="start no run after this long")
    parser.add_argument("--list", action="store_true", help="say what is finished")
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of checkpoints")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    names = list(dict.fromkeys(name for group in args.groups for name in GROUPS[group]))
    names = [name for name in names if not args.only or name in args.only]
    wanted = [(name, seed) for seed in range(1, args.seeds + 1) for name in names]
    if args.list:
        rows = read_rows(args.rows)
        for name, seed in wanted:
            print(f"{'done' if finished(rows, name, seed) else 'open'}  {name} seed {seed}")
        return 0
    began = time.monotonic()
    for name, seed in wanted:
        if finished(read_rows(args.rows), name, seed):
            continue
        if args.minutes is not None and time.monotonic() - began > 60 * args.minutes:
            break
        row = run(name, seed, args.folder)
        args.rows.parent.mkdir(parents=True, exist_ok=True)
        with open(args.rows, "a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name} seed {seed}: {row['seconds']} s", flush=True)
        output = args.folder / f"{name}-seed{seed}-{row['digest']}"
        kept = args.folder / "models" / f"{name}-seed{seed}.pt"
        kept.parent.mkdir(parents=True, exist_ok=True)
        (output / FINAL).replace(kept)
        shutil.rmtree(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
