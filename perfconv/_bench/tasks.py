"""The one loop of all benchmarks: tasks in turn, progress with the time left, rows as they come."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch

from perfconv._bench.results_file import Key, ResultsFile
from perfconv._bench.timing import commit


class UsageError(Exception):
    """A command line that cannot be; the text says what to do."""


@dataclass(frozen=True)
class Options:
    """What a run is asked for; a benchmark takes from it what concerns it."""

    scope: str = "standard"  # quick | standard | full
    device: str = "cpu"
    with_graphs: bool = False  # forward passes once more as CUDA graphs
    pairs: int = 31
    with_compile: bool = True
    with_peers: bool = True
    problems: str | None = None  # a named list of problems, instead of the scope's
    algorithms: tuple[str, ...] = ("auto",)
    modes: tuple[str, ...] | None = None  # passes; None: those of the scope
    sweep: dict[str, tuple] = field(default_factory=dict)  # field of Problem: the values it takes

    has_own_pairs: bool = False  # pairs were asked for

    @property
    def is_quick(self) -> bool:
        return self.scope == "quick"

    def settings(self) -> dict:
        """What the rows of one file have in common, besides the machine."""
        return {
            "device": self.device,
            "pairs": self.pairs,
            "peers": self.with_peers,
            "compile": self.with_compile,
            "algorithms": list(self.algorithms),
        }

    def with_pairs(self, most: int) -> "Options":
        """For calls of a second and more: fewer pairs, unless their number was asked for."""
        return self if self.has_own_pairs else replace(self, pairs=min(self.pairs, most))


@dataclass(frozen=True)
class Task:
    """One measurement: what its rows are called, and how they are made, checked and described."""

    problem: str
    measure: Callable[[], Iterable[dict]]
    describe: Callable[[dict], str]
    pass_name: str = ""
    level: str = "op"
    benchmark: str = ""
    threads: int | None = None  # of its own


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def progress(done: int, total: int, elapsed: float) -> str:
    """Tasks differ in length: the time left is that of the mean task so far."""
    left = elapsed / done * (total - done)
    return f"[{done}/{total}, {duration(left)} left]"


def run_tasks(tasks: Sequence[Task], results: ResultsFile, threads: int) -> int:
    """Runs what is not in the results file yet; how many measurements failed.

    One that fails leaves no row, so that the same command tries it again; the others run.
    """
    by_key: dict[Key, Task] = {}
    for task in tasks:  # one with a number of threads of its own may be another one in this run
        by_key.setdefault((task.problem, task.pass_name, task.threads or threads), task)
    todo = [task for key, task in by_key.items() if not results.has(key)]
    if len(todo) < len(by_key):
        print(f"{len(by_key) - len(todo)} of {len(by_key)} are in the results file already")
    failed = []
    begin = time.perf_counter()
    for number, task in enumerate(todo, 1):
        common = {"benchmark": task.benchmark, "level": task.level, "problem": task.problem}
        if task.pass_name:
            common["pass"] = task.pass_name
        common |= {"threads": task.threads or threads, "commit": commit()}
        torch.set_num_threads(common["threads"])
        try:
            rows = [{**common, **row} for row in task.measure()]
        except Exception as error:  # a wrong result, or a machine that lacks something
            failed.append(f"{task.problem} {task.pass_name}".strip())
            print(f"FAILED {failed[-1]}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        finally:
            torch.set_num_threads(threads)
        results.add(rows)
        mark = progress(number, len(todo), time.perf_counter() - begin)
        for row in rows:
            print(f"{mark} {task.describe(row)}", flush=True)
    if failed:
        print(f"{len(failed)} of {len(todo)} failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)
