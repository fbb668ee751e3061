"""MultiDilationPool against branches and gate written out, in both executions."""

import pytest
import torch
import torch.nn.functional as F
from networks import Bottleneck, randomized
from torch import Tensor, nn

import perfconv
from perfconv.nn import MultiDilationPool, record_gates, set_temperature
from perfconv.nn.dilation_branches import FusedBranches
from perfconv.nn.scale_gate import ScaleGate

DILATIONS = (0, 1, 2, 5)


def images(channels: int = 16, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, channels, 9, 11, generator=generator, dtype=dtype)


def pool(dilations: tuple[int, ...] = DILATIONS, **options) -> MultiDilationPool:
    made = randomized(MultiDilationPool(16, dilations, **options)).double().eval()
    if made.gate is not None:  # so that every branch is chosen somewhere
        with torch.no_grad():
            made.gate.classifier.bias.sub_(logits_of(made, images()).mean((0, 2, 3)))
    return made


def logits_of(model: MultiDilationPool, input: Tensor, *, batch_statistics: bool = False) -> Tensor:
    gate = model.gate

    def norm(layer: nn.BatchNorm2d, value: Tensor) -> Tensor:
        mean, var = layer.running_mean, layer.running_var
        if batch_statistics:
            mean, var = value.mean((0, 2, 3)), value.var((0, 2, 3), correction=0)
        centred = (value - mean.view(1, -1, 1, 1)) / (var + layer.eps).sqrt().view(1, -1, 1, 1)
        return F.relu(centred * layer.weight.view(1, -1, 1, 1) + layer.bias.view(1, -1, 1, 1))

    hidden = norm(gate.bn1, F.conv2d(input, gate.conv1.weight))
    hidden = norm(gate.bn2, F.conv2d(hidden, gate.conv2.weight, padding=1))
    return F.conv2d(hidden, gate.classifier.weight, gate.classifier.bias)


def branch_maps(model: MultiDilationPool, input: Tensor) -> list[Tensor]:
    """Dilation by dilation, from the parameters by name."""
    values = dict(model.branches.named_parameters()) | dict(model.branches.named_buffers())
    maps = []
    for step in model.dilations:
        if step == 0:
            maps.append(input)
            continue
        name = "tied" if model.branches.is_tied else f"dilation{step}"
        features = F.conv2d(input, values[f"{name}.conv.weight"], padding=step, dilation=step)
        features = F.batch_norm(
            features, *(values[f"{name}.norm.{key}"] for key in
                        ("running_mean", "running_var", "weight", "bias")),
        )  # fmt: skip
        maps.append(F.relu(features))
    return maps


def at_choice(maps: list[Tensor], choice: Tensor) -> Tensor:
    """Pixel by pixel, the map that was chosen."""
    result = torch.full_like(maps[0], torch.nan)
    for n, _, y, x in torch.cartesian_prod(*map(torch.arange, choice.shape)).tolist():
        result[n, :, y, x] = maps[int(choice[n, 0, y, x])][n, :, y, x]
    return result


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("execution", ["auto", "dense", "sparse"])
@pytest.mark.parametrize("dilations", [DILATIONS, (4, 2, 0), (1, 3)], ids=str)
def test_pag_takes_one_branch_at_each_pixel(
    dilations: tuple[int, ...], execution: str, tied: bool
) -> None:
    model, input = pool(dilations, execution=execution, tied=tied), images()
    choice = logits_of(model, input).argmax(1, keepdim=True)
    assert len(choice.unique()) == len(dilations)
    torch.testing.assert_close(model(input), at_choice(branch_maps(model, input), choice))


@pytest.mark.parametrize("tied", [False, True])
def test_soft_weightings(tied: bool) -> None:
    input = images()
    average, attention = pool(weighting="average", tied=tied), pool(weighting="attention")
    assert average.gate is None
    expected = sum(branch_maps(average, input)) / len(DILATIONS)
    torch.testing.assert_close(average(input), expected)
    weights = logits_of(attention, input).softmax(1)
    maps = branch_maps(attention, input)
    expected = sum(weights[:, k : k + 1] * maps[k] for k in range(len(maps)))
    torch.testing.assert_close(attention(input), expected)


def gradients(model: MultiDilationPool, input: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(5)
    leaf = input.clone().requires_grad_()
    output = model(leaf)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    named = {name: value for name, value in model.named_parameters() if value.requires_grad}
    grads = torch.autograd.grad((output * weight).sum(), [leaf, *named.values()], allow_unused=True)
    return {"output": output.detach(), **dict(zip(["input", *named], grads, strict=True))}


def test_training_is_the_straight_through_estimate() -> None:
    """The gradient of the one-hot is that of the relaxed sample, with every branch in it."""
    model, input = pool().train(), images()
    set_temperature(model, 0.7)
    found = gradients(model, input)
    torch.manual_seed(5)
    logits = logits_of(model, input, batch_statistics=True)
    uniform = torch.rand(logits.shape, dtype=torch.float64)
    noisy = logits - torch.log(-torch.log(uniform))
    soft = (noisy / 0.7).softmax(1)
    hard = F.one_hot(noisy.argmax(1), len(DILATIONS)).movedim(-1, 1) + soft - soft.detach()
    maps = branch_maps(model, input)
    output = sum(hard[:, k : k + 1] * maps[k] for k in range(len(maps)))
    torch.testing.assert_close(found["output"], output)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad((output * weight).sum(), list(parameters.values()))
    for name, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[name], value)
        assert value.abs().sum() > 0


def test_sparse_training_has_the_gate_gradient_of_dense_training() -> None:
    input = images()
    dense = gradients(pool(execution="dense").train(), input)
    sparse = gradients(pool(execution="sparse").train(), input)
    for name in dense:
        torch.testing.assert_close(sparse[name], dense[name])


def test_frozen_gates_train_sparsely(monkeypatch: pytest.MonkeyPatch) -> None:
    model, input = pool().train(), images()
    model.gate.requires_grad_(False).eval()
    expected = gradients(pool_like(model, "dense"), input)
    monkeypatch.setattr(type(model.branches), "maps", None)  # the dense way
    found = gradients(model, input)
    for name in found:
        torch.testing.assert_close(found[name], expected[name])


def pool_like(model: MultiDilationPool, execution: str) -> MultiDilationPool:
    other = pool(execution=execution)
    other.load_state_dict(model.state_dict())
    other.train()
    other.gate.requires_grad_(False).eval()
    return other


def test_soft_training_weights_by_the_relaxed_sample() -> None:
    gate = ScaleGate(16, len(DILATIONS), forward_mode="soft", temperature=2.0)
    model, input = pool(gate=gate).train(), images()
    with record_gates(model) as record:
        output = model(input)
    (call,) = record.choices
    soft = call.choice.soft
    assert 0 < soft.max() < 1
    maps = branch_maps(model, input)
    torch.testing.assert_close(output, sum(soft[:, k : k + 1] * maps[k] for k in range(4)))


def test_active_statistics_are_those_of_the_pixels_that_chose() -> None:
    model, input = pool(batch_norm="active").train(), images()
    with record_gates(model) as record:
        model(input)
    choice = record.choices[0].choice.choice
    branch = model.branches.dilation2
    features = F.conv2d(input, branch.conv.weight, padding=2, dilation=2)
    chosen = features.movedim(1, -1)[choice[:, 0] == DILATIONS.index(2)]
    before = randomized(MultiDilationPool(16, DILATIONS)).branches.dilation2.norm.running_mean
    torch.testing.assert_close(
        branch.norm.running_mean, 0.9 * before.double() + 0.1 * chosen.mean(0), atol=1e-6, rtol=0
    )


def test_scale_choices_are_recorded_apart() -> None:
    model = pool()
    with record_gates(model) as record:
        model(images())
    assert not record.calls
    (call,) = record.choices
    assert call.name == "gate"
    assert torch.equal(call.choice.hard.argmax(1, keepdim=True), call.choice.choice)
    assert not perfconv.gates(model)


@pytest.mark.parametrize("tied", [False, True])
def test_fuse(tied: bool) -> None:
    model, input = pool(tied=tied), images()
    fused = perfconv.fuse(model)
    assert isinstance(fused.branches, FusedBranches)
    assert fused.branches._packed is not None
    torch.testing.assert_close(fused(input), model(input))
    with torch.no_grad():
        fused.branches.weight.mul_(2)  # the pack is out of date
        fused.branches.bias.mul_(2)
    expected = torch.where(
        logits_of(model, input).argmax(1, keepdim=True) == 0, model(input), 2 * model(input)
    )
    torch.testing.assert_close(fused(input), expected)


def test_from_a_pretrained_convolution() -> None:
    block = randomized(Bottleneck(64, 16)).double().eval()
    made = MultiDilationPool.from_conv(block.conv2, block.bn2, (0, 1, 2)).eval()
    input = images()
    maps = branch_maps(made, input)
    torch.testing.assert_close(maps[1], F.relu(block.bn2(block.conv2(input))))
    torch.testing.assert_close(
        maps[2],
        F.relu(block.bn2(F.conv2d(input, block.conv2.weight, padding=2, dilation=2))),
    )


def test_the_output_keeps_dtype_and_layout() -> None:
    model = pool().to(torch.bfloat16)
    input = images(dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    output = model(input)
    assert output.dtype == torch.bfloat16
    assert output.is_contiguous(memory_format=torch.channels_last)


def test_compile() -> None:
    model, input = pool(), images()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(input), model(input))
    torch.export.export(model, (input,))


def test_parameters() -> None:
    """512 channels, seven branches: the counts of the deck's module."""
    with torch.device("meta"):
        made = MultiDilationPool(512)
        tied = MultiDilationPool(512, tied=True)
    branch = 512 * 512 * 9 + 2 * 512
    gate = 512 * 128 + 2 * 128 + 128 * 32 * 9 + 2 * 32 + 32 * 7 + 7
    assert sum(p.numel() for p in made.parameters()) == 6 * branch + gate == 14_264_871
    assert sum(p.numel() for p in tied.parameters()) == branch + gate == 2_463_271
    names = [name for name, _ in made.named_parameters()]
    first = ["conv.weight", "norm.weight", "norm.bias"]
    assert names[:3] == [f"branches.dilation1.{name}" for name in first]
    assert names[-2:] == ["gate.classifier.weight", "gate.classifier.bias"]


@pytest.mark.parametrize("execution", ["sparse", "dense"])
def test_macs_are_those_of_one_convolution(execution: str) -> None:
    model, input = pool(execution=execution), images()
    counted = perfconv.flops.count(model, input)
    choice = logits_of(model, input).argmax(1)
    (row,) = [row for row in counted.rows if row.kind == "layer"]
    area, macs = 99, 16 * 16 * 9
    active = (choice != 0).flatten(1).sum(1).double() * macs
    assert row.dense.tolist() == [area * macs] * 2
    assert torch.equal(row.active, active)
    ran = active if execution == "sparse" else torch.full_like(active, 3 * area * macs)
    assert torch.equal(row.executed, ran)
    gate = 16 * 128 + 128 * 32 * 9 + 32 * 4
    assert counted.dense_macs == 2 * area * (macs + gate)


ERRORS = {
    "weighting": ({"weighting": "hard"}, "weighting must be one of 'pag'"),
    "execution": ({"execution": "fast"}, "execution must be one of"),
    "batch_norm": ({"batch_norm": "off"}, "batch_norm must be one of"),
    "twice": ({"dilations": (1, 2, 1)}, "dilations must be different whole numbers"),
    "negative": ({"dilations": (1, -2)}, "dilations must be different whole numbers"),
    "gate": ({"weighting": "attention", "gate": ScaleGate(4, 3)}, "dilations, 7, got 3"),
    "copies-only": ({"dilations": (0,)}, "one of them above 0"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    changes, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        MultiDilationPool(4, **changes)


def test_from_conv_refuses_what_is_no_3x3() -> None:
    with pytest.raises(ValueError, match="must be a 3x3 of stride 1"):
        MultiDilationPool.from_conv(nn.Conv2d(4, 4, 3, stride=2))
    with pytest.raises(ValueError, match="no bias"):
        MultiDilationPool.from_conv(nn.Conv2d(4, 4, 3, padding=1))
