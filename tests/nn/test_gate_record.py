"""The gates of a model: record, force, temperature, parameter groups."""

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.checkpoint import checkpoint

from perfconv.losses import density_loss
from perfconv.nn import (
    LayerGate,
    PixelGate,
    force_gates,
    gates,
    parameter_groups,
    record_gates,
    set_temperature,
)


class Block(nn.Module):
    """x + hard * conv(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.gate = PixelGate(4, init_std=1.0, init_bias=0.0)

    def forward(self, input: Tensor) -> Tensor:
        return input + self.gate(input).hard * self.conv(input)


class Net(nn.Module):
    """Two blocks, the first one called twice, the second one perhaps checkpointed."""

    def __init__(self, is_checkpointed: bool = False) -> None:
        super().__init__()
        self.is_checkpointed = is_checkpointed
        self.first, self.second = Block(), Block()

    def forward(self, input: Tensor) -> Tensor:
        features = self.first(input)
        if self.is_checkpointed:
            features = checkpoint(self.second, features, use_reentrant=False)
        else:
            features = self.second(features)
        return self.first(features)


def net(**options) -> Net:
    torch.manual_seed(0)
    return Net(**options)


def images() -> Tensor:
    return torch.randn(2, 4, 7, 6, generator=torch.Generator().manual_seed(1))


def train_step(model: nn.Module, run: nn.Module) -> list[Tensor]:
    """Gradients of a task loss and the density loss, the backward pass outside the context."""
    torch.manual_seed(3)
    with record_gates(model) as record:
        output = run(images())
    assert [call.name for call in record] == ["first", "second", "first"]
    (output.square().mean() + density_loss(record, 0.3)).backward()
    assert len(record) == 3
    return [parameter.grad for parameter in model.parameters()]


def test_call_order_names_and_repeated_modules() -> None:
    model = net()
    with record_gates(model) as record:
        assert not record
        model(images())
        model(images())
    assert [call.name for call in record] == ["first", "second", "first"] * 2
    assert all(gate.soft.requires_grad for gate in record.gates)
    model(images())
    assert len(record) == 6


def test_densities() -> None:
    model = net().eval()
    with record_gates(model) as record:
        model(images())
    masks = [gate.mask.float().mean((1, 2, 3)) for gate in record.gates]
    found = record.densities()
    torch.testing.assert_close(found["first"], (masks[0] + masks[2]) / 2)
    torch.testing.assert_close(found["second"], masks[1])
    assert 0 < found["second"].mean() < 1


def test_nested_records() -> None:
    model = net()
    with record_gates(model) as outer:
        with record_gates(model.first) as inner:
            model(images())
        model(images())
    assert [call.name for call in inner] == ["", ""] or len(inner) == 2
    assert len(outer) == 6


def test_an_error_inside_ends_the_record() -> None:
    model = net()
    with pytest.raises(RuntimeError, match="stop"), record_gates(model) as record:
        raise RuntimeError("stop")
    model(images())
    assert len(record) == 0


@pytest.mark.parametrize("is_inside", [False, True])
def test_checkpointing_records_once_with_the_same_gradients(is_inside: bool) -> None:
    expected = train_step(plain := net(), plain)
    model = net(is_checkpointed=True)
    torch.manual_seed(3)
    with record_gates(model) as record:
        loss = model(images()).square().mean() + density_loss(record, 0.3)
        if is_inside:
            loss.backward()
    if not is_inside:
        loss.backward()
    assert [call.name for call in record] == ["first", "second", "first"]
    for parameter, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_checkpointing_with_an_own_generator_is_an_error() -> None:
    model = net(is_checkpointed=True)
    model.second.gate.generator = torch.Generator()
    with pytest.raises(RuntimeError, match="noise of an own generator cannot be drawn again"):
        model(images()).sum().backward()


def test_compiled() -> None:
    """Under fullgraph, also for several calls in one record, in two graphs at most."""
    expected = train_step(plain := net(), plain)
    model = net()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    found = train_step(model, compiled)
    for grad, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(grad, wanted)
    for calls in (1, 2, 3):
        with record_gates(compiled) as record:
            for _ in range(calls):
                compiled(images())
        assert [call.name for call in record] == ["first", "second", "first"] * calls
    assert counter.frame_count <= 2
    torch._dynamo.reset()


def test_gates_by_layer() -> None:
    model = nn.Sequential(Block(), nn.ModuleDict({"other": LayerGate(4)}))
    assert list(gates(model)) == ["0", "1.other"]


@pytest.mark.parametrize("is_training", [True, False])
def test_force(is_training: bool) -> None:
    model = net().train(is_training)
    for density in (1.0, 0.0):
        force_gates(model, density)
        with record_gates(model) as record:
            model(images())
        for gate in record.gates:
            assert bool((gate.mask == bool(density)).all())
            assert torch.equal(gate.hard, gate.mask.float())
            assert not gate.hard.requires_grad
            assert gate.soft.requires_grad
    learned = net().eval()
    force_gates(model, None)
    assert torch.equal(model.eval()(images()), learned(images()))


def test_force_random_masks() -> None:
    gate = PixelGate(4)
    force_gates(gate, 0.3, generator=torch.Generator().manual_seed(5))
    masks = [gate(torch.randn(1, 4, 200, 200)).mask for _ in range(2)]
    assert abs(masks[0].float().mean() - 0.3) < 4 * (0.3 * 0.7 / 40000) ** 0.5
    assert not torch.equal(*masks)
    force_gates(gate, 0.3, generator=torch.Generator().manual_seed(5))
    assert torch.equal(gate(torch.randn(1, 4, 200, 200)).mask, masks[0])
    layer = LayerGate(4)
    force_gates(layer, 0.5)
    mask = layer(torch.randn(64, 4, 2, 2)).mask.flatten(1)
    assert torch.equal(mask.all(1), mask.any(1))
    assert 0 < mask.float().mean() < 1


def test_temperature_of_all_gates() -> None:
    model = net()
    set_temperature(model, 0.25)
    assert [gate.temperature for gate in gates(model).values()] == [0.25, 0.25]
    with pytest.raises(ValueError, match="temperature must be above 0"):
        set_temperature(model, 0)


def test_parameter_groups() -> None:
    model = net()
    model.first.conv.bias.requires_grad_(False)
    of_gates, others = parameter_groups(
        model, learning_rate=0.1, weight_decay=0.5, gate_learning_rate_factor=10
    )
    assert (of_gates["lr"], of_gates["weight_decay"]) == (1.0, 0.0)
    assert (others["lr"], others["weight_decay"]) == (0.1, 0.5)
    assert len(of_gates["params"]) == 4
    assert len(others["params"]) == 3
    torch.optim.SGD([of_gates, others])


@pytest.mark.parametrize("density", [-0.1, 1.1, float("nan")])
def test_bad_density(density: float) -> None:
    with pytest.raises(ValueError, match=r"density must be in \[0, 1\]"):
        force_gates(net(), density)


def test_no_gates() -> None:
    plain = nn.ReLU()
    for call in (
        lambda: force_gates(plain, 1.0),
        lambda: set_temperature(plain, 1.0),
        lambda: parameter_groups(plain, learning_rate=0.1),
    ):
        with pytest.raises(ValueError, match="must have gates, got a ReLU"):
            call()
    with record_gates(plain) as record:
        plain(images())
    assert len(record) == 0
