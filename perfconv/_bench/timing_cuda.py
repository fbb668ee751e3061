"""The clock of a GPU: events around calls in turn, a flushed cache, CUDA graphs, peak memory."""

import shutil
import subprocess
from collections.abc import Mapping

import torch

from perfconv._bench.timing import Call, CpuClock
from perfconv.nn.captured import graph_of

DEFAULT_CACHE_BYTES = 64 * 2**20
WARM_UP = 10


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
        "tf32": torch.backends.cudnn.allow_tf32,
    }


class DeviceClock(CpuClock):
    """As :class:`CpuClock`, of the current GPU."""

    def __init__(self) -> None:
        self.device = torch.device("cuda")
        cache = getattr(torch.cuda.get_device_properties(), "L2_cache_size", DEFAULT_CACHE_BYTES)
        self.flushed = torch.empty(3 * cache, dtype=torch.int8, device=self.device)

    def captured(self, call: Call) -> Call:
        """The call as a CUDA graph: what the GPU takes, without Python and dispatch."""
        return graph_of(call).replay

    def once(self, call: Call) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        self.flushed.zero_()
        events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        events[0].record()
        call()
        events[1].record()
        return events

    def measure(
        self, calls: Mapping[str, Call], rounds: int, budgets_ms: Mapping[str, float] | None = None
    ) -> dict[str, list[float | None]]:
        for call in calls.values():
            for _ in range(WARM_UP):
                call()
        marks = [{name: self.once(call) for name, call in calls.items()} for _ in range(rounds)]
        torch.cuda.synchronize()
        return {
            name: [mark[name][0].elapsed_time(mark[name][1]) for mark in marks] for name in calls
        }

    def peak_bytes(self, call: Call) -> int:
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def make_clock(device: str) -> CpuClock:
    return DeviceClock() if device == "cuda" else CpuClock()
