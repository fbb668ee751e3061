"""PixelGate and LayerGate: what they decide, with which gradient, noise and warnings."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from perfconv.nn import Gate, LayerGate, PixelGate, force_gates, record_gates
from perfconv.schedules import linear_temperature

KINDS = {"pixel": PixelGate, "layer": LayerGate}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int = 2, channels: int = 6, size: tuple[int, int] = (9, 8)) -> Tensor:
    return torch.randn(batch, channels, *size, generator=seeded(1))


def undecided_gate(kind: str = "pixel", **options) -> nn.Module:
    """A gate whose logits are near each other, so that about half of it is open."""
    torch.manual_seed(2)
    return KINDS[kind](6, init_std=1.0, init_bias=0.0, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
@pytest.mark.parametrize("is_training", [True, False])
def test_shapes(kind: str, stride: int | tuple[int, int], is_training: bool) -> None:
    gate = undecided_gate(kind, stride=stride).train(is_training)(images())
    steps = (stride, stride) if isinstance(stride, int) else stride
    size = (-(-9 // steps[0]), -(-8 // steps[1]))
    assert isinstance(gate, Gate)
    assert gate.logits.shape == ((2, 2, *size) if kind == "pixel" else (2, 2, 1, 1))
    for value in (gate.soft, gate.hard, gate.mask):
        assert value.shape == (2, 1, *size)
    assert gate.mask.dtype == torch.bool
    assert torch.equal(gate.hard, gate.mask.float())
    assert gate.soft.min() >= 0
    assert gate.soft.max() <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_is_the_argmax_without_noise(kind: str) -> None:
    module = undecided_gate(kind).eval()
    module.temperature = 0.1  # plays no part
    gate = module(images())
    assert torch.equal(gate.mask, gate.logits.argmax(1, keepdim=True).bool().expand(2, 1, 9, 8))
    expected = gate.logits.softmax(1)[:, 1:].expand(2, 1, 9, 8)
    torch.testing.assert_close(gate.soft, expected)
    assert torch.equal(gate.soft, module(images()).soft)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_decision_is_that_of_forward(
    dtype: torch.dtype, stride: int | tuple[int, int], layout: torch.memory_format
) -> None:
    """The same bits, and the argmax of the logits wherever rounding does not decide."""
    module = undecided_gate("pixel", stride=stride).eval().to(dtype)
    input = images().to(dtype).contiguous(memory_format=layout)
    gate, active = module(input), module.active_pixels(input)
    assert torch.equal(active.mask, gate.mask)
    assert int(active.count) == int(gate.mask.sum())
    assert 0.1 < gate.mask.float().mean() < 0.9
    margin = (gate.logits[:, 1:] - gate.logits[:, :1]).float()
    is_clear = margin.abs() > 8 * torch.finfo(dtype).eps
    assert is_clear.float().mean() > 0.9
    assert torch.equal(gate.mask & is_clear, (margin > 0) & is_clear)


@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("stride", [1, (1, 3)])
def test_forced_decisions_are_those_of_forward(
    density: float, stride: int | tuple[int, int]
) -> None:
    module = undecided_gate("pixel", stride=stride).eval()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        module.to(dtype)
        masks = []
        for decide in (lambda x: module(x).mask, lambda x: module.active_pixels(x).mask):
            force_gates(module, density, generator=seeded(5))
            masks.append(decide(images().to(dtype)))
        assert torch.equal(*masks)


def test_the_fused_decision_is_refused_where_more_is_wanted() -> None:
    module = undecided_gate().eval()
    assert module.active_pixels(images()) is not None
    with record_gates(module) as record:
        assert module.active_pixels(images()) is None
        module(images())
    assert len(record) == 1
    assert module.train().active_pixels(images()) is None
    module.eval()
    for layer in (module, module.conv):
        handle = layer.register_forward_hook(lambda *arguments: None)
        assert module.active_pixels(images()) is None
        handle.remove()
    assert module.active_pixels(images()) is not None
    assert undecided_gate("layer").eval().active_pixels(images()) is None

    class Other(PixelGate):
        def forward(self, input: Tensor) -> Gate:
            return super().forward(-input)

    assert Other(6).eval().active_pixels(images()) is None


def test_a_tie_is_closed() -> None:
    module = PixelGate(6, init_std=0.0, init_bias=0.0).eval()
    assert not module(images()).mask.any()


def test_a_new_gate_is_open() -> None:
    assert PixelGate(6, init_std=0.0).eval()(1e4 * images()).mask.all()
    assert PixelGate(6).eval()(images()).mask.all()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 3.0])
def test_hard_has_the_gradient_of_soft(temperature: float) -> None:
    module = undecided_gate(temperature=temperature)
    module.generator = seeded(3)
    gate = module(images())
    weight = torch.randn(gate.soft.shape, generator=seeded(4))
    parameters = list(module.parameters())
    of_soft = torch.autograd.grad((gate.soft * weight).sum(), parameters, retain_graph=True)
    of_hard = torch.autograd.grad((gate.hard * weight).sum(), parameters)
    for soft, hard in zip(of_soft, of_hard, strict=True):
        assert soft.abs().max() > 0
        assert torch.equal(soft, hard)


def test_relaxed_sample_written_out() -> None:
    module = undecided_gate(temperature=0.7, generator=seeded(5)).double()
    gate = module(images().double())
    uniform = torch.rand(gate.logits.shape, generator=seeded(5), dtype=torch.float64)
    noisy = gate.logits - (-uniform.log()).log()
    torch.testing.assert_close(gate.soft, (noisy / 0.7).softmax(1)[:, 1:])
    assert torch.equal(gate.mask, noisy[:, 1:] > noisy[:, :1])


def test_soft_mode_is_the_released_layer() -> None:
    """Clamps of the probabilities and of the uniform numbers; the argmax of p in evaluation."""
    module = undecided_gate(temperature=0.5, generator=seeded(5), forward_mode="soft").double()
    assert module.is_relaxed
    gate = module(images().double())
    uniform = torch.rand(gate.logits.shape, generator=seeded(5), dtype=torch.float64)
    noise = -(-((uniform + 1e-5) / 1.001).log()).log()
    clamped = (gate.logits.softmax(1) + 0.001) / 1.001
    torch.testing.assert_close(gate.soft, ((clamped.log() + noise) / 0.5).softmax(1)[:, 1:])
    assert not module.eval().is_relaxed


@pytest.mark.parametrize("forward_mode", ["straight_through", "soft"])
@pytest.mark.parametrize("logit", [-1.5, 0.0, 2.0])
def test_frequencies_are_the_softmax(forward_mode: str, logit: float) -> None:
    module = PixelGate(
        1, init_std=0.0, init_bias=logit, forward_mode=forward_mode, generator=seeded(6)
    )
    module.temperature = 1e-3
    gate = module(torch.zeros(1, 1, 300, 300))
    expected = torch.sigmoid(torch.tensor(logit))
    deviation = (expected * (1 - expected) / 300**2).sqrt()
    clamps = 0.002 if forward_mode == "soft" else 0
    assert abs(gate.hard.mean() - expected) < 4 * deviation + clamps
    assert abs(gate.soft.mean() - expected) < 4 * deviation + clamps + 1e-3


def test_same_seed_same_mask() -> None:
    first, second = undecided_gate(generator=seeded(7)), undecided_gate(generator=seeded(7))
    found = first(images()).mask
    assert torch.equal(found, second(images()).mask)
    assert not torch.equal(found, first(images()).mask)
    copied = copy.deepcopy(first)
    assert torch.equal(first(images()).mask, copied(images()).mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    gate = undecided_gate().to(dtype)(images().to(dtype))
    assert {value.dtype for value in (gate.logits, gate.soft, gate.hard)} == {dtype}
    assert torch.equal(gate.hard, gate.mask.to(dtype))


def test_nothing_but_parameters_is_kept() -> None:
    module = undecided_gate()
    before = set(vars(module))
    module(images()).soft.sum().backward()
    assert set(vars(module)) == before
    assert set(module.state_dict()) == {"conv.weight", "conv.bias"}
    assert set(LayerGate(6).state_dict()) == {
        f"{layer}.{name}" for layer in ("hidden", "classifier") for name in ("weight", "bias")
    }
    assert not any(isinstance(value, Tensor) for value in vars(module).values())


@pytest.mark.parametrize("bias", [-20.0, 20.0])
def test_saturation_warns_once(bias: float) -> None:
    module = PixelGate(6, init_bias=bias)
    with pytest.warns(UserWarning, match="PixelGate: the gate is saturated"):
        module(images())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(130):
            module(images())
        PixelGate(6, init_bias=bias).eval()(images())
        PixelGate(6)(images())


def test_no_image_saturates_nothing(recwarn: pytest.WarningsRecorder) -> None:
    PixelGate(3).train()(torch.zeros(0, 3, 4, 4))
    assert not [warning for warning in recwarn if "saturated" in str(warning.message)]


def test_saturation_is_seen_later() -> None:
    module = PixelGate(6)
    module(images())
    with torch.no_grad():
        module.conv.bias[1] = 20
    for _ in range(63):
        module(images())
    with pytest.warns(UserWarning, match="saturated"):
        module(images())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_bad_temperature(kind: str, temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be above 0"):
        KINDS[kind](6, temperature=temperature)
    module = KINDS[kind](6)
    with pytest.raises(ValueError, match="temperature must be above 0"):
        module.temperature = temperature


def test_bad_mode() -> None:
    with pytest.raises(ValueError, match="forward_mode must be one of"):
        PixelGate(6, forward_mode="hard")


def test_repr_names_what_is_not_default() -> None:
    assert "temperature=0.5, forward_mode='soft'" in repr(
        PixelGate(6, temperature=0.5, forward_mode="soft")
    )


def test_compiled_with_a_schedule() -> None:
    """One graph, and no new one for every temperature."""
    module = undecided_gate()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for step in range(8):
        module.temperature = linear_temperature(step, 10)
        gate = compiled(images())
        gate.hard.sum().backward()
        assert torch.equal(gate.hard, gate.mask.float())
    assert counter.frame_count <= 2
    torch._dynamo.reset()
