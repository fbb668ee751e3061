"""The command line of the suite: ``perfconv bench`` and the scripts in ``benchmarks/``."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import perfconv
from perfconv._bench import page, suite, tune
from perfconv._bench.problems import LISTS
from perfconv._bench.results_file import ResultsFile
from perfconv._bench.tasks import Options, run_tasks
from perfconv._bench.timing import environment
from perfconv._bench.timing_cuda import device_record

ALGORITHMS = ("auto", "implicit_gemm", "gather_gemm", "direct", "dense")
QUICK_PAIRS = 5


def map_size(text: str) -> tuple[int, int]:
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"a map size looks like 60x80, got {text!r}")
    return int(height), int(width)


# Option: the field of a problem, or a name for several; how its values are read.
SWEEPS = {
    "density": float,
    "pattern": str,
    "dtype": str,
    "channels": int,
    "size": map_size,
    "batch": int,
    "dilation": int,
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
    parser.add_argument("--modes", nargs="+", metavar="PASS", help="convolutions: only these")
    parser.add_argument("--algorithm", nargs="+", choices=ALGORITHMS, default=["auto"])
    parser.add_argument("--pairs", "--repeats", type=int, help="rounds of calls in turn (31)")
    parser.add_argument("--threads", type=int, nargs="+", help="one run for each number")
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
    for name, kind in SWEEPS.items():
        parser.add_argument(
            f"--{name}", type=kind, nargs="+", help="convolutions: these instead of the list's"
        )


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


def run(arguments: argparse.Namespace) -> int:
    reason = why_no_device(arguments)
    if reason is not None:
        print(f"perfconv bench: no GPU to measure on: {reason} (--dry-run)", file=sys.stderr)
        return 1
    options = options_of(arguments)
    if arguments.tune:
        return run_tuning(arguments, options)
    chosen = suite.plan(tuple(arguments.names), options)
    tasks = [task for task in chosen if arguments.filter in task.problem]
    if arguments.report and arguments.output is None:
        print("perfconv bench: --report reads a results file. Give --output.", file=sys.stderr)
        return 1
    if not tasks:
        print("perfconv bench: nothing has such a name. Leave --filter out.", file=sys.stderr)
        return 1
    head = environment()
    if arguments.device == "cuda":
        head |= device_record()
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    before = torch.get_num_threads()
    for threads in arguments.threads or [before]:
        torch.set_num_threads(threads)
        head["threads"] = threads
        print(json.dumps(head))
        run_tasks(tasks, ResultsFile(arguments.output, head), threads)
    for target in arguments.report or []:
        page.write(arguments.output, target, before=arguments.before)
        print(target.resolve())
    return 0


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
