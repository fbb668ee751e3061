"""Clocks of a GPU: events around interleaved calls, a flushed cache, medians with quartiles.

On a machine without one the same calls run on the CPU: a dry run, whose times mean nothing.
"""

import shutil
import statistics
import subprocess
import time
from dataclasses import dataclass

import torch

from perfconv._bench.timing import Call

DEFAULT_CACHE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Sample:
    """Microseconds of one call."""

    median_us: float
    low_us: float  # first quartile
    high_us: float  # third quartile
    repeats: int


def summary(times_us: list[float]) -> Sample:
    low, middle, high = statistics.quantiles(times_us, n=4, method="inclusive")
    return Sample(middle, low, high, len(times_us))


def query_gpu(*names: str) -> list[str]:
    """What nvidia-smi says about the current device; empty texts without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [""] * len(names)
    index = str(torch.cuda.current_device() if torch.cuda.is_available() else 0)
    command = [program, f"--query-gpu={','.join(names)}", "--format=csv,noheader", "-i", index]
    result = subprocess.run(command, capture_output=True, text=True)
    values = [value.strip() for value in result.stdout.strip().split(",")]
    return values if result.returncode == 0 and len(values) == len(names) else [""] * len(names)


def device_record() -> dict:
    """What the numbers depend on besides the library."""
    if not torch.cuda.is_available():
        return {"device": "cpu (dry run)", "driver": "", "cuda": "", "cudnn": None}
    properties = torch.cuda.get_device_properties()
    driver, clock = query_gpu("driver_version", "clocks.max.sm")
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "driver": driver,
        "clock_max": clock,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


class DeviceClock:
    """Times calls in turn, so that a drifting clock rate meets all of them."""

    def __init__(self, *, warm_up: int = 10, repeats: int = 50) -> None:
        self.is_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.is_gpu else "cpu")
        self.warm_up, self.repeats = (warm_up, repeats) if self.is_gpu else (1, 2)
        cache = DEFAULT_CACHE_BYTES
        if self.is_gpu:
            cache = getattr(torch.cuda.get_device_properties(), "L2_cache_size", cache)
        self.flushed = torch.empty(3 * cache if self.is_gpu else 1, dtype=torch.int8).to(
            self.device
        )

    def captured(self, call: Call) -> Call:
        """The call as a CUDA graph: what the GPU takes, without Python and dispatch."""
        if not self.is_gpu:
            return call
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    def once(self, call: Call) -> tuple[torch.cuda.Event, torch.cuda.Event] | float:
        self.flushed.zero_()
        if not self.is_gpu:
            begin = time.perf_counter()
            call()
            return 1e6 * (time.perf_counter() - begin)
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        events[0].record()
        call()
        events[1].record()
        return events

    def measure(self, calls: dict[str, Call]) -> dict[str, Sample]:
        """Medians of the calls, timed alternately."""
        for call in calls.values():
            for _ in range(self.warm_up):
                call()
        marks = [
            {name: self.once(call) for name, call in calls.items()} for _ in range(self.repeats)
        ]
        if self.is_gpu:
            torch.cuda.synchronize()
        return {name: summary([microseconds(mark[name]) for mark in marks]) for name in calls}


def microseconds(mark: tuple[torch.cuda.Event, torch.cuda.Event] | float) -> float:
    return mark if isinstance(mark, float) else 1e3 * mark[0].elapsed_time(mark[1])
