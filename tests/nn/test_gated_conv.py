"""GatedConv2d against convolution and blend written out."""

import pytest
import torch
import torch.nn.functional as F
from helpers import random_mask
from torch import Tensor, nn

from perfconv.nn import Gate, GatedConv2d, PixelGate, force_gates
from perfconv.nn.gate import BinaryGate
from perfconv.ops import reference

CONVS = {
    "passthrough": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "same-dilated": lambda: nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=2),
    "nearest": lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False),
    "nearest-stride": lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1),
}


class GivenGate(BinaryGate):
    """Logits of its own, a mask from outside."""

    def __init__(self, stride: tuple[int, int], mask: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 1, stride=stride)
        self.mask = mask

    def forward(self, input: Tensor) -> Gate:
        logits = self.conv(input)
        soft = logits.softmax(1)[:, 1:]
        return Gate(logits, soft, self.mask + (soft - soft.detach()), self.mask)


def images() -> Tensor:
    return torch.randn(2, 4, 7, 8, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("gate_grad", ["dense", "active", "none"])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", CONVS)
def test_equals_blend(name: str, density: float, gate_grad: str) -> None:
    torch.manual_seed(0)
    conv = CONVS[name]().double()
    mask = random_mask(2, 1, *conv(images()).shape[2:], density=density)
    gate = GivenGate(conv.stride, mask).double()
    layer = GatedConv2d(conv, gate=gate, gate_grad=gate_grad).train()
    assert layer.fill == ("nearest" if "nearest" in name else "passthrough")

    def blend(input: Tensor) -> Tensor:
        hard = gate(input).hard
        if gate_grad != "dense":
            hard = hard.detach() + (mask * (hard - hard.detach()) if gate_grad == "active" else 0)
        computed = conv(input)
        filled = input if layer.fill == "passthrough" else reference.nearest_fill(computed, mask)
        at_active = mask * (computed - filled)  # carries the gradients of the convolution
        gain = (computed - filled).detach()
        return filled + at_active + (hard - hard.detach()) * gain

    results = []
    for run in (layer, blend):
        layer.zero_grad()
        leaf = images().requires_grad_()
        output = run(leaf)
        weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).double()
        (output * weight).sum().backward()
        grads = [leaf.grad, *(p.grad for p in layer.parameters())]
        results.append([output.detach(), *(torch.zeros(1) if g is None else g for g in grads)])
    for found, wanted in zip(*results, strict=True):
        if wanted.any() or found.any():
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_open_and_closed() -> None:
    conv = CONVS["passthrough"]()
    layer, input = GatedConv2d(conv).eval(), images().float()
    torch.testing.assert_close(layer(input), conv(input))
    force_gates(layer, 0.0)
    assert torch.equal(layer(input), input)
    mask = random_mask(2, 1, 7, 8)
    torch.testing.assert_close(layer(input, mask), torch.where(mask, conv(input), input))


def test_parameters_are_shared_and_given_back() -> None:
    conv = CONVS["nearest"]()
    layer = GatedConv2d(conv)
    assert layer.weight is conv.weight
    assert list(layer.state_dict()) == ["weight", "gate.conv.weight", "gate.conv.bias"]
    assert layer.gate.pixel_macs == conv.weight.numel()
    layer.weight = nn.Parameter(torch.zeros_like(conv.weight))
    assert layer.to_plain() is conv
    assert conv.weight is layer.weight


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="conv must be an nn.Conv2d, got Linear"):
        GatedConv2d(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="gate_grad must be one of"):
        GatedConv2d(CONVS["nearest"](), gate_grad="all")
    layer = GatedConv2d(nn.Conv2d(4, 4, 3))
    with pytest.raises(ValueError, match=r"must be \(N, 1, 5, 6\).*got \(2, 1, 7, 8\)"):
        layer(images().float())
    layer = GatedConv2d(CONVS["nearest"](), gate=PixelGate(4, forward_mode="soft")).train()
    with pytest.raises(ValueError, match='got "soft"'):
        layer(images().float())


def test_compiled() -> None:
    gate = PixelGate(4, init_std=1.0, init_bias=0.0)
    layer = GatedConv2d(CONVS["passthrough"](), gate=gate).train()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    outputs = []
    for run in (layer, compiled):
        torch.manual_seed(0)
        outputs.append(run(F.relu(images().float())))
    torch.testing.assert_close(*outputs)
    torch._dynamo.reset()
