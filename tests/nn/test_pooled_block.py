"""The gate on the block that holds a pool, against the same layers run densely and blended."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import random_mask
from networks import Bottleneck, randomized
from torch import Tensor, nn

import perfconv
from perfconv.nn import GatedPoolBottleneck, MultiDilationPool, force_gates, record_gates
from perfconv.nn.gate import Gate, PixelGate

DILATIONS = (0, 1, 2, 4)


def plain_block(weighting: str = "pag") -> Bottleneck:
    torch.manual_seed(0)
    block = randomized(Bottleneck(16, 4))
    block.conv2 = MultiDilationPool.from_conv(
        block.conv2, block.bn2, DILATIONS, weighting, batch_norm="frozen"
    )
    block.bn2 = nn.Identity()
    return randomized(block, 1).double().eval()


def images() -> Tensor:
    """What a ReLU gives."""
    return torch.rand(2, 16, 9, 10, generator=torch.Generator().manual_seed(2)).double() + 0.01


class GivenGate(PixelGate):
    """Logits of its own and a mask from outside; hard has the gradient of soft."""

    def forward(self, input: Tensor) -> Gate:
        logits = self.conv(input)
        soft = logits.softmax(1)[:, 1:]
        mask = random_mask(2, 1, 9, 10, density=0.5)
        return self.tell(Gate(logits, soft, mask + (soft - soft.detach()), mask))


def gated(weighting: str = "pag", **options) -> GatedPoolBottleneck:
    gate = GivenGate(16).double()
    return GatedPoolBottleneck(plain_block(weighting), gate=gate, **options)


def expected(block: GatedPoolBottleneck, input: Tensor, hard: Tensor) -> Tensor:
    """The equations of the docstring, densely."""
    reduced = F.relu(block.bn1(block.conv1(input)))
    pooled = block.conv2(reduced)
    if not block.perforate_f3:
        mixed = (1 - hard) * reduced + hard * pooled
        return F.relu(input + block.bn3(block.conv3(mixed)))
    return F.relu(input + hard * block.bn3(block.conv3(pooled)))


@pytest.mark.parametrize("perforate_f3", [True, False])
@pytest.mark.parametrize("weighting", ["pag", "attention", "average"])
def test_evaluation(weighting: str, perforate_f3: bool) -> None:
    block, input = gated(weighting, perforate_f3=perforate_f3).eval(), images()
    with torch.no_grad():
        wanted = expected(block, input, block.gate(input).hard)
        found = block(input)
    torch.testing.assert_close(found, wanted)
    assert not torch.equal(found, expected(block, input, torch.ones(())))


def test_open_and_closed() -> None:
    plain, input = plain_block(), images()
    block = GatedPoolBottleneck(copy.deepcopy(plain))
    with torch.no_grad():
        torch.testing.assert_close(block(input), plain(input))  # a new gate is open
        force_gates(block, 0.0)
        assert torch.equal(block(input), input)


@pytest.mark.parametrize("perforate_f3", [True, False])
def test_gradients_of_a_learning_gate(perforate_f3: bool) -> None:
    """Straight-through, exact also at inactive pixels; the pool learns too."""
    block, input = gated(perforate_f3=perforate_f3).train(), images()
    weight = torch.linspace(-1, 1, input.numel(), dtype=input.dtype).view(input.shape)
    torch.manual_seed(5)
    output = block(input)
    torch.manual_seed(5)
    wanted = expected(block, input, block.gate(input).hard)
    torch.testing.assert_close(output, wanted)
    parameters = list(block.parameters())
    grads = torch.autograd.grad((output * weight).sum(), parameters)
    for found, right in zip(
        grads, torch.autograd.grad((wanted * weight).sum(), parameters), strict=True
    ):
        torch.testing.assert_close(found, right)
    assert all(grad.abs().sum() > 0 for grad in grads[-2:])  # of the gate


def test_gradients_with_a_frozen_gate() -> None:
    block, input = gated().train(), images()
    block.gate.requires_grad_(False)
    parameters = [p for p in block.parameters() if p.requires_grad]
    torch.manual_seed(5)
    grads = torch.autograd.grad(block(input).square().sum(), parameters)
    torch.manual_seed(5)
    wanted = expected(block, input, block.gate(input).hard)
    for found, right in zip(
        grads, torch.autograd.grad(wanted.square().sum(), parameters), strict=True
    ):
        torch.testing.assert_close(found, right)


def test_soft_gates_mix() -> None:
    block, input = GatedPoolBottleneck(plain_block()).train(), images()
    block.gate.forward_mode = "soft"
    torch.manual_seed(5)
    output = block(input)
    torch.manual_seed(5)
    torch.testing.assert_close(output, expected(block, input, block.gate(input).soft))


def test_macs_follow_the_mask() -> None:
    """The pool and F3 by density; F1 and the pool's gate for every pixel."""
    block, input = GatedPoolBottleneck(plain_block()), images()
    block.conv2.gate.classifier.bias.data[1] = 100  # nobody copies
    force_gates(block, 0.3, generator=torch.Generator().manual_seed(0))
    with record_gates(block) as record, torch.no_grad():
        force_gates(block, 0.3, generator=torch.Generator().manual_seed(0))
        block(input)
    force_gates(block, 0.3, generator=torch.Generator().manual_seed(0))
    rows = {row.name: row for row in perfconv.flops.count(block, input).rows if row.dense.sum()}
    active = record.calls[0].gate.mask.sum().item()
    assert rows["conv2"].active.sum() == active * 4 * 4 * 9
    assert rows["conv2"].dense.sum() == 180 * 4 * 4 * 9
    assert rows[""].active.sum() == active * 4 * 16
    assert rows["conv1"].active.sum() == 180 * 16 * 4
    assert record.calls[0].pixel_macs == 4 * 4 * 9 + 4 * 16


def test_fused_compiled_and_in_bfloat16() -> None:
    block, input = GatedPoolBottleneck(plain_block()).float().eval(), images().float()
    torch.nn.init.normal_(block.gate.conv.weight)
    with torch.no_grad():
        block.gate.conv.bias.zero_()
        wanted = block(input)
        fused = perfconv.fuse(block)
        torch.testing.assert_close(fused(input), wanted)
        compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(input), wanted)
        with torch.autocast("cpu", torch.bfloat16):
            off = (block(input).float() - wanted).abs().amax(1) / wanted.abs().amax(1)
    assert (off < 0.05).float().mean() > 0.95  # a decision near a tie may fall otherwise
    assert 0 < block.gate(input).mask.float().mean() < 1
    assert isinstance(fused.bn1, nn.Identity)


def test_names_are_the_blocks() -> None:
    plain = plain_block()
    keys = set(GatedPoolBottleneck(copy.deepcopy(plain)).state_dict())
    assert keys - set(plain.state_dict()) == {"gate.conv.weight", "gate.conv.bias"}
    assert set(plain.state_dict()) <= keys


@pytest.mark.parametrize("block", [Bottleneck(16, 4), Bottleneck(10, 4), nn.ReLU()])
def test_refusals(block: nn.Module) -> None:
    with pytest.raises(ValueError, match="conv2 is a MultiDilationPool, got a"):
        GatedPoolBottleneck(block)


def test_a_pool_with_a_mask() -> None:
    """Inactive pixels hold the input, in every way of running."""
    mask = random_mask(2, 1, 9, 10)
    input = images()[:, :4]
    for weighting in ("pag", "attention", "average"):
        pool = plain_block(weighting).conv2
        with torch.no_grad():
            wanted = torch.where(mask, pool(input), input)
            torch.testing.assert_close(pool(input, mask), wanted)
