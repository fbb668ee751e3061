"""``perfconv predict``: pictures of what a network sees in images, or in a data set's samples.

inputs.py finds and reads images, network.py builds the network and runs it, pictures.py draws.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from perfconv.cli.predict.inputs import Input, InputError, find_inputs
from perfconv.cli.predict.network import NetworkError, Predictor, open_network
from perfconv.cli.predict.pictures import write_arrays, write_pictures
from perfconv.data.verify import COUNTS, DATASETS
from perfconv.models.augmentation import MERGES
from perfconv.train.shipped import LONGEST_SIDE

SHIPPED_NOTE = """The small network that ships: it has learnt from made-up scenes only, and knows
nothing of photos. Another: --checkpoint (of perfconv train), or --network and --weights."""
DESCRIPTION = """Runs a scene parser on images and writes a picture for each task: image,
prediction, ground truth if it is known, ponder map; of networks with gates also the mask of every
gate, of recurrent ones the pooling size, depth and labels after each loop."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = subparsers.add_parser(
        "predict", help="pictures of a network's predictions", description=DESCRIPTION
    )
    parser.add_argument(
        "source", nargs="*", help="images, folders of images, patterns such as 'photos/*.jpg'; "
        "with --dataset the data set's folder, none with --dataset scenes",
    )  # fmt: skip
    text = "without any of these the small network that ships, which knows made-up scenes only"
    network = parser.add_argument_group("network", text)
    network.add_argument(
        "--checkpoint", type=Path, help="of perfconv train: a file, or the folder of a run"
    )
    network.add_argument("--network", metavar="NAME", help="a builder of perfconv.models")
    network.add_argument("--weights", type=Path, help="its state dict: .safetensors, .pth or .pt")
    network.add_argument(
        "--arguments", type=json_object, default={}, metavar="JSON",
        help='of the builder, such as \'{"classes": 19, "tasks": ["segmentation", "log_depth"]}\'',
    )  # fmt: skip
    network.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1; default: cpu")
    network.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    samples = parser.add_argument_group("samples with ground truth")
    samples.add_argument(
        "--dataset", choices=[*sorted(DATASETS), "scenes"],
        help='read SOURCE as this data set; "scenes" are made up and need no files',
    )  # fmt: skip
    samples.add_argument("--split", help="of the data set; default: its test or validation split")
    samples.add_argument("--samples", nargs="+", default=[], metavar="NAME", help="only these")
    samples.add_argument("--limit", type=positive, help="this many, evenly spread")
    merged = parser.add_argument_group("test-time augmentation")
    merged.add_argument("--flip", action="store_true", help="also the mirrored image")
    merged.add_argument("--scales", type=float, nargs="+", default=[1.0], help="default: 1")
    merged.add_argument("--merge", choices=MERGES, default="mean", help="of probabilities")
    merged.add_argument(
        "--merge-loops", choices=("last", "mean", "max"), default="last",
        help="of a recurrent network's stages",
    )  # fmt: skip
    parser.add_argument(
        "--max-side", type=positive,
        help="photos with a longer side are scaled down to it, pixels; default: 1024, and "
        f"{LONGEST_SIDE} with the network that ships",
    )  # fmt: skip
    parser.add_argument(
        "--names", choices=sorted(DATASETS),
        help="draw classes with names and colours of this data set",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, default=Path("perfconv-predictions"), help="folder of the pictures"
    )
    parser.add_argument(
        "--arrays", action="store_true", help="also <name>.npz with the predictions as numbers"
    )


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {number}")
    return number


def json_object(text: str) -> dict:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"must be JSON, got {text!r}: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f'must be an object such as {{"classes": 19}}, got {text}')
    return found


def run(args: argparse.Namespace) -> int:
    """0 if every image was predicted, 1 if some could not be read, 2 if nothing could be done."""
    is_shipped = args.checkpoint is None and args.network is None and args.weights is None
    max_side = args.max_side or (LONGEST_SIDE if is_shipped else 1024)
    try:
        inputs = find_inputs(
            args.source, dataset=args.dataset, split=args.split or default_split(args.dataset),
            names=args.samples, limit=args.limit, max_side=max_side,
        )  # fmt: skip
        network = open_network(
            args.checkpoint, args.network, args.weights, args.arguments, args.names or args.dataset
        )
        predictor = Predictor(
            network, device=args.device, is_bf16=args.bf16, scales=args.scales, flip=args.flip,
            merge=args.merge, merge_loops=args.merge_loops,
        )  # fmt: skip
        args.output.mkdir(parents=True, exist_ok=True)
    except (InputError, NetworkError, OSError) as error:
        print(f"perfconv predict: {error}", file=sys.stderr)
        return 2
    if is_shipped:
        print(SHIPPED_NOTE)
    print(f"{network.name}: {', '.join(network.tasks)}; {len(inputs)} images to {args.output}")
    failed = 0
    for number, input in enumerate(inputs, 1):
        failed += not _predict(input, f"[{number}/{len(inputs)}]", predictor, args)
    if failed:
        print(f"{failed} of {len(inputs)} images could not be predicted", file=sys.stderr)
    return 1 if failed else 0


def default_split(dataset: str | None) -> str | None:
    if dataset is None or dataset == "scenes":
        return None
    splits = COUNTS[dataset]
    return "val" if "val" in splits and dataset == "cityscapes" else "test"


def _predict(input: Input, place: str, predictor: Predictor, args: argparse.Namespace) -> bool:
    """Reads, predicts, draws and tells; whether it went well."""
    begin = time.perf_counter()
    try:
        sample, notes = input.read()
        prediction = predictor(sample)
        written = write_pictures(prediction, sample, input.name, args.output)
        if args.arrays:
            written.append(write_arrays(prediction, args.output / f"{input.name}.npz"))
    except (InputError, NetworkError, OSError, torch.OutOfMemoryError) as error:
        print(f"{place} {input.name}: {error}", file=sys.stderr, flush=True)
        return False
    took = time.perf_counter() - begin
    said = "".join(f" {note}" for note in notes)
    names = ", ".join(path.name for path in written)
    print(f"{place} {names} ({took:.1f} s).{said}", flush=True)
    return True
