"""Clocks: interleaved pairs of calls, medians with quartiles, and what machine it was."""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

import perfconv

Call = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """Two calls timed in turn. Times in milliseconds; speed_up = baseline / candidate, per pair."""

    baseline_ms: float
    candidate_ms: float
    speed_up: float  # median over the pairs
    speed_up_low: float  # first quartile
    speed_up_high: float  # third quartile
    pairs: int


def seconds(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def median_ms(call: Call, repeats: int = 7) -> float:
    call()
    return 1e3 * statistics.median(seconds(call) for _ in range(repeats))


def cold_ms(call: Call, other: Call, repeats: int = 7) -> float:
    """The median of ``call`` with its data out of the caches, which ``other`` fills each time."""
    times = []
    for _ in range(repeats):
        other()
        times.append(seconds(call))
    return 1e3 * statistics.median(times)


def compare(baseline: Call, candidate: Call, *, pairs: int = 31) -> Comparison:
    """Times ``baseline`` and ``candidate`` alternately, after two warm-up calls of each."""
    for _ in range(2):
        baseline()
        candidate()
    times = [(seconds(baseline), seconds(candidate)) for _ in range(pairs)]
    ratios = [first / second for first, second in times]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Comparison(
        baseline_ms=1e3 * statistics.median(first for first, _ in times),
        candidate_ms=1e3 * statistics.median(second for _, second in times),
        speed_up=middle,
        speed_up_low=low,
        speed_up_high=high,
        pairs=pairs,
    )


def fastest(calls: dict[str, Call]) -> str:
    """The name of the call with the smallest median time."""
    return min(calls, key=lambda name: median_ms(calls[name]))


def processor_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def commit() -> str:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip()


def environment() -> dict:
    """What the numbers depend on, for the head of a results file."""
    info = perfconv.build_info()
    return {
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor_name(),
        "isa": info["cpu_isa"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "perfconv": info["version"],
        "compiler": info["compiler"],
        "python": platform.python_version(),
    }
