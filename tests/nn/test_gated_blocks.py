"""Gated residual blocks against the dense network multiplied by the mask, written out."""

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import random_mask
from networks import BasicBlock, Bottleneck, InvertedResidual, SqueezeExcite, randomized
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from perfconv.nn import (
    GatedBasicBlock,
    GatedBottleneck,
    GatedInvertedResidual,
    LayerGate,
    PixelGate,
    force_gates,
    record_gates,
)
from perfconv.nn.gate import BinaryGate, Gate

PLAIN: dict[str, Callable[[], nn.Module]] = {
    "bottleneck": lambda: Bottleneck(16, 4),
    "bottleneck-dilated": lambda: Bottleneck(16, 4, dilation=2),
    "bottleneck-projection": lambda: Bottleneck(10, 4),
    "bottleneck-stride": lambda: Bottleneck(16, 4, 2),
    "bottleneck-stride-first": lambda: Bottleneck(16, 4, 2, is_stride_first=True),
    "basic": lambda: BasicBlock(8, 8),
    "basic-projection": lambda: BasicBlock(6, 8),
    "basic-stride": lambda: BasicBlock(8, 8, 2),
    "grouped": lambda: Bottleneck(16, 4, groups=2, squeeze=3),
    "grouped-stride": lambda: Bottleneck(16, 4, 2, groups=2, squeeze=3),
    "inverted": lambda: InvertedResidual(4, 4),
    "inverted-squeeze": lambda: InvertedResidual(4, 4, 5, squeeze=3, activation=nn.SiLU),
    "separable": lambda: InvertedResidual(6, 1, 5, activation=nn.Hardswish),
    "separable-squeeze": lambda: InvertedResidual(6, 1, squeeze=2, activation=nn.ReLU),
}
KINDS = {
    Bottleneck: GatedBottleneck,
    BasicBlock: GatedBasicBlock,
    InvertedResidual: GatedInvertedResidual,
}
BOTH_READINGS = [
    name
    for name in PLAIN
    if name.startswith(("bott", "grouped")) and name not in ("bottleneck-stride", "grouped-stride")
]
CASES = [(name, True) for name in PLAIN] + [(name, False) for name in BOTH_READINGS]
IDENTITY = ["bottleneck", "bottleneck-dilated", "basic", "grouped"]
LINEAR = [name for name in PLAIN if name.startswith(("inverted", "separable"))]


class GivenGate(BinaryGate):
    """A gate with logits of its own and a mask from outside; hard has the gradient of soft."""

    def __init__(self, channels: int, stride: tuple[int, int], mask: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 2, 1, stride=stride)
        self.mask = mask

    def forward(self, input: Tensor) -> Gate:
        logits = self.conv(input)
        soft = logits.softmax(1)[:, 1:]
        return Gate(logits, soft, self.mask + (soft - soft.detach()), self.mask)


def channels(plain: nn.Module) -> int:
    return next(layer.in_channels for layer in plain.modules() if isinstance(layer, nn.Conv2d))


def images(plain: nn.Module, batch: int = 2, size: tuple[int, int] = (9, 10)) -> Tensor:
    """What a ReLU gives, kept away from 0, where the slope is a matter of taste."""
    generator = torch.Generator().manual_seed(3)
    return torch.rand(batch, channels(plain), *size, generator=generator).double() + 0.01


def block_of(plain: nn.Module, density: float, perforate_f3: bool = True, **options) -> nn.Module:
    """A gated block in float64 with a given mask, in training mode."""
    kind = KINDS[type(plain)]
    if not perforate_f3:
        options["perforate_f3"] = False
    stride = kind(copy.deepcopy(plain)).stride
    size = plain(images(plain)).shape[2:]
    mask = random_mask(2, 1, *size, density=density, seed=4)
    torch.manual_seed(5)
    gate = GivenGate(channels(plain), stride, mask).double()
    return kind(copy.deepcopy(plain), gate=gate, **options).train()


def plain_block(name: str) -> nn.Module:
    return randomized(PLAIN[name]()).double().eval()


def oracle(
    plain: nn.Module, gate: GivenGate, input: Tensor, perforate_f3: bool, gate_grad: str
) -> Tensor:
    """Dense layers, multiplied by the gate."""
    decision = gate(input)
    mask, hard = decision.mask, decision.hard.to(input.dtype)
    if gate_grad != "dense":
        hard = hard.detach() + (mask * (hard - hard.detach()) if gate_grad == "active" else 0)
    shortcut = input if plain.downsample is None else plain.downsample(input)
    if isinstance(plain, BasicBlock):
        features = F.relu(plain.bn1(plain.conv1(input)))
        return F.relu(shortcut + hard * plain.bn2(plain.conv2(features)))
    is_linear = isinstance(plain, InvertedResidual)
    activation = plain.act if is_linear else plain.relu
    reduced = input
    if hasattr(plain, "conv1"):
        reduced = activation(plain.bn1(plain.conv1(input)))
    processed = activation(plain.bn2(plain.conv2(reduced)))
    vertical, horizontal = plain.conv2.stride
    mixed = (1 - hard) * reduced[:, :, ::vertical, ::horizontal] + hard * processed
    scale = 1.0
    if isinstance(plain.se, SqueezeExcite):
        scale = plain.se.scale(mixed.mean((2, 3), keepdim=True))
    if perforate_f3:
        branch = hard * plain.bn3(plain.conv3(scale * processed))
    else:
        branch = plain.bn3(plain.conv3(scale * mixed))
    return shortcut + branch if is_linear else F.relu(shortcut + branch)


def results(run: Callable[[Tensor], Tensor], model: nn.Module, input: Tensor) -> dict[str, Tensor]:
    """The output and the gradients of the input and of every parameter."""
    leaf = input.detach().requires_grad_()
    output = run(leaf)
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(6))
    model.zero_grad()
    (output * weight.to(output.dtype)).sum().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"output": output.detach(), "input": leaf.grad, **grads}


def expected(block: nn.Module, input: Tensor, perforate_f3: bool) -> dict[str, Tensor]:
    copied = copy.deepcopy(block)
    plain = copied.to_plain().eval()

    def run(leaf: Tensor) -> Tensor:
        return oracle(plain, copied.gate, leaf, perforate_f3, block.gate_grad)

    return results(run, copied, input)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if value is None or found[name] is None:  # no gradient is as good as a gradient of 0
            some = found[name] if value is None else value
            assert some is None or not some.any(), name
        else:
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("execution", ["dense", "sparse"])
@pytest.mark.parametrize("gate_grad", ["dense", "active", "none"])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("name", "perforate_f3"), CASES)
def test_equals_dense_times_mask(
    name: str, perforate_f3: bool, density: float, gate_grad: str, execution: str
) -> None:
    plain = plain_block(name)
    block = block_of(plain, density, perforate_f3, gate_grad=gate_grad, execution=execution)
    found = results(block, block, images(plain))
    wanted = expected(block, images(plain), perforate_f3)
    assert_same(found, wanted)
    if gate_grad == "dense":
        assert wanted["gate.conv.weight"].abs().max() > 0


def error(found: Tensor, exact: Tensor) -> float:
    return (found.double() - exact).norm().item()


def together(values: dict[str, Tensor], key: str) -> Tensor:
    """One result, or all gradients of parameters in a row.

    One by one, the sum of a small bias hangs on which side of a ReLU a single pixel is rounded to.
    """
    if key != "parameters":
        return values[key]
    return torch.cat([v.flatten() for k, v in values.items() if k not in ("output", "input")])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("name", "perforate_f3"), CASES)
def test_sparse_errs_no_more_than_twice_dense(
    name: str, perforate_f3: bool, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    plain = plain_block(name).to(dtype).double()  # exactly representable
    sparse = block_of(plain, 0.3, perforate_f3, execution="sparse", gate_grad="active")
    input = images(plain).to(dtype).double()
    exact = expected(sparse, input, perforate_f3)
    dense = copy.deepcopy(sparse).to(dtype)
    dense.execution = "dense"
    sparse = sparse.to(dtype).to(memory_format=memory_format)
    input = input.to(dtype)
    found = results(sparse, sparse, input.contiguous(memory_format=memory_format))
    with_dense = results(dense, dense, input)
    assert {value.dtype for value in found.values()} == {dtype}
    for key in ("output", "input", "parameters"):
        wanted, ours, theirs = (together(values, key) for values in (exact, found, with_dense))
        floor = 8 * torch.finfo(dtype).eps * wanted.norm().item()
        assert error(ours, wanted) <= 2 * error(theirs, wanted) + floor, key
    is_nhwc = memory_format == torch.channels_last
    output = sparse.eval()(input.contiguous(memory_format=memory_format))
    assert output.is_contiguous(memory_format=memory_format) or not is_nhwc


@pytest.mark.parametrize(("name", "perforate_f3"), CASES)
def test_open_equals_plain(name: str, perforate_f3: bool) -> None:
    """Bit for bit in dense execution; sparse folds BatchNorm and may round differently."""
    plain = plain_block(name).float()
    kind = KINDS[type(plain)]
    options = {} if perforate_f3 else {"perforate_f3": False}
    block = kind(copy.deepcopy(plain), execution="dense", **options)
    input = images(plain).float()
    assert not block.training
    assert torch.equal(block(input), plain(input))
    force_gates(block, 1.0)
    assert torch.equal(block(input), plain(input))
    block.execution = "sparse"
    torch.testing.assert_close(block(input), plain(input), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("execution", ["dense", "sparse"])
@pytest.mark.parametrize("name", IDENTITY + LINEAR)
def test_closed_identity_block_returns_its_input(name: str, execution: str) -> None:
    plain = plain_block(name).float()
    kind = KINDS[type(plain)]
    block = kind(copy.deepcopy(plain), execution=execution)
    force_gates(block, 0.0)
    for input in (images(plain).float(), torch.randn(1, channels(plain), 5, 4)):
        assert torch.equal(block(input), input)


@pytest.mark.parametrize("execution", ["dense", "sparse"])
def test_closed_projection_block_is_the_relu_of_its_shortcut(execution: str) -> None:
    plain = plain_block("basic-stride").float()
    block = GatedBasicBlock(copy.deepcopy(plain), execution=execution)
    force_gates(block, 0.0)
    input = images(plain).float()
    assert torch.equal(block(input), F.relu(plain.downsample(input)))


@pytest.mark.parametrize("name", ["bottleneck", "basic-stride"])
def test_layer_gate(name: str) -> None:
    plain = plain_block(name).float()
    kind = KINDS[type(plain)]
    stride = kind(plain).stride
    torch.manual_seed(8)
    gate = LayerGate(channels(plain), stride=stride, init_std=5.0)
    block = kind(copy.deepcopy(plain), gate=gate, execution="sparse").eval()
    input = torch.rand(12, channels(plain), 6, 6)
    with torch.no_grad():  # half of the images are to be skipped
        logits = gate(input).logits
        gate.classifier.bias[1] -= (logits[:, 1] - logits[:, 0]).median()
    with record_gates(block) as record:
        output = block(input)
    is_open = record.gates[0].mask[:, 0, 0, 0]
    assert 0 < is_open.sum() < 12
    torch.testing.assert_close(output[is_open], plain(input)[is_open], rtol=1e-4, atol=1e-4)
    skipped = input if plain.downsample is None else F.relu(plain.downsample(input))
    assert torch.equal(output[~is_open], skipped[~is_open])


def test_soft_mode_mixes() -> None:
    plain = plain_block("basic").float()
    gate = PixelGate(8, forward_mode="soft", generator=torch.Generator().manual_seed(0))
    block = GatedBasicBlock(copy.deepcopy(plain), gate=gate).train()
    input = images(plain).float()
    with record_gates(block) as record:
        output = block(input)
    features = F.relu(plain.bn1(plain.conv1(input)))
    branch = plain.bn2(plain.conv2(features))
    torch.testing.assert_close(output, F.relu(input + record.gates[0].soft * branch))
    block.execution = "sparse"
    with pytest.raises(ValueError, match='execution="sparse"'):
        block(input)


@pytest.mark.parametrize("gate_grad", ["dense", "active", "none"])
def test_auto_execution(gate_grad: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dense only while training a gate that is to see all pixels."""
    plain = plain_block("basic")
    block = block_of(plain, 0.3, gate_grad=gate_grad)
    ran = []
    for name in ("_dense", "_sparse"):
        original = getattr(block, name)
        monkeypatch.setattr(
            block, name, lambda *a, name=name, original=original: ran.append(name) or original(*a)
        )
    block(images(plain))
    block.eval()(images(plain))
    block.train().gate.requires_grad_(False)
    block(images(plain))
    with torch.no_grad():
        block(images(plain))
    assert ran == ["_dense" if gate_grad == "dense" else "_sparse", *["_sparse"] * 3]


@pytest.mark.parametrize("execution", ["dense", "sparse"])
def test_a_frozen_gate_passes_no_gradient(execution: str) -> None:
    plain = plain_block("basic")
    block = block_of(plain, 0.3, execution=execution)
    block.gate.requires_grad_(False)
    found = results(block, block, images(plain))
    block.gate_grad = "none"
    wanted = expected(block, images(plain), True)
    assert_same(found, wanted)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("learner", ["conv2", "bn2"])
def test_a_layer_that_learns_reads_no_unwritten_pixel(learner: str, is_training: bool) -> None:
    """The layer before it learns nothing; the learner's weight gradient is computed densely."""
    torch.manual_seed(0)
    plain = Bottleneck(128, 32).eval()
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    mask[..., :7] = True  # and a halo of one column, not more than half of the pixels
    block = GatedBottleneck(plain, gate=GivenGate(128, (1, 1), mask), execution="sparse")
    block.train(is_training).requires_grad_(False)
    block.get_submodule(learner).requires_grad_(True)
    input = torch.rand(1, 128, 16, 16)
    grads = []
    for block.execution in ("sparse", "dense"):
        block.zero_grad()
        block(input).sum().backward()
        grads.append(block.get_submodule(learner).weight.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bottleneck", "bottleneck-projection", "basic-stride"])
def test_frozen_batch_norm(name: str) -> None:
    block = block_of(plain_block(name), 0.3)
    before = copy.deepcopy(dict(block.named_buffers()))
    block.train()(images(block._plain[0])).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in block.named_buffers())
    assert block.bn1.weight.grad.abs().max() > 0


def active_oracle(block: nn.Module, input: Tensor) -> Tensor:
    """Statistics over the pixels that sparse execution computes, written out."""

    def norm(values: Tensor, layer: nn.BatchNorm2d, mask: Tensor) -> Tensor:
        chosen = values.movedim(1, -1)[mask[:, 0]]  # (pixels, C)
        mean, variance = chosen.mean(0), chosen.var(0, unbiased=False)
        scaled = (values - mean[:, None, None]) / (variance + layer.eps).sqrt()[:, None, None]
        return scaled * layer.weight[:, None, None] + layer.bias[:, None, None]

    is_linear = isinstance(block, GatedInvertedResidual)
    activation = block.act if is_linear else block.relu
    has_squeeze = isinstance(block.se, SqueezeExcite)
    gate = block.gate(input)
    mask, hard = gate.mask, gate.hard
    size = block.conv2.kernel_size[0]
    grown = F.max_pool2d(mask.double(), size, 1, size // 2) > 0
    grown = torch.ones_like(mask) if has_squeeze else grown
    reduced = activation(norm(block.conv1(input), block.bn1, grown))
    features = activation(norm(block.conv2(reduced), block.bn2, mask))
    if has_squeeze:
        mixed = (1 - hard) * reduced + hard * features
        features = features * block.se.scale(mixed.mean((2, 3), keepdim=True))
    summed = input + hard * norm(block.conv3(features), block.bn3, mask)
    return summed if is_linear else F.relu(summed)


@pytest.mark.parametrize("execution", ["dense", "sparse"])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["bottleneck", "inverted", "inverted-squeeze"])
def test_active_batch_norm(name: str, density: float, execution: str) -> None:
    plain = plain_block(name)
    block = block_of(plain, density, batch_norm="active", execution=execution)
    running = block.bn2.running_mean.clone()
    found = results(block, block, images(plain))
    assert torch.isfinite(found["output"]).all()
    if density == 0:
        assert torch.equal(found["output"], images(plain))
        assert torch.equal(block.bn2.running_mean, running)
        assert block.bn2.num_batches_tracked == 0
        return
    copied = copy.deepcopy(block)
    assert_same(found, results(lambda leaf: active_oracle(copied, leaf), copied, images(plain)))
    assert block.bn2.num_batches_tracked == 1
    if density == 1:
        torch_norm = copy.deepcopy(plain).train()
        torch_norm(images(plain))
        for name in ("bn1", "bn2", "bn3"):
            ours, theirs = getattr(block, name), getattr(torch_norm, name)
            torch.testing.assert_close(ours.running_mean, theirs.running_mean)
            torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_active_batch_norm_in_evaluation_is_the_running_one() -> None:
    plain = plain_block("bottleneck").float()
    block = GatedBottleneck(copy.deepcopy(plain), batch_norm="active")
    torch.testing.assert_close(block(images(plain).float()), plain(images(plain).float()))


@pytest.mark.parametrize("name", PLAIN)
def test_state_dict_has_the_old_keys(name: str) -> None:
    plain = plain_block(name)
    block = block_of(plain, 0.3)
    keys = list(block.state_dict())
    old = list(plain.state_dict())
    assert keys[: len(old)] == old
    assert all(key.startswith("gate.") for key in keys[len(old) :])


def test_parameters_are_shared_and_given_back() -> None:
    plain = plain_block("bottleneck")
    block = GatedBottleneck(plain)
    assert block.conv2.weight is plain.conv2.weight
    block.bn3 = nn.BatchNorm2d(16).double()
    assert block.to_plain() is plain
    assert plain.bn3 is block.bn3


def test_macs_of_a_pixel() -> None:
    bottleneck = GatedBottleneck(PLAIN["bottleneck-stride"]())
    assert bottleneck.gate.pixel_macs == 4 * 16 * 4 + 4 * 4 * 9 + 4 * 16
    assert GatedBasicBlock(PLAIN["basic-stride"]()).gate.pixel_macs == 2 * 8 * 8 * 9


@pytest.mark.parametrize("name", ["bottleneck", "basic-stride"])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("gate_grad", ["dense", "active"])
def test_compiled(name: str, is_training: bool, gate_grad: str) -> None:
    """fullgraph; new masks and a record do not compile anew more than once."""
    plain = plain_block(name).float()
    kind = KINDS[type(plain)]
    gate = PixelGate(channels(plain), stride=kind(plain).stride, init_std=1.0, init_bias=0.0)
    block = kind(copy.deepcopy(plain), gate=gate, gate_grad=gate_grad).train(is_training)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, backend=counter)
    for seed in range(3):
        input = torch.rand(2, channels(plain), 6, 7)
        found, wanted = [], []
        for run, into in ((block, wanted), (compiled, found)):
            torch.manual_seed(seed)
            block.zero_grad()
            with record_gates(block) as record:
                output = run(input)
            (output.sum() + record.gates[0].soft.mean()).backward()
            into += [output, *(parameter.grad for parameter in block.parameters())]
        torch.testing.assert_close(found, wanted)
    assert counter.frame_count <= 2
    torch._dynamo.reset()


def test_gradients_of_a_small_block() -> None:
    plain = plain_block("basic")
    block = block_of(plain, 0.4, execution="sparse", gate_grad="none")
    input = images(plain).requires_grad_()
    assert torch.autograd.gradcheck(block, (input,))


@pytest.mark.parametrize("gate_grad", ["dense", "active"])
@pytest.mark.parametrize("batch_norm", ["frozen", "active"])
@pytest.mark.parametrize(("name", "perforate_f3"), [("bottleneck", True), ("bottleneck", False),
                                                    ("basic-stride", True)])  # fmt: skip
def test_autocast_gives_one_dtype(
    name: str, perforate_f3: bool, batch_norm: str, gate_grad: str
) -> None:
    """A float32 input, dense or sparse, while training or not: that of autocast."""
    plain = plain_block(name)
    options = {"batch_norm": batch_norm, "gate_grad": gate_grad}
    block = block_of(plain, 0.3, perforate_f3, **options).float()
    input = images(plain).float()
    for execution in ("dense", "sparse"):
        block.execution = execution
        with torch.autocast("cpu", torch.bfloat16):
            outputs = [block.train()(input), block.eval()(input)]
            with torch.no_grad():
                outputs.append(block(input))
        assert {output.dtype for output in outputs} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"execution": "fast"}, "execution must be one of"),
        ({"gate_grad": "all"}, "gate_grad must be one of"),
        ({"batch_norm": "batch"}, "batch_norm must be one of"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GatedBottleneck(PLAIN["bottleneck"](), **options)


def test_bad_blocks() -> None:
    with pytest.raises(ValueError, match="it has 2 convolutions in a row, not 3"):
        GatedBottleneck(PLAIN["basic"]())
    with pytest.raises(ValueError, match="it has 3 convolutions in a row, not 2"):
        GatedBasicBlock(PLAIN["bottleneck"]())
    block = PLAIN["basic"]()
    block.relu = nn.SiLU()
    with pytest.raises(ValueError, match="its relu is a SiLU, not a ReLU"):
        GatedBasicBlock(block)
    GatedInvertedResidual(block)  # nothing follows its sum
    block = PLAIN["basic-stride"]()
    block.downsample = None
    with pytest.raises(ValueError, match="changes the shape without a downsample"):
        GatedBasicBlock(block)
    with pytest.raises(ValueError, match="perforate_f3=False mixes"):
        GatedBottleneck(PLAIN["bottleneck-stride"](), perforate_f3=False)


def test_a_gate_of_another_resolution() -> None:
    block = GatedBasicBlock(PLAIN["basic-stride"](), gate=PixelGate(8))
    with pytest.raises(ValueError, match=r"got \(2, 1, 6, 6\)\. Give the gate the stride"):
        block(torch.rand(2, 8, 6, 6))


def test_repr() -> None:
    block = GatedBottleneck(PLAIN["bottleneck"](), perforate_f3=False, execution="dense")
    assert "execution='dense', perforate_f3=False" in repr(block)
