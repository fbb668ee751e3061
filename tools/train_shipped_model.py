"""Trains the network that ships with the package, perfconv/train/scenes_parser.safetensors.

    python tools/train_shipped_model.py [--folder build/shipped]

Minutes on one core; a stopped run goes on. The same torch, instruction set and number of threads
(one) give the same weights, bit for bit: they are written into the file beside recipe and scores,
of which the executed MACs are those of this version's planner.
"""

import argparse
import sys
from pathlib import Path

import torch

import perfconv
from perfconv.cli.train import headline
from perfconv.train import load_model, write_model
from perfconv.train.checkpoint import Loaded
from perfconv.train.distributed import process_of
from perfconv.train.loop import train
from perfconv.train.recipes import RECIPES
from perfconv.train.shipped import RECIPE, SHIPPED

ROOT = Path(__file__).resolve().parents[1]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "shipped")
    parser.add_argument("--output", type=Path, default=SHIPPED)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with process_of("cpu") as process:
        done = train(RECIPES[RECIPE], args.folder, process=process)
    trained = load_model(done.path)
    made = {
        "torch": torch.__version__,
        "isa": perfconv.build_info()["cpu_isa"],
        "threads": torch.get_num_threads(),
    }
    config = {**trained.config, "results": headline(done.results), "made": made}
    write_model(args.output, Loaded(trained.model, config))
    print(f"{args.output}: {args.output.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
