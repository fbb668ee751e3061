"""``perfconv train``: trains a named recipe, or goes on with a run that was stopped."""

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from perfconv.data.files import DataError
from perfconv.train.checkpoint import CheckpointError
from perfconv.train.config import Recipe, read_recipe, with_overrides
from perfconv.train.distributed import Process, process_of
from perfconv.train.loop import TrainingStopped, train
from perfconv.train.recipes import RECIPES


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    summary = "train a named recipe, or go on with a run that was stopped"
    description = (
        f"{summary}. The same command again goes on from the last checkpoint; torchrun "
        "--nproc-per-node N -m perfconv train ... trains with N processes."
    )
    parser = subparsers.add_parser("train", help=summary, description=description)
    parser.add_argument(
        "--config", metavar="NAME", help="a recipe's name (--list), or a .json file"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the recipes")
    parser.add_argument(
        "--show", action="store_true", help="print the recipe as JSON, to change it"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="replace a value of the recipe: seed=3, stages.0.steps=100; may be repeated",
    )
    parser.add_argument("--data", type=Path, help="folder of the data set (docs/datasets.md)")
    parser.add_argument(
        "--weights",
        help='file with the trunk\'s pretrained weights; "none" trains from random ones',
    )
    parser.add_argument("--output", type=Path, help="the run's folder; default: runs/NAME")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: a GPU if there is one")
    parser.add_argument("--workers", type=int, default=0, help="processes that read samples")


def run(args: argparse.Namespace) -> int:
    """Trains; 0 if the run is finished."""
    if args.list:
        width = max(map(len, RECIPES))
        for name, recipe in RECIPES.items():
            print(f"{name:<{width}}  {recipe.summary}")
        return 0
    try:
        recipe = chosen_recipe(args.config, args.overrides)
        if args.show:
            print(json.dumps(recipe.to_dict(), indent=2))
            return 0
        weights = _weights(recipe, args.weights)
    except ValueError as error:
        print(f"perfconv train: {error}", file=sys.stderr)
        return 2
    output = args.output or Path("runs") / recipe.name
    return in_process("train", args.device, lambda p: _train(recipe, output, p, weights, args))


def in_process(command: str, device: str | None, work: Callable[[Process], int]) -> int:
    """The exit status of ``work``, alone or as one of several processes."""
    try:
        with process_of(device) as process:
            status = work(process)
            if process.ranks > 1:
                # Without destructors: that of DistributedDataParallel may wait for gloo's thread,
                # which may wait for the interpreter's lock (seen in torch 2.13).
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
    except ValueError as error:  # of the device
        print(f"perfconv {command}: {error}", file=sys.stderr)
        return 2
    return status


def chosen_recipe(name: str | None, overrides: list[str]) -> Recipe:
    """The recipe of ``--config`` with ``--set``.

    Raises:
        ValueError: there is none of that name, or a value does not fit.
    """
    if name is None:
        raise ValueError("give --config NAME (perfconv train --list prints the names).")
    if name in RECIPES:
        recipe = RECIPES[name]
    elif name.endswith(".json"):
        recipe = read_recipe(name)
    else:
        close = difflib.get_close_matches(name, RECIPES, n=3)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(
            f"--config must be the name of a recipe or a .json file, got {name!r}. {hint}"
            "perfconv train --list prints the names."
        )
    return with_overrides(recipe, overrides)


def _weights(recipe: Recipe, given: str | None) -> str | None:
    if recipe.needs_weights is not None and given is None:
        raise ValueError(
            f"{recipe.name} starts from pretrained weights of {recipe.needs_weights}: name their "
            "file with --weights (torchvision's have the names that are needed), or train from "
            "random ones with --weights none."
        )
    return None if given == "none" else given


def _train(
    recipe: Recipe, output: Path, process: Process, weights: str | None, args: argparse.Namespace
) -> int:
    try:
        finished = train(
            recipe,
            output,
            process=process,
            root=args.data,
            weights=weights,
            workers=args.workers,
        )
    except (TrainingStopped, CheckpointError, DataError, OSError, ValueError) as error:
        print(f"perfconv train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"perfconv train: stopped; the same command goes on ({output})", file=sys.stderr)
        return 130
    if process.is_first:
        print(json.dumps(headline(finished.results)))
        print(f"model: {finished.path}")
    return 0


def headline(results: dict) -> dict:
    """The scores without the rows of every class and threshold."""
    short: dict = {}
    for key, value in results.items():
        if isinstance(value, dict):
            value = {k: v for k, v in value.items() if not isinstance(v, list) or len(v) <= 3}
        short[key] = value
    return short
