"""Measures the break-even densities of this machine, for the planner: ``perfconv bench --tune``.

Every shape class is measured on a few layers, in each dtype, forward and backward apart. The
density at which ``implicit_gemm`` takes as long as the faster dense layout is found by halving an
interval; the table gets the highest density that was measured to be at least as fast.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

import perfconv
from perfconv._bench.conv import dense_calls
from perfconv._bench.conv_case import ConvCase
from perfconv._bench.problems import Problem
from perfconv._bench.timing import Call, CpuClock, compared
from perfconv.ops import tuning

LOWEST = 0.05
STEPS = 5  # halvings: to 3 % of the pixels
# Layers of each class of csrc/cpu/break_even.cpp, in its words; the lowest of theirs counts.
LAYERS = {
    "depthwise": (
        Problem(64, 64, 120, 160, groups=64),
        Problem(256, 256, 60, 80, groups=256),
    ),
    "groups of fewer than 16 channels": (
        Problem(128, 128, 60, 80, groups=32),
        Problem(256, 256, 30, 40, groups=32),
    ),
    "fewer than 16 input channels a group": (
        Problem(3, 64, 120, 160),
        Problem(8, 32, 120, 160),
    ),
    "fewer than 16 output channels a group": (
        Problem(64, 1, 120, 160),
        Problem(64, 8, 120, 160),
    ),
    "16 to 63 channels": (Problem(16, 16, 120, 160), Problem(32, 32, 120, 160)),
    "1x1, 64 or more channels": (
        Problem(64, 256, 60, 80, kernel=1),
        Problem(256, 256, 60, 80, kernel=1),
    ),
    "64 or more channels": (Problem(64, 64, 60, 80), Problem(256, 256, 30, 40)),
    "128 or more channels, 2048 or more pixels": (
        Problem(128, 128, 60, 80),
        Problem(256, 256, 60, 80),
    ),
}
# What the library promises whatever was measured: 3x3 with 64 channels and more is not computed
# densely up to this density.
PROMISED = {"64 or more channels": 0.5, "128 or more channels, 2048 or more pixels": 0.5}


def break_even(is_faster: Callable[[float], bool], steps: int = STEPS) -> float:
    """The highest density at which ``is_faster`` held; 0 if it did not even at the lowest."""
    if is_faster(1.0):
        return 1.0
    if not is_faster(LOWEST):
        return 0.0
    low, high = LOWEST, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if is_faster(middle) else (low, middle)
    return round(low, 3)


def forward_calls(case: ConvCase) -> tuple[dict[str, Call], Call]:
    return (
        dense_calls(case, "forward", with_compile=False),
        lambda: case.perforated("implicit_gemm", case.packed),
    )


def backward_calls(case: ConvCase) -> tuple[dict[str, Call], Call]:
    case.learns()
    every = (True, True, True)
    dense = {name: lambda n=name: case.dense_gradient(n, every) for name in case.inputs}
    output = case.perforated("implicit_gemm", None)
    wanted, grad = (case.input, case.weight, case.bias), case.grads["channels_last"]
    return dense, lambda: torch.autograd.grad(output, wanted, grad, retain_graph=True)


def measure(problem: Problem, kind: str, pairs: int) -> float:
    """The break-even density of a layer: where it still beats both dense layouts."""

    def is_faster(density: float) -> bool:
        case = ConvCase(replace(problem, density=density))
        with torch.set_grad_enabled(kind == "backward"):
            dense, own = forward_calls(case) if kind == "forward" else backward_calls(case)
            times = CpuClock().measure({**dense, "own": own}, pairs)
        return all(compared(times, layout)["own"]["speed_up"] >= 1 for layout in dense)

    return break_even(is_faster)


def dtypes() -> list[str]:
    """Those with a kernel that the planner may choose: not bfloat16 on a machine without one."""
    image, weight = torch.zeros(1, 64, 4, 4), torch.zeros(64, 64, 3, 3)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[..., 0, 0] = True
    found = []
    for name in tuning.DTYPES:
        dtype = getattr(torch, name)
        verdict = perfconv.explain(image.to(dtype), weight.to(dtype), mask, padding=1)[0]
        if "no tuned kernel" not in verdict[2]:
            found.append(name)
    return found


def tune(*, pairs: int = 15, is_quick: bool = False) -> dict[str, dict[str, dict[str, float]]]:
    """Measures every class, writes the user's cache and makes the planner go by it."""
    assert set(LAYERS) == set(tuning.shape_classes())
    tuning.use_shipped_table()
    found: dict[str, dict[str, dict[str, float]]] = {}
    jobs = [(name, dtype, kind) for name in LAYERS for dtype in dtypes() for kind in tuning.PASSES]
    begin = time.perf_counter()
    for number, (name, dtype, kind) in enumerate(jobs, 1):
        layers = LAYERS[name][: 1 if is_quick else None]
        density = min(measure(replace(layer, dtype=dtype), kind, pairs) for layer in layers)
        if kind == "forward":
            density = max(density, PROMISED.get(name, 0.0))
        found.setdefault(name, {}).setdefault(dtype, {})[kind] = density
        left = (time.perf_counter() - begin) / number * (len(jobs) - number)
        print(
            f"[{number}/{len(jobs)}, {left:.0f} s left] {name:44s} {dtype:9s} {kind:9s} {density}",
            flush=True,
        )
    threads = torch.get_num_threads()
    source = f"measured on this machine, {threads} threads, {time.strftime('%Y-%m-%d')}"
    print(tuning.write_cache(found, source))
    tuning.use_table(found, source)
    return found
