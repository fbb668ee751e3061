"""Times a training step, forward, backward and SGD: dense, with frozen gates, with learning gates.

A network of two stages of basic blocks, gates forced to random masks of a density. Frozen gates
run sparsely; learning gates compute every pixel, because the straight-through gradient needs the
skipped ones too (``execution="auto"``), and cost what that costs.
"""

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

import perfconv
from perfconv._bench.conv_case import rounding_bound
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


def gradients(
    model: nn.Module, density: float | None, images: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Of the loss, by parameter; with gates at a density, always the same masks."""
    if density is not None:
        generator = torch.Generator(images.device).manual_seed(0)
        perfconv.force_gates(model, density, generator=generator)
    shared = {name: p for name, p in model.named_parameters() if ".gate." not in name}
    loss = nn.functional.cross_entropy(model(images), labels)
    found = torch.autograd.grad(loss, list(shared.values()))
    return dict(zip(shared, found, strict=True))


def check(
    plain: nn.Module,
    models: Mapping[str, nn.Module],
    density: float,
    images: Tensor,
    labels: Tensor,
) -> None:
    """The gradients of the gated networks are right, up to rounding.

    With every gate open they are those of the plain network. At the density frozen gates run
    sparsely and learning gates compute every pixel: two ways to the same gradients.
    """
    wanted = gradients(plain, None, images, labels)
    same = {name: gradients(model, density, images, labels) for name, model in models.items()}
    pairs = [
        (name, wanted, gradients(model, 1.0, images, labels)) for name, model in models.items()
    ]
    pairs += [(name, next(iter(same.values())), found) for name, found in same.items()]
    for model in models.values():
        perfconv.force_gates(model, density)
    for name, expected, found in pairs:
        for parameter, value in expected.items():
            if not (found[parameter] - value).norm() <= rounding_bound(value) * value.norm():
                raise AssertionError(
                    f"a training step with {name}: the gradient of {parameter} is off"
                )


def measure(channels: int, size: int, density: float, options: Options) -> Iterator[dict]:
    clock = make_clock(options.device)
    images = torch.rand(2, 3, size, size, device=clock.device)
    labels = torch.randint(8, (2, size, size), device=clock.device)
    last = images.to(memory_format=torch.channels_last)
    models = {
        name: gated(channels, density, learns, clock.device)
        for name, learns in (("frozen gates", False), ("learning gates", True))
    }
    check(freeze_norms(make_network(channels)).to(clock.device), models, density, last, labels)
    dense = {}
    for name, kind in LAYOUTS.items():
        model = freeze_norms(make_network(channels)).to(clock.device, memory_format=kind)
        dense[name] = step_of(model, images.to(memory_format=kind), labels)
    best = fastest(dense, clock)
    calls = {"dense": dense[best]}
    calls |= {name: step_of(model, last, labels) for name, model in models.items()}
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
