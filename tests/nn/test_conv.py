"""PerforatedConv2d: a drop-in nn.Conv2d, with and without a mask."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn

import perfconv
from perfconv import MaskState, PerforatedConv2d

VARIANTS = {
    "plain": {"padding": 1},
    "stride": {"stride": (2, 3), "padding": (2, 1), "dilation": 2},
    "same": {"padding": "same", "dilation": 2},
    "valid_groups": {"padding": "valid", "groups": 2},
    "no_bias": {"bias": False},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": (1, 2), "padding_mode": "replicate"},
    "circular_same": {"padding": "same", "padding_mode": "circular"},
    "double": {"dtype": torch.float64},
}


def input_of(layer: nn.Conv2d, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, 8, 13, 14, generator=generator).to(layer.weight.dtype)


def mask_for(layer: PerforatedConv2d, input: Tensor, density: float = 0.4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = layer.output_size(input.shape[-2:])
    return torch.rand(input.size(0), 1, *size, generator=generator) < density


@pytest.mark.parametrize("name", VARIANTS)
def test_without_mask_it_is_conv2d(name: str) -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(8, 12, 3, **VARIANTS[name])
    torch.manual_seed(0)
    layer = PerforatedConv2d(8, 12, 3, **VARIANTS[name])
    assert isinstance(layer, nn.Conv2d)
    input = input_of(layer)
    assert torch.equal(layer(input), dense(input))
    assert torch.equal(layer(input[0]), dense(input[0]))


@pytest.mark.parametrize("name", VARIANTS)
def test_with_mask(name: str) -> None:
    layer = PerforatedConv2d(8, 12, 3, **VARIANTS[name])
    input = input_of(layer)
    mask = mask_for(layer, input)
    expected = torch.where(mask, layer(input), 0)
    torch.testing.assert_close(layer(input, mask), expected)
    torch.testing.assert_close(layer(input, perfconv.compact_mask(mask)), expected)
    torch.testing.assert_close(layer(input[0], mask[0]), expected[0])


@pytest.mark.parametrize("fill", ["zero", "nearest", "passthrough"])
def test_fill(fill: str) -> None:
    layer = PerforatedConv2d(8, 8, 3, padding=1, fill=fill, padding_mode="reflect")
    input = input_of(layer)
    mask = mask_for(layer, input)
    found = layer(input, mask)
    torch.testing.assert_close(torch.where(mask, found, 0), torch.where(mask, layer(input), 0))
    inactive = found.masked_fill(mask, 0)
    if fill == "zero":
        assert not inactive.any()
    elif fill == "passthrough":
        assert torch.equal(inactive, input.masked_fill(mask, 0))
    else:
        filled = torch.ops.perfconv.nearest_fill(found, mask)
        assert torch.equal(found, filled)


@pytest.mark.parametrize("name", VARIANTS)
def test_state_dict_both_ways(name: str) -> None:
    dense, layer = (kind(8, 12, 3, **VARIANTS[name]) for kind in (nn.Conv2d, PerforatedConv2d))
    assert list(layer.state_dict()) == list(dense.state_dict())
    layer.load_state_dict(dense.state_dict(), strict=True)
    assert torch.equal(layer(input_of(layer)), dense(input_of(layer)))
    perfconv.prepack(layer.eval())
    nn.Conv2d(8, 12, 3, **VARIANTS[name]).load_state_dict(layer.state_dict(), strict=True)


def test_class_swap_in_place() -> None:
    """Parameters, hooks and optimizer state stay."""
    network = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    seen = []
    network[0].register_forward_hook(lambda *_: seen.append(1))
    input = input_of(network[0])
    network(input).mean().backward()
    optimizer.step()
    expected, weight = network(input), network[0].weight
    network[0].__class__ = PerforatedConv2d
    assert torch.equal(network(input), expected)
    assert network[0].weight is weight
    assert weight in optimizer.state
    network[0].mask_state = state = MaskState()
    mask = mask_for(network[0], input)
    state.set(mask)
    torch.testing.assert_close(network(input), torch.where(mask, expected, 0))
    assert len(seen) == 4  # every forward pass
    assert repr(network[0]).startswith("PerforatedConv2d(8, 8, kernel_size=(3, 3)")


@pytest.mark.parametrize("copier", ["deepcopy", "pickle", "torch.save"])
def test_copies(copier: str) -> None:
    """Copies hold no masks and no packs; layers that shared a state share the copy of it."""
    state = MaskState()
    layers = [PerforatedConv2d(8, 8, 3, padding=1, fill="nearest") for _ in range(2)]
    network = nn.Sequential(*layers).eval()
    for layer in layers:
        layer.mask_state = state
    perfconv.prepack(network)
    input = input_of(layers[0])
    mask = mask_for(layers[0], input)
    state.set(mask)
    if copier == "deepcopy":
        copied = copy.deepcopy(network)
    elif copier == "pickle":
        copied = pickle.loads(pickle.dumps(network))
    else:
        file = io.BytesIO()
        torch.save(network, file)
        file.seek(0)
        copied = torch.load(file, weights_only=False)
    assert copied[0].mask_state is copied[1].mask_state
    assert copied[0].mask_state is not state
    assert copied[0].mask_state.is_empty()
    assert not state.is_empty()
    assert copied[0]._packed_weight is None
    assert copied[0].fill == "nearest"
    copied[0].mask_state.set(mask)
    assert torch.equal(copied(input), network(input))


def test_gradients_reach_every_parameter() -> None:
    layer = PerforatedConv2d(8, 12, 3, padding=1, padding_mode="circular")
    input = input_of(layer).requires_grad_()
    mask = mask_for(layer, input)
    leaves = [input, layer.weight, layer.bias]
    sparse = torch.autograd.grad(layer(input, mask).square().sum(), leaves)
    dense = torch.autograd.grad(torch.where(mask, layer(input), 0).square().sum(), leaves)
    for found, expected in zip(sparse, dense, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_extra_repr_shows_what_is_not_default() -> None:
    assert "fill" not in repr(PerforatedConv2d(8, 12, 3))
    assert "fill='nearest'" in repr(PerforatedConv2d(8, 12, 3, fill="nearest"))


def test_bad_fill() -> None:
    with pytest.raises(ValueError, match=r"PerforatedConv2d: fill must .*, got 'mean'\. [A-Z]"):
        PerforatedConv2d(8, 12, 3, fill="mean")


def test_passthrough_needs_the_size_of_the_output() -> None:
    layer = PerforatedConv2d(8, 12, 3, padding=1, fill="passthrough")
    input = input_of(layer)
    with pytest.raises(ValueError, match="base must be"):
        layer(input, mask_for(layer, input))


def test_mask_on_the_input_grid() -> None:
    layer = PerforatedConv2d(8, 12, 3, padding=1, stride=2)
    input = input_of(layer)
    with pytest.raises(ValueError, match="output grid"):
        layer(input, torch.ones(2, 1, 13, 14, dtype=torch.bool))


@pytest.mark.parametrize("name", VARIANTS)
def test_output_size(name: str) -> None:
    layer = PerforatedConv2d(8, 12, 3, **VARIANTS[name])
    input = input_of(layer)
    assert layer.output_size(input.shape[-2:]) == list(layer(input).shape[-2:])
