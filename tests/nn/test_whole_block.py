"""Gated blocks as one operator: which ones, with what they hold at the time, bits of the stages."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from networks import BasicBlock, Bottleneck, InvertedResidual, randomized
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import perfconv
from perfconv.nn import (
    CellGate,
    GatedBasicBlock,
    GatedBlock,
    GatedBottleneck,
    GatedInvertedResidual,
    LayerGate,
    PixelGate,
)

KINDS: dict[str, Callable[[], GatedBlock]] = {
    "bottleneck": lambda: GatedBottleneck(randomized(Bottleneck(16, 4)), gate=gate()),
    "projection": lambda: GatedBottleneck(randomized(Bottleneck(16, 8, 2)), gate=gate(2)),
    "basic": lambda: GatedBasicBlock(randomized(BasicBlock(16, 16)), gate=gate()),
    "inverted": lambda: GatedInvertedResidual(randomized(InvertedResidual(16, 2)), gate=gate()),
    "layer_gate": lambda: GatedBasicBlock(randomized(BasicBlock(16, 16)), gate=LayerGate(16)),
    "cell_gate": lambda: GatedBottleneck(
        randomized(Bottleneck(16, 4)), gate=CellGate(16, cell=2, density=0.5)
    ),
}


def gate(stride: int = 1) -> PixelGate:
    torch.manual_seed(1)
    made = PixelGate(16, stride=stride, init_std=1.0, init_bias=0.0)
    with torch.no_grad():
        made.conv.weight -= made.conv.weight.mean(1, keepdim=True)
    return made


def fused(name: str) -> GatedBlock:
    torch.manual_seed(2)
    return perfconv.fuse(KINDS[name]().eval())


def images(seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 16, 10, 12, generator=generator).contiguous(
        memory_format=torch.channels_last
    )


class Operators(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def runs_at_once(block: nn.Module, input: Tensor, **options: bool) -> bool:
    with torch.no_grad(), Operators() as mode:
        block(input, **options)
    return any(name.startswith("perfconv::gated_block") for name in mode.names)


def by_stages(block: GatedBlock, input: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr("perfconv.nn.gated_block.whole_block", lambda *_: None)
        return block(input)


@pytest.mark.parametrize("name", KINDS)
def test_bits_of_the_stages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any gate; recorded, forced and in inference mode too."""
    block, input = fused(name), images()
    expected = by_stages(block, input, monkeypatch)
    assert runs_at_once(block, input)
    with torch.no_grad():
        assert torch.equal(block(input), expected)
        with perfconv.record_gates(block) as record:
            assert torch.equal(block(input), expected)
            assert runs_at_once(block, input)
    assert 0 < float(record.gates[0].mask.float().mean()) <= 1
    with torch.inference_mode():
        assert torch.equal(block(input), expected)
        assert torch.equal(block(images().clone()), expected)
    for density in (0.0, 0.4, 1.0):
        perfconv.force_gates(block, density, generator=torch.Generator().manual_seed(5))
        expected = by_stages(block, input, monkeypatch)
        perfconv.force_gates(block, density, generator=torch.Generator().manual_seed(5))
        assert runs_at_once(block, input)
        perfconv.force_gates(block, density, generator=torch.Generator().manual_seed(5))
        with torch.no_grad():
            assert torch.equal(block(input), expected)


def test_a_block_that_is_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """BatchNorm is folded in every call, whatever its statistics are by then."""
    block, input = (
        GatedBottleneck(randomized(Bottleneck(16, 4)).eval(), gate=gate()).eval(),
        images(),
    )
    for _ in range(2):
        assert torch.equal(by_stages(block, input, monkeypatch), block_output(block, input))
        assert runs_at_once(block, input)
        with torch.no_grad():
            block.bn2.running_mean += 1


def block_output(block: GatedBlock, input: Tensor) -> Tensor:
    with torch.no_grad():
        return block(input)


def edit(block: GatedBlock) -> None:
    with torch.no_grad():
        block.conv2.weight.mul_(-0.5)


def swap_weight(block: GatedBlock) -> None:
    block.conv2.weight = nn.Parameter(-block.conv2.weight, requires_grad=False)


def swap_bias(block: GatedBlock) -> None:
    block.conv1.bias = nn.Parameter(block.conv1.bias + 1, requires_grad=False)


def swap_layer(block: GatedBlock) -> None:
    block.conv3 = perfconv.nn.PerforatedConv2d(4, 16, 1).requires_grad_(False)


def swap_norm(block: GatedBlock) -> None:
    block.bn1 = randomized(nn.BatchNorm2d(4)).eval().requires_grad_(False)


def load(block: GatedBlock) -> None:
    block.load_state_dict({k: v * 0.9 for k, v in block.state_dict().items()})


def drop_pack(block: GatedBlock) -> None:
    block.conv2._packed_weight = None


@pytest.mark.parametrize(
    "change", [edit, swap_weight, swap_bias, swap_layer, swap_norm, load, drop_pack]
)
def test_what_it_keeps_is_what_it_holds(
    change: Callable[[GatedBlock], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    block, input = fused("bottleneck"), images()
    before = block_output(block, input)
    assert block._kept_stages is not None
    change(block)
    after = block_output(block, input)
    assert torch.equal(after, by_stages(block, input, monkeypatch))
    assert torch.equal(after, before) == (change is drop_pack)


def test_other_dtypes_copies_and_pickles() -> None:
    block, input = fused("bottleneck"), images()
    expected = block_output(block, input)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert other._kept_stages is None
        assert torch.equal(block_output(other, input), expected)
        with torch.no_grad():
            block.conv2.weight.mul_(1)  # of the first alone
        assert other.conv2.weight._version < block.conv2.weight._version
    block.double()
    output = block_output(block, input.double())
    assert output.dtype == torch.float64
    torch.testing.assert_close(output.float(), expected, rtol=1e-4, atol=1e-4)


def test_hooks_of_a_gate_see_its_decision() -> None:
    block, input = fused("bottleneck"), images()
    seen = []
    handle = block.gate.register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    expected = block_output(block, input)
    assert len(seen) == 1
    handle.remove()
    assert torch.equal(block_output(block, input), expected)
    assert len(seen) == 1


def test_stage_by_stage_where_one_operator_will_not_do() -> None:
    input = images()
    squeezed = GatedBottleneck(randomized(Bottleneck(16, 4, squeeze=3)).eval(), gate=gate())
    other = GatedBottleneck(randomized(Bottleneck(16, 4)).eval(), gate=gate(), perforate_f3=False)
    for block in (squeezed, other):
        assert not runs_at_once(perfconv.fuse(block.eval()), input)
    block = fused("bottleneck")
    with torch.autocast("cpu", torch.bfloat16):
        assert not runs_at_once(block, input)
    block.execution = "dense"
    assert not runs_at_once(block, input)
    block.execution = "auto"
    with Operators() as mode:
        block(input)  # gradients are recorded
    assert not any(name.startswith("perfconv::gated_block") for name in mode.names)
    graph = torch.export.export(block, (input,)).graph
    assert "perforated_conv2d" in str(graph)
    with torch.no_grad():
        assert "gated_block" not in str(torch.export.export(block, (input,)).graph)


@pytest.mark.parametrize("name", ["bottleneck", "projection"])
def test_compiled(name: str) -> None:
    block, input = fused(name), images()
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(compiled(input), block(input))
    torch._dynamo.reset()


def test_a_gate_of_another_resolution() -> None:
    block = fused("bottleneck")
    block.gate = PixelGate(16, stride=2).eval()
    with torch.no_grad(), pytest.raises(ValueError, match="Give the gate the stride"):
        block(images())
