"""Small runs for the tests of perfconv.train, importable by the processes that they start."""

import json
import os
from pathlib import Path

import torch

from perfconv.train.config import Recipe
from perfconv.train.distributed import process_of
from perfconv.train.loop import Finished, train

TRUNK = {"block": "bottleneck", "depths": [1, 1, 1, 2], "width": 4, "output_stride": 8}
FROZEN = {**TRUNK, "frozen_norms": [""]}
SCENES = {
    "name": "scenes",
    "options": {"size": [24, 32], "length": 10, "test_length": 3},
    "augmentation": {"scale_share": 0.0, "rotate_share": 0.0},
}


def network(name: str, trunk: dict = TRUNK, **arguments: object) -> dict:
    return {"name": name, "arguments": {"classes": 20, "trunk": trunk, **arguments}}


def recipe(*stages: dict, **values: object) -> Recipe:
    """Defaults that train fast."""
    common = {"batch_size": 4, "learning_rate": 0.01, "steps": 4}
    return Recipe.from_dict(
        {
            "name": "test",
            "summary": "of the tests",
            "tasks": ["segmentation"],
            "data": SCENES,
            "stages": [{**common, **stage} for stage in stages],
            "log_every": 1,
            "checkpoint_every": 2,
            "pictures": 0,
            "thresholds": 3,
            **values,
        }
    )


def staged() -> Recipe:
    """Everything that has a state or draws numbers: noise of gates, EMA, momentum, crops."""
    return recipe(
        {"name": "base", "model": network("baseline_resnet50"), "steps": 7, "accumulate": 2},
        {
            "name": "gated",
            "model": network("pag_resnet50", FROZEN),
            "steps": 8,
            "target_density": 0.6,
            "density_weight": 0.1,
            "density_ramp": 0.5,
            "temperature": {"kind": "linear", "start": 1.0, "end": 0.5},
        },
        ema_decay=0.9,
        checkpoint_every=3,
        data={**SCENES, "crop_size": [16, 24], "augmentation": {}},
    )


def unmixed(**values: object) -> Recipe:
    """Nothing that looks at several images at once, so that a batch may be divided."""
    stage = {"name": "base", "model": network("baseline_resnet50"), "frozen_statistics": True}
    return recipe({**stage, **values})


def run(recipe: Recipe, folder: Path, **options: object) -> Finished:
    with process_of("cpu") as process:
        return train(recipe, folder, process=process, shows_bar=False, **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pt", weights_only=True)["model"]


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def run_staged(folder: str) -> None:
    """In a process of its own, to be killed."""
    torch.set_num_threads(1)
    run(staged(), Path(folder))


def run_on_rank(rank: int, ranks: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with process_of("cpu") as process:
        finished = train(unmixed(accumulate=2), folder, process=process, shows_bar=False)
        (Path(folder) / f"rank{rank}.json").write_text(json.dumps(finished.results))
        process.wait()
        os._exit(0)  # see tests/ddp_worker.py
