"""Where the time of a gated bottleneck goes: each stage alone, by the operators it is made of.

Stages are timed one by one, with their inputs made beforehand and the caches cold (the dense block
runs in between): gate, compaction, halo, the three convolutions, and what scattering the active
rows costs. "block" is the whole fused block in the same rounds; what the stages do not explain is
Python between them, or what fusing saves.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

import perfconv
from perfconv._bench.block import Case
from perfconv._bench.problems import BlockProblem
from perfconv._bench.tasks import Options, Task
from perfconv._bench.timing import Call, compared
from perfconv._bench.timing_cuda import make_clock

STAGES = ("gate", "compaction", "halo", "conv1", "conv2", "conv3", "scatter")


def stage_calls(case: Case) -> dict[str, Call]:
    """One call for each stage; the weights are those of the dense block, packed."""
    problem = case.problem
    image, mask = case.inputs["channels_last"], case.mask
    inner, dtype = problem.channels // 4, image.dtype
    dilation = problem.dilation
    active = perfconv.compact_mask(mask)

    def halo() -> perfconv.ops.ActivePixels:
        around = perfconv.expand_mask(mask, 3, padding=dilation, dilation=dilation)
        return perfconv.compact_mask(around)

    def weight(outputs: int, inputs: int, kernel: int) -> Tensor:
        made = torch.randn(outputs, inputs, kernel, kernel, device=image.device).to(dtype)
        return made.to(memory_format=torch.channels_last)

    weights = weight(inner, problem.channels, 1), weight(inner, inner, 3)
    weights = (*weights, weight(problem.channels, inner, 1))
    packs = [perfconv.pack_weight(value) for value in weights]
    around = halo()
    features = torch.rand(1, inner, *image.shape[2:], device=image.device).to(dtype)
    features = features.to(memory_format=torch.channels_last)
    rows = perfconv.gather_pixels(image, active)
    conv = partial(perfconv.perforated_conv2d, activation="relu", fill="none")
    wide = {"padding": dilation, "dilation": dilation}
    return {
        "gate": case.gate,
        "compaction": lambda: perfconv.compact_mask(mask),
        "halo": halo,
        "conv1": lambda: conv(image, weights[0], around, packed_weight=packs[0]),
        "conv2": lambda: conv(features, weights[1], active, packed_weight=packs[1], **wide),
        "conv3": lambda: conv(features, weights[2], active, packed_weight=packs[2]),
        "scatter": lambda: perfconv.scatter_pixels(rows, active),
    }


def measure(problem: BlockProblem, options: Options) -> Iterator[dict]:
    clock = make_clock(options.device)
    case = Case(problem, False, clock.device)
    with torch.inference_mode():
        case.check()
        dense = case.dense["channels_last"]
        calls = {"dense": dense, "block": case.sparse}
        for name, call in stage_calls(case).items():
            calls |= {f"before {name}": dense, name: call}
        times = clock.measure(calls, max(5, options.pairs // 2))
    times = {name: found for name, found in times.items() if not name.startswith("before ")}
    for name, found in compared(times).items():
        yield {**problem.record(), "stage": name, **found}


def describe(row: dict) -> str:
    return (
        f"{row['problem']:52s} {row['stage']:12s} {row['candidate_ms']:8.3f} ms  "
        f"{100 / row['speed_up']:5.1f} % of dense"
    )


def tasks(options: Options) -> list[Task]:
    layers = [(64, 12, 14, 1)] if options.is_quick else [(512, 54, 70, 1), (1024, 54, 70, 2)]
    problems = [
        BlockProblem(*layer, density=density, pattern="blobs")
        for layer in layers
        for density in ((0.5,) if options.is_quick else (0.3, 0.7))
    ]
    if options.device == "cuda":
        problems = [replace(problem, dtype="bfloat16") for problem in problems]
    return [Task(f"breakdown-{p.name}", partial(measure, p, options), describe) for p in problems]
