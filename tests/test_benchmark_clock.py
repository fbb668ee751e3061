"""The clock of a GPU, and that every benchmark runs by it, without a GPU: torch.cuda is a record.

Tensors lie on the CPU; events, streams, graphs and memory are counted by what is below. No number
of a GPU comes out, but the order of what would happen there does.
"""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from perfconv._bench import networks, suite, table2, timing_cuda
from perfconv._bench.tasks import Options


class Record:
    """What was asked of torch.cuda, in order; every event takes one millisecond."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.is_capturing = False

    def note(self, what: str) -> None:
        self.log.append(what)


@pytest.fixture
def cuda(monkeypatch):
    record = Record()

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            record.note("event")
            self.at = len(record.log)

        def elapsed_time(self, other):
            assert record.log[-1] in ("synchronize", "read")  # nothing waits between two calls
            record.note("read")
            return float(other.at - self.at)

    class Stream:
        def wait_stream(self, other):
            record.note("wait")

    class Graph:
        def replay(self):
            record.note("replay")

    @contextmanager
    def graph(made):
        assert isinstance(made, Graph)
        record.note("capture")
        record.is_capturing = True
        yield
        record.is_capturing = False
        record.note("captured")

    @contextmanager
    def stream(made):
        record.note("side")
        yield
        record.note("main")

    memory = iter(range(0, 10**9, 100))
    for name, made in {
        "Event": Event,
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": graph,
        "stream": stream,
        "current_stream": Stream,
        "synchronize": lambda: record.note("synchronize"),
        "memory_allocated": lambda: next(memory),
        "max_memory_allocated": lambda: next(memory),
        "reset_peak_memory_stats": lambda: record.note("reset"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, made)

    class Flushed:
        def zero_(self):
            record.note("flush")

    class Clock(timing_cuda.DeviceClock):
        def __init__(self) -> None:
            self.device = torch.device("cpu")
            self.flushed = Flushed()

    monkeypatch.setattr(timing_cuda, "DeviceClock", Clock)
    return record


def test_calls_take_turns_with_a_flushed_cache_between_events(cuda):
    clock = timing_cuda.make_clock("cuda")
    calls = {name: lambda name=name: cuda.note(name) for name in ("dense", "own")}
    times = clock.measure(calls, 3)
    warm_up, timed = cuda.log[:20], cuda.log[20:]
    assert warm_up == ["dense"] * 10 + ["own"] * 10
    once = [what for name in ("dense", "own") for what in ("flush", "event", name, "event")]
    assert timed[:24] == once * 3
    assert timed[24] == "synchronize"  # once, after all of them
    assert timed.count("synchronize") == 1
    assert times == {"dense": [2.0] * 3, "own": [2.0] * 3}


def test_a_graph_is_captured_after_calls_on_another_stream(cuda):
    clock = timing_cuda.make_clock("cuda")
    replay = clock.captured(lambda: cuda.note("call"))
    side = ["wait", "side", "call", "call", "call", "main", "wait"]
    assert cuda.log == [*side, "capture", "call", "captured"]
    cuda.log.clear()
    replay()
    assert cuda.log == ["replay"]


def test_memory_is_that_of_the_call(cuda):
    assert timing_cuda.make_clock("cuda").peak_bytes(lambda: cuda.note("call")) == 100
    assert cuda.log == ["synchronize", "reset", "call", "synchronize"]


def timed_by_graphs(log: list[str]) -> list[bool]:
    """Of every timed call, whether a graph was replayed and nothing else."""
    begins = [number for number, what in enumerate(log) if what == "flush"]
    return [log[number + 1 : number + 4] == ["event", "replay", "event"] for number in begins]


def check_rows(cuda: Record, task, rows: list[dict]) -> None:
    """Times are those of the events; a pass "graph" replays graphs, another pass none."""
    assert rows
    assert any(what == "flush" for what in cuda.log)
    is_replayed = timed_by_graphs(cuda.log)
    if task.pass_name == "graph":
        assert sum(is_replayed) >= 5 * len(rows)
        assert cuda.log.count("captured") >= 2
    elif task.benchmark not in ("pool", "compaction"):  # theirs are graphs, or have both
        assert not any(is_replayed)


QUICK = ("machine", "compaction", "conv", "pool", "bottleneck", "breakdown", "train-step")


@pytest.mark.parametrize("name", [*QUICK, pytest.param("resnet50", marks=pytest.mark.slow)])
def test_every_benchmark_runs_by_the_clock_of_a_gpu(name, cuda, monkeypatch):
    options = Options(scope="quick", device="cuda", with_graphs=True, with_compile=False, pairs=5)
    tasks = suite.plan((name,), options)
    if name == "conv":  # a pass each
        tasks = list({task.pass_name: task for task in tasks if "k3" in task.problem}.values())
        assert {task.pass_name for task in tasks} >= {"graph", "forward", "training", "wgrad"}
    if name == "resnet50":
        monkeypatch.setattr(timing_cuda, "WARM_UP", 1)
    for task in tasks:
        if task.problem.startswith("peak-"):  # sizes for a GPU
            continue
        cuda.log.clear()
        rows = list(task.measure())
        named = [{**row, "problem": task.problem, "pass": task.pass_name} for row in rows]
        assert all(task.problem in task.describe(row) for row in named)
        if task.problem != "peers":
            check_rows(cuda, task, rows)


def test_whole_networks_have_graphs_of_their_own():
    options = Options(scope="full", device="cuda", with_graphs=True)
    for name in ("bottleneck", "resnet50", "networks", "table2"):
        tasks = suite.plan((name,), options)
        passes = {pass_name: set() for pass_name in ("graph", "")}
        for task in tasks:
            passes[task.pass_name].add(task.problem)
        assert passes["graph"] == passes[""] != set()
    assert not [
        t for t in suite.plan((), replace(options, with_graphs=False)) if t.pass_name == "graph"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gated", "layer_skipping"])
def test_networks_and_table_2_run_by_the_clock_of_a_gpu(kind, cuda, monkeypatch):
    monkeypatch.setattr(timing_cuda, "WARM_UP", 1)
    options = Options(device="cuda", with_graphs=True, with_compile=False, pairs=2)
    if kind == "gated":
        names = "gated_resnet50", "baseline_resnet50"
        (row,) = networks.measure(*names, (65, 81), 0.5, options, is_graph=True)
    else:
        (row,) = table2.measure(kind, 0.5, (65, 81), options, is_graph=True)
    assert row["own"] == "eager"
    assert all(timed_by_graphs(cuda.log)[-4:])
