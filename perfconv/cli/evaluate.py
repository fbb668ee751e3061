"""``perfconv evaluate``: every metric of a trained network over a data set, into a JSON file."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from perfconv.cli.train import headline, in_process
from perfconv.data.files import DataError
from perfconv.train.checkpoint import CheckpointError, checkpoint_file, load_model, replace_file
from perfconv.train.config import DATASETS, Data, Recipe
from perfconv.train.datasets import open_split
from perfconv.train.distributed import Process
from perfconv.train.evaluation import draw_samples, evaluate
from perfconv.train.shipped import SHIPPED


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    summary = "score a trained network on a data set"
    parser = subparsers.add_parser("evaluate", help=summary, description=summary)
    parser.add_argument(
        "checkpoint",
        type=Path,
        nargs="?",
        help="a file that perfconv train wrote, or a run's folder; default: the small network that "
        "ships",
    )
    parser.add_argument("--data", type=Path, help="folder of the data set (docs/datasets.md)")
    parser.add_argument(
        "--dataset", choices=DATASETS, help="default: the one it was trained on, and its options"
    )
    parser.add_argument("--split", help="default: the recipe's test split")
    parser.add_argument("--limit", type=int, help="score the first so many images")
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=(),
        help="average over these scales and mirrored images (test-time augmentation)",
    )
    parser.add_argument(
        "--merging",
        choices=("last", "mean", "max"),
        default="last",
        help="of a recurrent network's loops",
    )
    parser.add_argument(
        "--thresholds", type=int, default=99, help="of boundary detection; fewer are faster"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="results; default: <checkpoint>-results.json beside it, or in the current folder",
    )
    parser.add_argument("--pictures", type=Path, help="draw some samples into this folder")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")


def run(args: argparse.Namespace) -> int:
    """Writes the results and prints the main ones; 0 if all went well."""
    return in_process("evaluate", args.device, lambda process: _status(args, process))


def _status(args: argparse.Namespace, process: Process) -> int:
    try:
        return _evaluate(args, process)
    except (CheckpointError, DataError, ValueError, FileNotFoundError) as error:
        print(f"perfconv evaluate: {error}", file=sys.stderr)
        return 1


def _evaluate(args: argparse.Namespace, process: Process) -> int:
    checkpoint = SHIPPED if args.checkpoint is None else checkpoint_file(args.checkpoint)
    model, config = load_model(checkpoint)
    data = _data(args, config)
    samples = open_split(data, args.data, is_training=False)
    if len(samples.classes) != len(config["classes"]) and "segmentation" in config["tasks"]:
        raise ValueError(
            f"the network has {len(config['classes'])} classes, {data.name} {len(samples.classes)}."
            " Name the data set that it was trained on."
        )
    model.to(process.device)
    results = evaluate(
        model,
        samples,
        config["tasks"],
        process=process,
        scales=args.scales,
        merging=args.merging,
        thresholds=args.thresholds,
    )
    if not process.is_first:
        return 0
    settings = {"scales": list(args.scales), "merging": args.merging}
    about = {
        "checkpoint": checkpoint.name if args.checkpoint is None else str(checkpoint),
        "model": config["model"],
        "data": dataclasses.asdict(data),
        **settings,
    }
    folder = Path() if args.checkpoint is None else checkpoint.parent
    path = args.output or folder / f"{checkpoint.stem}-results.json"
    replace_file(path, (json.dumps({**about, "results": results}, indent=1) + "\n").encode())
    if args.pictures is not None:
        draw_samples(model, samples, config["tasks"], args.pictures, count=8)
    print(json.dumps(headline(results)))
    print(f"results: {path}")
    return 0


def _data(args: argparse.Namespace, config: dict) -> Data:
    """The recipe's data, with what the command line says instead."""
    data = Recipe.from_dict(config["recipe"]).data if "recipe" in config else Data()
    if args.dataset is not None and args.dataset != data.name:
        data = Data(name=args.dataset)
        defaults = {"cityscapes": "val"}
        data = dataclasses.replace(data, test_split=defaults.get(args.dataset, "test"))
    if args.split is not None:
        data = dataclasses.replace(data, test_split=args.split)
    if args.limit is not None:
        data = dataclasses.replace(data, limit=args.limit)
    return data
