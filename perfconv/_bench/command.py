"""The command line of the suite: ``perfconv bench`` and the scripts in ``benchmarks/``."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import perfconv
from perfconv._bench import page, suite, tune
from perfconv._bench.conv_case import BOUNDS
from perfconv._bench.ponder import HOW, has_ponder_maps
from perfconv._bench.problems import LISTS, PASSES, PATTERNS
from perfconv._bench.results_file import ResultsError, ResultsFile
from perfconv._bench.tasks import Options, UsageError, run_tasks
from perfconv._bench.timing import environment
from perfconv._bench.timing_cuda import device_record

ALGORITHMS = ("auto", "implicit_gemm", "gather_gemm", "direct", "dense")
QUICK_PAIRS = 5


def map_size(text: str) -> tuple[int, int]:
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and int(height) * int(width)):
        raise argparse.ArgumentTypeError(f"a map size looks like 60x80, got {text!r}")
    return int(height), int(width)


def at_least(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"a whole number from {least}, got {text!r}")
        return int(text)

    return whole


def density(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"a density is from 0 to 1, got {text!r}")
    return value


# Option: how its values are read, of a field of a problem or of several.
SWEEPS: dict[str, dict] = {
    "density": {"type": density},
    "pattern": {"choices": PATTERNS},
    "dtype": {"choices": tuple(BOUNDS)},
    "channels": {"type": at_least(1)},
    "size": {"type": map_size},
    "batch": {"type": at_least(1)},
    "dilation": {"type": at_least(1)},
}
# Options that say something to these benchmarks alone.
BELONGS = {
    **dict.fromkeys(("list", "modes", *SWEEPS), ("conv",)),
    "density": ("conv", "bottleneck", "resnet50"),
    "pattern": ("conv", "bottleneck", "resnet50"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    listed = "; ".join(f"{b.name} ({b.level}): {b.summary}" for b in suite.BENCHMARKS)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"benchmarks or levels; none: all of {listed}"
    )
    scope = parser.add_mutually_exclusive_group()
    scope.add_argument("--quick", action="store_true", help="under a minute: does it run?")
    scope.add_argument("--full", action="store_true", help="every sweep and network")
    parser.add_argument("--filter", default="", help="only problems whose name contains this")
    parser.add_argument("--list", choices=sorted(LISTS), help="convolutions: a named list")
    parser.add_argument(
        "--modes", nargs="+", choices=PASSES, metavar="PASS", help="convolutions: only these"
    )
    parser.add_argument("--algorithm", nargs="+", choices=ALGORITHMS, default=["auto"])
    parser.add_argument(
        "--pairs", "--repeats", type=at_least(2), help="rounds of calls in turn (31)"
    )
    parser.add_argument("--threads", type=at_least(1), nargs="+", help="one run for each number")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="with cuda: small, on the CPU")
    parser.add_argument("--no-compile", action="store_true", help="no torch.compile")
    parser.add_argument("--no-peers", action="store_true", help="convolutions: dense and ours only")
    parser.add_argument("--output", type=Path, help="results file (JSON lines), continued")
    parser.add_argument(
        "--report", type=Path, nargs="+", help="page of the results file: FILE.html, FILE.md"
    )
    parser.add_argument(
        "--tune",
        action="store_true",
        help="measure break-even densities for the planner of this machine, and nothing else",
    )
    parser.add_argument("--before", type=Path, help="an earlier results file, for the report")
    for name, reading in SWEEPS.items():
        help_text = f"{', '.join(BELONGS[name])}: these instead of the list's"
        parser.add_argument(f"--{name}", nargs="+", help=help_text, **reading)


def options_of(arguments: argparse.Namespace) -> Options:
    is_quick = arguments.quick or arguments.dry_run
    scope = "quick" if is_quick else "full" if arguments.full else "standard"
    sweep = {name: tuple(getattr(arguments, name)) for name in SWEEPS if getattr(arguments, name)}
    problems = arguments.list
    if problems is None and arguments.device == "cuda" and not is_quick:
        problems = "cuda"
    return Options(
        scope=scope,
        device="cpu" if arguments.dry_run else arguments.device,
        with_graphs=arguments.device == "cuda",
        pairs=arguments.pairs or (QUICK_PAIRS if is_quick else 31),
        with_compile=not (is_quick or arguments.no_compile),
        with_peers=not arguments.no_peers,
        problems=problems,
        algorithms=tuple(arguments.algorithm),
        modes=tuple(arguments.modes) if arguments.modes else None,
        sweep=sweep,
        has_own_pairs=arguments.pairs is not None,
    )


def why_no_device(arguments: argparse.Namespace) -> str | None:
    if arguments.device == "cpu" or arguments.dry_run:
        return None
    if torch.cuda.is_available() and perfconv.has_cuda():
        return None
    return perfconv.cuda_error or "torch sees none"


def why_not(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the command line as a whole, before anything is measured."""
    for name, benchmarks in BELONGS.items():
        if getattr(arguments, name) and arguments.names:
            chosen = {b.name for b in suite.BENCHMARKS if {b.name, b.level} & {*arguments.names}}
            if chosen and not chosen & {*benchmarks}:
                return f"--{name} is for {', '.join(benchmarks)}. Leave it out or name one of these"
    if "ponder" in (arguments.pattern or ()) and not has_ponder_maps():
        return f"pattern ponder needs the weights of HED and a photo. {HOW}"
    if arguments.report and arguments.output is None:
        return "--report reads a results file. Give --output"
    if arguments.before and not arguments.report:
        return "--before is for the report. Give --report, or run benchmarks/regression.py"
    for target in arguments.report or []:
        if target.suffix not in (".html", ".md"):
            return f"--report writes FILE.html or FILE.md, got {target}"
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return f"--report cannot be written: {error}"
    reason = why_no_device(arguments)
    return None if reason is None else f"no GPU to measure on: {reason} (--dry-run)"


def run(arguments: argparse.Namespace) -> int:
    """Runs the suite.

    Returns:
        0; 1 if a measurement failed; 2 for what the user can put right; 130 if stopped.
    """
    reason = why_not(arguments)
    if reason is not None:
        print(f"perfconv bench: {reason}.", file=sys.stderr)
        return 2
    before = torch.get_num_threads()
    try:
        return _run(arguments)
    except (ResultsError, UsageError) as error:
        print(f"perfconv bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = f"{arguments.output} has what was done; " if arguments.output else ""
        print(f"perfconv bench: stopped; {kept}the same command goes on.", file=sys.stderr)
        return 130
    finally:
        torch.set_num_threads(before)


def _run(arguments: argparse.Namespace) -> int:
    options = options_of(arguments)
    if arguments.tune:
        return run_tuning(arguments, options)
    chosen = suite.plan(tuple(arguments.names), options)
    tasks = [task for task in chosen if arguments.filter in task.problem]
    if not chosen:
        raise UsageError(
            f"{' '.join(arguments.names)} has no such measurement in a {options.scope} run. "
            "Leave --quick and --modes out, or give --full."
        )
    if not tasks:
        raise UsageError(
            f"nothing of {len(chosen)} measurements has such a name. Names look like "
            f"{chosen[0].problem}. Leave --filter out, or see --help."
        )
    head = environment() | {"settings": options.settings()}
    if arguments.device == "cuda":
        head |= device_record()
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    every = arguments.threads or [torch.get_num_threads()]
    if arguments.before:
        head["threads"] = every[0]
        page.check_comparable(arguments.before, head)
    failed = 0
    for threads in every:
        torch.set_num_threads(threads)
        head["threads"] = threads
        print(json.dumps(head))
        failed += run_tasks(tasks, ResultsFile(arguments.output, head), threads)
    shown = "auto" if "auto" in options.algorithms else options.algorithms[0]
    for target in arguments.report or []:
        page.write(arguments.output, target, algorithm=shown, before=arguments.before)
        print(target.resolve())
    return 1 if failed else 0


def run_tuning(arguments: argparse.Namespace, options: Options) -> int:
    if arguments.device != "cpu":
        print(
            "perfconv bench: --tune is for the CPU; on a GPU the choice goes by expected_density.",
            file=sys.stderr,
        )
        return 1
    torch.set_num_threads((arguments.threads or [torch.get_num_threads()])[0])
    tune.tune(
        pairs=arguments.pairs or (QUICK_PAIRS if options.is_quick else 15),
        is_quick=options.is_quick,
    )
    return 0


def main(argv: Sequence[str]) -> int:
    """The command without the word ``bench``: what the scripts of ``benchmarks/`` call."""
    parser = argparse.ArgumentParser(prog="perfconv bench")
    add_arguments(parser)
    return run(parser.parse_args(argv))
