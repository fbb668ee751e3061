"""Times the compaction of a mask against torch's nonzero, which waits for the device."""

from collections.abc import Iterator
from functools import partial

import torch

import perfconv
from perfconv._bench.problems import Problem, make_mask
from perfconv._bench.tasks import Options, Task
from perfconv._bench.timing import compared
from perfconv._bench.timing_cuda import make_clock

SIZES = ((1, 60, 80), (4, 128, 256))


def measure(problem: Problem, options: Options) -> Iterator[dict]:
    clock = make_clock(options.device)
    mask = make_mask(problem).to(clock.device)
    found = perfconv.compact_mask(mask)
    wanted = mask.flatten().nonzero()[:, 0]
    if not torch.equal(found.active_idx[: len(wanted)].long().sort().values, wanted):
        raise AssertionError(f"{problem.name}: compact_mask lists other pixels than nonzero")
    calls = {
        "dense": lambda: mask.flatten().nonzero(),
        "compact_mask": lambda: perfconv.compact_mask(mask),
    }
    names = {"dense": "nonzero"}
    if options.device == "cuda":
        calls["graph"] = clock.captured(calls["compact_mask"])
        names["graph"] = "compact_mask, CUDA graph"
    with torch.inference_mode():
        times = clock.measure(calls, options.pairs)
    for name, row in compared(times).items():
        yield {"algorithm": names.get(name, name), "density": mask.float().mean().item(), **row}


def describe(row: dict) -> str:
    return (
        f"{row['problem']:52s} {row['algorithm']:20s} {1e3 * row['candidate_ms']:9.1f} us  "
        f"x{row['speed_up']:5.2f} of nonzero"
    )


def tasks(options: Options) -> list[Task]:
    sizes = SIZES[:1] if options.is_quick else SIZES
    problems = [
        Problem(1, 1, height, width, batch=batch, density=density)
        for batch, height, width in sizes
        for density in (0.0, 0.25, 1.0)
    ]
    return [
        Task(
            f"compaction-{p.batch}x{p.height}x{p.width}-{p.density}",
            partial(measure, p, options),
            describe,
        )
        for p in problems
    ]
