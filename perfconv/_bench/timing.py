"""Clocks: calls timed in turn, medians with quartiles, and what machine it was."""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import perfconv

Call = Callable[[], object]
FEWEST_ROUNDS = 5
MEMORY = "[memory]"  # an event of the profiler: bytes taken or given back


def seconds(call: Call) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


class CpuClock:
    """Times calls alternately, so that a drifting clock rate meets all of them."""

    device = torch.device("cpu")

    def measure(
        self, calls: Mapping[str, Call], rounds: int, budgets_ms: Mapping[str, float] | None = None
    ) -> dict[str, list[float | None]]:
        """Milliseconds of every call in every round; None where a slow call sat a round out.

        Args:
            calls: by name.
            rounds: of calls in turn, after two to warm up.
            budgets_ms: what a call may take over all rounds, for some of them: one that takes
                longer runs in every n-th round only, in five at least.
        """
        budgets_ms = budgets_ms or {}
        strides = {}
        for name, call in calls.items():
            call()
            once = 1e3 * seconds(call)
            share = budgets_ms.get(name, rounds * once) / (rounds * once)
            wanted = max(FEWEST_ROUNDS, min(rounds, round(rounds * share)))
            strides[name] = max(1, rounds // wanted)
        times: dict[str, list[float | None]] = {name: [] for name in calls}
        for number in range(rounds):
            for name, call in calls.items():
                runs = number % strides[name] == 0
                times[name].append(1e3 * seconds(call) if runs else None)
        return times

    def captured(self, call: Call) -> Call:
        """There are no graphs on a CPU: the call itself."""
        return call

    def peak_bytes(self, call: Call) -> int:
        """What torch has allocated for the call at its height, its result included.

        Buffers that kernels keep for themselves are not in it, here or on a GPU.
        """
        with (
            _without_stderr(),  # the profiler reports each start and stop there
            profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
        ):
            call()
        events = profiled.profiler.kineto_results.events()
        changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == MEMORY]
        held = peak = 0
        for _, change in sorted(changes):
            held += change
            peak = max(peak, held)
        return peak


@contextmanager
def _without_stderr() -> Iterator[None]:
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def compared(
    times: Mapping[str, list[float | None]], baseline: str = "dense"
) -> dict[str, dict[str, float | int]]:
    """What ``measure`` found, by name, each call against the baseline of its own rounds.

    Times are in milliseconds; speed_up is baseline / candidate of a round: median and quartiles.
    """
    found = {}
    for name, own in times.items():
        pairs = [
            (first, second)
            for first, second in zip(times[baseline], own, strict=True)
            if first is not None and second is not None
        ]
        ratios = [first / second for first, second in pairs]
        ratio_low, ratio, ratio_high = statistics.quantiles(ratios, n=4)
        low, middle, high = statistics.quantiles([second for _, second in pairs], n=4)
        found[name] = {
            "baseline_ms": statistics.median(first for first, _ in pairs),
            "candidate_ms": middle,
            "candidate_low_ms": low,
            "candidate_high_ms": high,
            "speed_up": ratio,
            "speed_up_low": ratio_low,
            "speed_up_high": ratio_high,
            "pairs": len(pairs),
        }
    return found


def fastest(calls: Mapping[str, Call], clock: CpuClock | None = None) -> str:
    """The name of the call with the smallest median time, on the device of the clock."""
    clock = clock or CpuClock()
    first = clock.measure(calls, 1)  # whole networks take a second each
    is_long = sum(time for found in first.values() for time in found if time is not None) > 500
    times = clock.measure(calls, 2 if is_long else 7)
    medians = {
        name: statistics.median(time for time in found if time is not None)
        for name, found in times.items()
    }
    return min(medians, key=lambda name: medians[name])


def processor_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def commit() -> str:
    """Of the source tree that this package is in; empty for an installed one."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
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
