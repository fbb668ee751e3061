"""density_loss: its numbers, its gradients, and that it reaches the target."""

import math
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perfconv.losses import density_loss
from perfconv.nn import (
    Gate,
    GateCall,
    LayerGate,
    PixelGate,
    force_gates,
    parameter_groups,
    record_gates,
    set_temperature,
)
from perfconv.schedules import density_ramp, linear_temperature


def call(*image_means: float, macs: int = 0, requires_grad: bool = False) -> GateCall:
    """A gate of 4 pixels whose soft values have these means, one per image."""
    offsets = torch.tensor([-0.1, -0.05, 0.05, 0.1], dtype=torch.float64)
    means = torch.tensor(image_means, dtype=torch.float64)[:, None]
    spread = offsets * torch.minimum(means, 1 - means)
    soft = (means + spread).reshape(-1, 1, 2, 2).requires_grad_(requires_grad)
    empty = torch.empty(0)
    return GateCall("layer", Gate(empty, soft, empty, soft > 0.5), macs // 4)


def divergence(target: float, mean: float) -> float:
    return target * math.log(target / mean) + (1 - target) * math.log((1 - target) / (1 - mean))


@pytest.mark.parametrize(
    ("target", "mean", "expected"),
    [
        (0.7, 0.7, 0.0),
        (0.5, 0.9, 0.5108),
        (0.9, 0.5, 0.3681),
        (1.0, 0.5, 0.6931),
        (0.0, 0.5, 0.6931),
    ],
)
def test_divergence(target: float, mean: float, expected: float) -> None:
    assert density_loss([call(mean)], target).item() == pytest.approx(expected, abs=5e-5)
    budget = density_loss([call(mean, macs=8)], target, form="budget")
    assert budget.item() == pytest.approx(expected, abs=5e-5)


def test_layers_add_up_images_average() -> None:
    record = [call(0.2, 0.6), call(0.9, 0.5)]
    expected = (
        divergence(0.4, 0.2) + divergence(0.4, 0.6) + divergence(0.4, 0.9) + divergence(0.4, 0.5)
    ) / 2
    assert density_loss(record, 0.4).item() == pytest.approx(expected)


def test_squared() -> None:
    """The two terms of the released code, for the channels "compute" and "skip"."""
    expected = sum(
        math.log(1 + (1 - mean - (1 - 0.7)) ** 2) + math.log(1 + (mean - 0.7) ** 2)
        for mean in (0.2, 0.9)
    )
    found = density_loss([call(0.2), call(0.9)], 0.7, form="squared")
    assert found.item() == pytest.approx(expected)


def test_budget_weighs_layers_by_macs() -> None:
    record = [call(0.2, 0.4, macs=300 * 4), call(0.8, 1.0, macs=100 * 4)]
    expected = (divergence(0.5, 0.35) + divergence(0.5, 0.55)) / 2
    assert density_loss(record, 0.5, form="budget").item() == pytest.approx(expected)
    with pytest.raises(ValueError, match="gates that know their MACs"):
        density_loss([call(0.5)], 0.5, form="budget")


@pytest.mark.parametrize("form", ["kl", "budget"])
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_clamped_and_still_a_gradient(form: str, mean: float) -> None:
    made = call(mean, macs=4, requires_grad=True)
    loss = density_loss([made], 0.5, form=form)
    assert loss.item() == pytest.approx(divergence(0.5, 1e-6), rel=1e-3)
    loss.backward()
    grad = made.gate.soft.grad
    assert torch.isfinite(grad).all()
    assert bool((grad < 0).all() if mean == 0 else (grad > 0).all())


def test_bfloat16_gates_are_averaged_in_float32() -> None:
    soft = torch.full((1, 1, 100, 100), 0.9, dtype=torch.bfloat16)
    record = [GateCall("layer", Gate(soft, soft, soft, soft > 0), 0)]
    loss = density_loss(record, 0.5)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(divergence(0.5, soft[0, 0, 0, 0].item()), rel=1e-3)


@pytest.mark.parametrize("target", [-0.1, 1.1, float("nan")])
def test_bad_target(target: float) -> None:
    with pytest.raises(ValueError, match=r"target_density must be in \[0, 1\]"):
        density_loss([call(0.5)], target)


def test_bad_form_and_empty_record() -> None:
    with pytest.raises(ValueError, match="form must be one of"):
        density_loss([call(0.5)], 0.5, form="l1")
    with pytest.raises(ValueError, match="record must hold a gate"):
        density_loss([], 0.5)


class Outcome(NamedTuple):
    densities: list[float]
    loss: float
    random_loss: float  # with random masks of the same densities


class Sharpen(nn.Module):
    """Two gated 3x3 layers that are to subtract noise, whose strength is a channel of the input."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(2))
        self.gates = nn.ModuleList(PixelGate(2, generator=generator) for _ in range(2))

    def forward(self, features: Tensor) -> Tensor:
        for conv, gate in zip(self.convs, self.gates, strict=True):
            features = features + gate(features).hard * conv(features)
        return features[:, :1]


def noisy_images(generator: torch.Generator, batch: int = 16) -> tuple[Tensor, Tensor]:
    """(N, 2, 16, 16): a signal with noise of varying strength, and that strength; the signal."""
    strength = F.interpolate(
        torch.rand(batch, 1, 4, 4, generator=generator), (16, 16), mode="bilinear"
    )
    signal = torch.zeros(batch, 1, 16, 16)
    noise = torch.randn(batch, 1, 16, 16, generator=generator)
    return torch.cat([signal + 2 * strength * noise, 2 * strength], 1), signal


def train(form: str, target: float, steps: int = 800) -> Outcome:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = Sharpen(generator)
    for number, gate in enumerate(model.gates):
        gate.pixel_macs = 36 * (1 + number)
    optimizer = torch.optim.Adam(
        parameter_groups(model, learning_rate=0.02, gate_learning_rate_factor=10)
    )
    calm_down = torch.optim.lr_scheduler.StepLR(optimizer, steps * 3 // 4, gamma=0.1)
    for step in range(steps):
        set_temperature(model, linear_temperature(step, steps // 2, end=0.1))
        input, signal = noisy_images(generator)
        with record_gates(model) as record:
            loss = F.mse_loss(model(input), signal)
        rho = density_ramp(step, steps // 4, target_density=target)
        optimizer.zero_grad()
        (loss + 10 * density_loss(record, rho, form=form)).backward()
        optimizer.step()
        calm_down.step()
    return evaluate(model.eval(), *noisy_images(generator, batch=256))


@torch.no_grad()
def evaluate(model: nn.Module, input: Tensor, signal: Tensor) -> Outcome:
    with record_gates(model) as record:
        loss = F.mse_loss(model(input), signal).item()
    densities = [gate.mask.float().mean().item() for gate in record.gates]
    for gate, density in zip(model.gates, densities, strict=True):
        force_gates(gate, density)
    return Outcome(densities, loss, F.mse_loss(model(input), signal).item())


@pytest.mark.parametrize(
    ("form", "target"),
    [("kl", 0.3), ("kl", 0.5), ("squared", 0.3), ("squared", 0.5), ("budget", 0.3)],
)
def test_training_reaches_the_target(form: str, target: float) -> None:
    outcome = train(form, target)
    first, second = outcome.densities
    if form == "budget":
        assert abs((first + 2 * second) / 3 - target) < 0.02, outcome
    else:
        assert max(abs(first - target), abs(second - target)) < 0.02, outcome
    assert outcome.loss < 0.8 * outcome.random_loss


@pytest.mark.filterwarnings("ignore:.*the gate is saturated")
@pytest.mark.parametrize(("form", "open_layers"), [("budget", [0, 2, 3]), ("kl", [0, 1, 2, 3])])
def test_gates_of_images_need_the_budget_form(form: str, open_layers: list[int]) -> None:
    """Three of four layers are worth their cost; a target for each one leaves all undecided."""
    torch.manual_seed(0)
    gates = nn.ModuleList(LayerGate(1) for _ in range(4))
    for gate in gates:
        gate.pixel_macs = 1
    worth = torch.tensor([2.0, 0.2, 2.0, 2.0])
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.05)
    for step in range(150):
        set_temperature(gates, linear_temperature(step, 100, end=0.1))
        with record_gates(gates) as record:
            hard = torch.stack([gate(torch.rand(8, 1, 2, 2)).hard[:, 0, 0, 0] for gate in gates], 1)
        task = ((1 - hard) @ worth).square().mean()
        optimizer.zero_grad()
        (0.1 * task + 10 * density_loss(record, 0.75, form=form)).backward()
        optimizer.step()
    masks = [gate.eval()(torch.rand(8, 1, 2, 2)).mask for gate in gates]
    assert [index for index, mask in enumerate(masks) if mask.all()] == open_layers
    assert sum(bool(mask.any()) for mask in masks) == len(open_layers)
