"""``perfconv data verify``: reads every file of a data set, says which is wrong, draws some."""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from perfconv.data.files import DataError
from perfconv.data.verify import COUNTS, DATASETS, Report, contact_sheet, verify

SHOWN_PROBLEMS = 20


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    summary = "check a data set's files"
    parser = subparsers.add_parser("data", help=summary, description=summary)
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "read every sample, name the files that are wrong, and draw some as a contact sheet"
    check = actions.add_parser("verify", help=text, description=text)
    check.add_argument("dataset", choices=sorted(DATASETS))
    check.add_argument("root", type=Path, help="the data set's folder (docs/datasets.md)")
    check.add_argument("--split", help="one split; default: all of them")
    check.add_argument(
        "--limit", type=image_count, help="read this many of each split, evenly spread"
    )
    check.add_argument(
        "--sheet", type=png_path, help="write contact sheets to this PNG, -<split> added"
    )


def image_count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {count}")
    return count


def png_path(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a .png in a folder that is there, got {text}")
    return path


def run(args: argparse.Namespace) -> int:
    """Prints a report for each split; 0 if nothing is wrong."""
    splits = list(COUNTS[args.dataset])
    if args.split is not None:
        if args.split not in splits:
            print(f"perfconv data verify: split must be one of {splits}.", file=sys.stderr)
            return 2
        splits = [args.split]
    wrong = 0
    for split in splits:
        wrong += _verify_split(args, split)
    print("OK: every sample can be used" if not wrong else f"WRONG: {wrong} problems")
    return 1 if wrong else 0


def _verify_split(args: argparse.Namespace, split: str) -> int:
    """Prints what was found; the number of problems."""
    try:
        dataset = DATASETS[args.dataset](args.root, split)
    except DataError as error:
        print(f"{split}: {error}")
        return 1
    report = verify(dataset, limit=args.limit, progress=_progress)
    print(f"{split}: {len(dataset)} images, {report.images} read")
    expected = COUNTS[args.dataset][split]
    if len(dataset) != expected:
        print(f"  note: the complete data set has {expected} in this split")
    _describe(report, dataset.classes)
    if args.sheet is not None and report.shown:
        path = args.sheet.with_stem(f"{args.sheet.stem}-{split}")
        pixels = (contact_sheet(report.shown, dataset).permute(1, 2, 0) * 255).round()
        Image.fromarray(pixels.numpy().astype(np.uint8)).save(path)
        print(f"  contact sheet: {path}")
    return len(report.problems)


def _describe(report: Report, classes: tuple[str, ...]) -> None:
    sizes = sorted(report.sizes)
    shown = ", ".join(f"{height} x {width}" for height, width in sizes[:4])
    print(f"  sizes: {shown}{f' and {len(sizes) - 4} more' if len(sizes) > 4 else ''}")
    if report.label_pixels is not None:
        shares = 100 * report.label_pixels / report.label_pixels.sum().clamp(min=1)
        absent = [name for name, share in zip(classes, shares.tolist(), strict=True) if not share]
        print(f"  classes: {len(classes) - len(absent)} of {len(classes)} occur")
        if absent:
            print(f"    not: {', '.join(absent)}")
    if report.depth_m is not None:
        print(f"  depth: {report.depth_m[0]:.2f} .. {report.depth_m[1]:.2f} m")
    for problem in report.problems[:SHOWN_PROBLEMS]:
        print(f"  WRONG: {problem}")
    if len(report.problems) > SHOWN_PROBLEMS:
        print(f"  ... and {len(report.problems) - SHOWN_PROBLEMS} more")


def _progress(done: int) -> None:
    if done % 50 == 0 and sys.stderr.isatty():
        print(f"\r{done} read", end="", file=sys.stderr, flush=True)
