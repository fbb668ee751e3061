"""Times a training step, forward, backward and SGD: dense, with frozen gates, with learning gates.

A network of two stages of basic blocks, gates forced to random masks of a density. Frozen gates
run sparsely; learning gates compute every pixel, because the straight-through gradient needs the
skipped ones too (``execution="auto"``), and cost what that costs.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

import perfconv
from perfconv._bench.tasks import Options, Task
from perfconv._bench.timing import Call, compared, fastest
from perfconv._bench.timing_cuda import make_clock
from perfconv.models.resnet import BasicBlock

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def make_network(channels: int) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [BasicBlock(channels, channels) for _ in range(4)]
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), *blocks, nn.Conv2d(channels, 8, 1))


def step_of(model: nn.Module, images: Tensor, labels: Tensor) -> Call:
    learned = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=1e-4, momentum=0.9)

    def step() -> None:
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def freeze_norms(model: nn.Module) -> nn.Module:
    """In train mode, BatchNorm as in evaluation: what gated blocks do by default."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


def gated(channels: int, density: float, learns: bool, device: torch.device) -> nn.Module:
    model = perfconv.convert(make_network(channels)).to(device, memory_format=torch.channels_last)
    perfconv.force_gates(model, density)
    for gate in perfconv.gates(model).values():
        gate.requires_grad_(learns)
    return freeze_norms(model)


def measure(channels: int, size: int, density: float, options: Options) -> Iterator[dict]:
    clock = make_clock(options.device)
    images = torch.rand(2, 3, size, size, device=clock.device)
    labels = torch.randint(8, (2, size, size), device=clock.device)
    dense = {}
    for name, kind in LAYOUTS.items():
        model = freeze_norms(make_network(channels)).to(clock.device, memory_format=kind)
        dense[name] = step_of(model, images.to(memory_format=kind), labels)
    best = fastest(dense, clock)
    last = images.to(memory_format=torch.channels_last)
    calls = {"dense": dense[best]}
    for name, learns in (("frozen gates", False), ("learning gates", True)):
        calls[name] = step_of(gated(channels, density, learns, clock.device), last, labels)
    times = clock.measure(calls, options.pairs)
    for name, found in compared(times).items():
        memory = clock.peak_bytes(calls[name])
        yield {"algorithm": name, "density": density, "dense": best, **found, "peak_bytes": memory}


def describe(row: dict) -> str:
    return (
        f"{row['problem']:52s} {row['algorithm']:16s} {row['candidate_ms']:8.1f} ms  "
        f"x{row['speed_up']:5.2f} ({row['speed_up_low']:.2f}-{row['speed_up_high']:.2f}) of dense"
    )


def tasks(options: Options) -> list[Task]:
    channels, size = (16, 24) if options.is_quick else (128, 64)
    return [
        Task(
            f"train-step-c{channels}-{size}x{size}-{density}",
            partial(measure, channels, size, density, options),
            describe,
        )
        for density in ((0.5,) if options.is_quick else (0.25, 0.5, 0.9))
    ]
