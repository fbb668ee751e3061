"""The registry: every benchmark by name and level."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from perfconv._bench import (
    block,
    breakdown,
    compaction,
    conv,
    machine,
    network,
    networks,
    parser,
    pool,
    table2,
    train_step,
)
from perfconv._bench.tasks import Options, Task, UsageError


@dataclass(frozen=True)
class Benchmark:
    name: str
    level: str  # op | block | network | train-step
    summary: str
    tasks: Callable[[Options], list[Task]]
    is_long: bool = False  # runs only when it, or its level, is named


BENCHMARKS = (
    Benchmark("machine", "op", "peak rates of the machine; what a call costs", machine.tasks),
    Benchmark("compaction", "op", "compact_mask against nonzero", compaction.tasks),
    Benchmark("conv", "op", "forward, training, dgrad, wgrad; dense and peers", conv.tasks),
    Benchmark("pool", "op", "multi-dilation pool against its dense branches", pool.tasks),
    Benchmark("bottleneck", "block", "fused gated bottlenecks against dense ones", block.tasks),
    Benchmark("breakdown", "block", "stages of a gated bottleneck, one by one", breakdown.tasks),
    Benchmark("resnet50", "network", "gated ResNet-50 trunk at 425x560", network.tasks),
    Benchmark("networks", "network", "builders, torchvision and timm converted", networks.tasks),
    Benchmark(
        "parser",
        "network",
        "pag_resnet50, two sizes and dtypes, with memory",
        parser.tasks,
        is_long=True,
    ),
    Benchmark("table2", "network", "Table 2 of the deck: MACs and latency", table2.tasks),
    Benchmark("train-step", "train-step", "forward, backward and SGD", train_step.tasks),
)
NAMES = tuple(benchmark.name for benchmark in BENCHMARKS)
LEVELS = tuple(dict.fromkeys(benchmark.level for benchmark in BENCHMARKS))


def plan(wanted: tuple[str, ...], options: Options) -> list[Task]:
    """The tasks of these benchmarks or levels; without any, all that are not long."""
    unknown = set(wanted) - {*NAMES, *LEVELS}
    if unknown:
        raise UsageError(
            f"no benchmark or level called {', '.join(sorted(unknown))}. "
            f"Benchmarks: {', '.join(NAMES)}; levels: {', '.join(LEVELS)}."
        )
    return [
        replace(task, benchmark=benchmark.name, level=benchmark.level)
        for benchmark in BENCHMARKS
        if not wanted or benchmark.name in wanted or benchmark.level in wanted
        if wanted or not benchmark.is_long
        for task in benchmark.tasks(options)
    ]
