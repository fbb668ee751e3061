"""CellGate and SharedGate: cells, anchors, sharing, and the gradient that anchors make possible."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perfconv import convert, force_gates, record_gates
from perfconv.nn import CellGate, GatedConv2d, PixelGate, SharedGate, gates
from perfconv.ops import reference


def images(channels: int = 4, height: int = 11, width: int = 14) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def undecided_gate(**options) -> CellGate:
    torch.manual_seed(0)
    return CellGate(4, init_std=1.0, init_bias=0.0, **options)


def shared_pair(**options) -> nn.Sequential:
    """Two gated convolutions of 4 to 6 to 6 channels with one gate."""
    torch.manual_seed(0)
    leader = undecided_gate(cell=2, **options)
    return nn.Sequential(
        GatedConv2d(nn.Conv2d(4, 6, 3, padding=1), gate=leader, fill="nearest"),
        GatedConv2d(nn.Conv2d(6, 6, 3, padding=1), gate=SharedGate(leader), fill="nearest"),
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_a_cell_has_one_decision(stride: int) -> None:
    gate = undecided_gate(cell=3, stride=stride).eval()
    decision = gate(images())
    size = (-(-11 // stride), -(-14 // stride))
    assert decision.mask.shape == (2, 1, *size)
    assert decision.logits.shape == (2, 2, -(-size[0] // 3), -(-size[1] // 3))
    wanted = F.interpolate(decision.logits, scale_factor=3)[:, :, : size[0], : size[1]]
    assert torch.equal(decision.mask, wanted[:, 1:] > wanted[:, :1])
    assert torch.equal(decision.hard, decision.mask.float())
    assert 0 < decision.mask.float().mean() < 1


@pytest.mark.parametrize(("context", "radius"), [((), 1), ((1,), 2), ((1, 3), 5)])
def test_context_is_how_far_a_decision_sees(context: tuple[int, ...], radius: int) -> None:
    """In cells: the gradient of the logits in the middle reaches so far, and no farther."""
    gate = undecided_gate(cell=2, context=context).eval()
    input = torch.randn(1, 4, 26, 26, requires_grad=True)
    gate(input).logits[0, :, 6, 6].sum().backward()
    rows, columns = input.grad[0].abs().sum(0).nonzero(as_tuple=True)
    for found in (rows, columns):
        assert (int(found.min()) // 2, int(found.max()) // 2) == (6 - radius, 6 + radius)


@pytest.mark.parametrize("anchor_stride", [2, 3, 5])
def test_anchors_are_open_and_near(anchor_stride: int) -> None:
    gate = undecided_gate(cell=2, anchor_stride=anchor_stride).eval()
    gate.classifier.bias.data[1] = -100
    decision = gate(images())
    expected = torch.zeros(11, 14, dtype=torch.bool)
    expected[anchor_stride // 2 :: anchor_stride, anchor_stride // 2 :: anchor_stride] = True
    assert torch.equal(decision.mask, expected.expand(2, 1, 11, 14))
    assert torch.equal(decision.soft == 1, decision.mask)


def test_anchors_of_a_forced_gate() -> None:
    gate = undecided_gate(cell=2, anchor_stride=3)
    force_gates(gate, 0.0)
    assert not gate(images()).mask.any()


def test_noise_and_gradient_are_by_cell() -> None:
    gate = undecided_gate(cell=2, anchor_stride=4, generator=torch.Generator().manual_seed(0))
    decision = gate.train()(images(height=8, width=8))
    cells = decision.mask.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).float()
    assert cells.sum(-1).unique().tolist() == [0, 1, 4]  # 1: the anchor of a closed cell
    decision.hard.sum().backward()
    assert gate.classifier.weight.grad.abs().max() > 0


def test_shared_gate_repeats_its_leader() -> None:
    model = shared_pair()
    with record_gates(model) as record:
        model.eval()(images())
    first, second = record
    assert (first.name, second.name) == ("0", "1")
    assert first.gate is second.gate
    assert (first.pixel_macs, second.pixel_macs) == (4 * 6 * 9, 6 * 6 * 9)


def test_shared_gate_needs_its_leader() -> None:
    model = shared_pair()
    model(images())
    with pytest.raises(RuntimeError, match="SharedGate: the leader must decide before each call"):
        model[1](images(6))


def test_shared_gate_survives_copies_and_conversion() -> None:
    torch.manual_seed(0)
    leaders: list[CellGate] = []

    def gate(conv: nn.Module) -> nn.Module:
        if leaders:
            return SharedGate(leaders[0])
        leaders.append(undecided_gate(cell=2))
        return leaders[0]

    plain = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
    gated = convert(plain, filter=lambda name, conv: True, gate=gate, fill="nearest")
    gated(
        images()
    ).sum().backward()  # leaves a decision with a graph behind, which cannot be copied
    copied = copy.deepcopy(gated).eval()
    assert copied[2].fill == "nearest"
    gates(copied)["0"].classifier.bias.data[1] = -100
    with record_gates(copied) as record:
        copied(images())
    assert [call.gate.mask.any().item() for call in record] == [False, False]
    assert gated.eval()(images()).isfinite().all()


@pytest.mark.parametrize("is_frozen", [False, True])
def test_followers_teach_the_leader(is_frozen: bool) -> None:
    model = shared_pair(anchor_stride=3).train()
    model[0].gate_grad = "none"  # so that what arrives comes through the second layer
    if is_frozen:
        model[0].gate.requires_grad_(False)
    model(images().requires_grad_()).square().sum().backward()
    grad = model[0].gate.classifier.weight.grad
    assert grad is None if is_frozen else grad.abs().max() > 0


@pytest.mark.parametrize("fill", ["nearest", "zero"])
def test_gain_is_computed_minus_filled(fill: str) -> None:
    """d loss / d hard is the gradient of the output times (dense value - value when closed)."""
    torch.manual_seed(0)
    gate = undecided_gate(cell=2, anchor_stride=3, generator=torch.Generator().manual_seed(3))
    layer = GatedConv2d(nn.Conv2d(4, 4, 3, padding=1), gate=gate, fill=fill).double().train()
    input, weights = images().double(), torch.randn(2, 4, 11, 14, dtype=torch.double)
    with record_gates(layer) as record:
        output = layer(input)
    hard, mask = record.gates[0].hard, record.gates[0].mask
    hard.retain_grad()
    with record_gates(layer) as record:  # the same noise again, with hard as a leaf to look at
        gate.generator.manual_seed(3)
        output = layer(input)
    (grad,) = torch.autograd.grad((weights * output).sum(), record.gates[0].hard)
    dense = F.conv2d(input, layer.weight, layer.bias, padding=1)
    anchors = gate.anchors((11, 14)).expand(2, 1, 11, 14)
    if fill == "zero":
        filled = torch.zeros_like(dense)
    else:
        of_anchors = reference.nearest_fill(dense, anchors)
        filled = torch.where(mask, of_anchors, reference.nearest_fill(dense, mask))
    wanted = (weights * (dense - filled)).sum(1, keepdim=True)
    torch.testing.assert_close(grad, wanted)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="CellGate: cell must be 1 or more output pixels, got 0"):
        CellGate(4, cell=0)
    with pytest.raises(ValueError, match="CellGate: anchor_stride must be 1 or more"):
        CellGate(4, cell=1, anchor_stride=0)
    with pytest.raises(ValueError, match=r"context must be dilations of 1 or more.*got \(2, 0\)"):
        CellGate(4, cell=1, context=(2, 0))
    with pytest.raises(ValueError, match=r"CellGate: density must be in \[0, 1\], got 2"):
        CellGate(4, cell=1, density=2.0).eval()(torch.rand(1, 4, 5, 5))
    with pytest.raises(ValueError, match="GatedConv2d: fill must be"):
        GatedConv2d(nn.Conv2d(4, 6, 1), gate=PixelGate(4), fill="passthrough")


@pytest.mark.parametrize("density", [0.0, 0.3, 0.75, 1.0])
def test_density_opens_the_best_cells_of_each_image(density: float) -> None:
    gate = undecided_gate(cell=2, anchor_stride=4).eval()
    free = gate(images(height=8, width=16))
    gate.density = density
    decision = gate(images(height=8, width=16))
    share = max(0.0, (density - 1 / 16) / (1 - 1 / 16))
    for image in range(2):
        odds = (free.logits[image, 1] - free.logits[image, 0]).flatten()
        is_open = decision.mask[image, 0, 1::2, 1::2].flatten()  # not where the anchors are
        assert int(is_open.sum()) == round(share * 32)
        if 0 < is_open.sum() < 32:
            assert odds[is_open].min() > odds[~is_open].max()
    assert decision.mask.float().mean().item() == pytest.approx(max(density, 1 / 16), abs=0.02)


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_density_of_no_image(density: float) -> None:
    gate = undecided_gate(cell=4, density=density).eval()
    assert gate(images()[:0]).mask.shape == (0, 1, 11, 14)
