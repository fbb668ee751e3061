"""Packed weights: never wrong, whatever changed the weight after it was packed."""

import threading

import pytest
import torch
from helpers import DTYPES, Problem
from torch import Tensor, nn
from torch.nn.utils import prune

import perfconv

PROBLEM = Problem(in_channels=16, out_channels=40, size=(13, 14))


@pytest.fixture
def layer() -> perfconv.PerforatedConv2d:
    torch.manual_seed(0)
    made = perfconv.PerforatedConv2d(16, 40, 3, padding=1).eval()
    return perfconv.prepack(made)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    tensors = PROBLEM.tensors(torch.float32)
    return tensors["input"], tensors["mask"]


def assert_as_unpacked(layer: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    input, mask = batch
    weight = layer.weight.detach().clone()
    for algorithm in ("implicit_gemm", "auto"):  # the second is what the layer asks for
        options = {"padding": 1, "algorithm": algorithm}
        expected = perfconv.perforated_conv2d(input, weight, mask, layer.bias, **options)
        packed = perfconv.perforated_conv2d(
            input, layer.weight, mask, layer.bias, **options, packed_weight=layer._packed_weight
        )
        assert torch.equal(packed, expected)
    assert torch.equal(layer(input, mask), expected)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pack_gives_the_same_bits(dtype: torch.dtype, groups: int) -> None:
    problem = Problem(in_channels=32, out_channels=48, groups=groups)
    tensors = problem.tensors(dtype)
    tensors.pop("grad_output")
    options = {**problem.options, "algorithm": "implicit_gemm"}
    packed = perfconv.pack_weight(tensors["weight"], groups=groups)
    offset = torch.cat([packed[:1], packed])[1:]  # a pack that starts anywhere in memory
    expected = perfconv.perforated_conv2d(**tensors, **options)
    for pack in (packed, offset):
        assert torch.equal(
            perfconv.perforated_conv2d(**tensors, **options, packed_weight=pack), expected
        )


@pytest.mark.parametrize("kernel", [(3, 3), (1, 1), (2, 5)], ids=str)
@pytest.mark.parametrize(
    ("outputs", "channels", "groups"),
    [(64, 256, 1), (48, 16, 2), (33, 18, 1), (21, 7, 3), (8, 1, 8), (1, 5, 1), (70, 130, 1)],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_channels_last_weight_gives_the_same_bits(
    dtype: torch.dtype, outputs: int, channels: int, groups: int, kernel: tuple[int, int]
) -> None:
    """It is packed as it lies, by loops of its own: forward, and the panels of dgrad."""
    weight = torch.randn(outputs, channels, *kernel).to(dtype)
    last = weight.contiguous(memory_format=torch.channels_last)
    cut = torch.randn(outputs + 1, channels + 1, *kernel).to(dtype)[1:, 1:]  # neither layout
    cut.copy_(weight)
    expected = perfconv.pack_weight(weight, groups=groups)
    mask = torch.rand(1, 1, 9, 9) < 0.5
    grad = torch.randn(1, outputs, 9, 9).to(dtype)
    size = [8 + kernel[0], 8 + kernel[1]]
    options = (size, True, [1, 1], [0, 0, 0, 0], [1, 1], groups, "implicit_gemm")
    dgrad = torch.ops.perfconv.perforated_conv2d_dgrad
    for other in (last, cut):
        assert torch.equal(perfconv.pack_weight(other, groups=groups), expected)
        found = dgrad(grad, other, mask, None, None, *options)
        assert torch.equal(found, dgrad(grad, weight, mask, None, None, *options))


@pytest.mark.parametrize(
    "pack",
    [
        torch.zeros(0),
        torch.zeros(7),
        torch.zeros(10**6),
        torch.zeros(4, 4),
        torch.zeros(10**5, dtype=torch.float64),
        torch.zeros(10**5)[::2],
    ],
    ids=lambda pack: f"{tuple(pack.shape)}{pack.dtype}",
)
def test_a_pack_that_does_not_fit_is_ignored(pack: Tensor, batch: tuple[Tensor, Tensor]) -> None:
    input, mask = batch
    weight = torch.randn(40, 16, 3, 3)
    expected = perfconv.perforated_conv2d(input, weight, mask, padding=1)
    assert torch.equal(
        perfconv.perforated_conv2d(input, weight, mask, padding=1, packed_weight=pack), expected
    )


def test_a_pack_of_another_weight_is_ignored(batch: tuple[Tensor, Tensor]) -> None:
    input, mask = batch
    weight = torch.randn(40, 16, 3, 3)
    other = perfconv.pack_weight(torch.randn(40, 16, 3, 3))
    options = {"padding": 1, "algorithm": "implicit_gemm"}
    expected = perfconv.perforated_conv2d(input, weight, mask, **options)
    found = perfconv.perforated_conv2d(input, weight, mask, **options, packed_weight=other)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda parameters: torch.optim.AdamW(parameters, lr=0.1, fused=True),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, fused=True),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, foreach=True),
    ],
    ids=["fused AdamW", "fused SGD", "foreach SGD"],
)
def test_after_an_optimizer_step(make_optimizer, layer, batch) -> None:
    """Fused optimizers change weights without raising their version."""
    before = layer(*batch)
    layer.weight.requires_grad_(True)  # in eval mode, with the pack still there
    optimizer = make_optimizer(layer.parameters())
    layer(*batch).square().mean().backward()
    optimizer.step()
    layer.weight.requires_grad_(False)
    assert layer._packed_weight is not None
    assert not torch.equal(layer(*batch), before)
    assert_as_unpacked(layer, batch)


CHANGES = {
    "data.copy_": lambda layer: layer.weight.data.copy_(torch.randn(40, 16, 3, 3)),
    "data.mul_": lambda layer: layer.weight.data.mul_(1.5),
    "data = ": lambda layer: setattr(layer.weight, "data", torch.randn(40, 16, 3, 3)),
    "detach().zero_": lambda layer: layer.weight.detach().zero_(),
    "numpy": lambda layer: layer.weight.numpy().__iadd__(1.0),
    "load_state_dict": lambda layer: layer.load_state_dict(
        perfconv.PerforatedConv2d(16, 40, 3).state_dict()
    ),
    "assign": lambda layer: layer.load_state_dict(
        perfconv.PerforatedConv2d(16, 40, 3).state_dict(), assign=True
    ),
    "parameter": lambda layer: setattr(
        layer, "weight", nn.Parameter(torch.randn(40, 16, 3, 3), requires_grad=False)
    ),
    "init": lambda layer: layer.reset_parameters(),
    "prune": lambda layer: layer.weight.data.masked_fill_(torch.rand(40, 16, 3, 3) < 0.5, 0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_after_a_change_of_the_weight(name: str, layer, batch) -> None:
    before = layer(*batch)
    CHANGES[name](layer)
    assert not torch.equal(layer(*batch), before)
    assert_as_unpacked(layer, batch)


def test_after_an_edit_of_one_filter() -> None:
    """A comparison of samples does not see it."""
    torch.manual_seed(0)
    layer = perfconv.prepack(perfconv.PerforatedConv2d(256, 256, 1).eval())
    input, mask = torch.randn(1, 256, 6, 6), torch.rand(1, 1, 6, 6) < 0.5
    before = layer(input, mask)
    with torch.no_grad():
        layer.weight[5] += 1.0
    after = layer(input, mask)
    assert not torch.equal(after, before)
    weight = layer.weight.clone()
    assert torch.equal(after, perfconv.perforated_conv2d(input, weight, mask, layer.bias))


def test_a_freed_and_reused_address(batch: tuple[Tensor, Tensor]) -> None:
    """A pack belongs to values, not to a pointer: another weight may lie at the same address."""
    input, mask = batch
    memory = torch.randn(40 * 16 * 9)
    weight = memory.view(40, 16, 3, 3)
    packed, address = perfconv.pack_weight(weight), weight.data_ptr()
    del weight
    memory.copy_(torch.randn(40 * 16 * 9))
    weight = memory.view(40, 16, 3, 3)
    assert weight.data_ptr() == address
    options = {"padding": 1, "algorithm": "implicit_gemm"}
    found = perfconv.perforated_conv2d(input, weight, mask, **options, packed_weight=packed)
    assert torch.equal(found, perfconv.perforated_conv2d(input, weight, mask, **options))


def test_inference_mode(layer, batch) -> None:
    expected = layer(*batch)
    with torch.inference_mode():
        assert torch.equal(layer(*batch), expected)
        layer.weight.data = torch.randn(40, 16, 3, 3)
        perfconv.prepack(layer)
        assert_as_unpacked(layer, batch)
    layer.weight.data = torch.randn(40, 16, 3, 3)
    assert_as_unpacked(layer, batch)


def test_compiled(layer, batch) -> None:
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*batch), layer(*batch))
    layer.weight.data.copy_(torch.randn(40, 16, 3, 3))
    assert torch.equal(compiled(*batch), layer(*batch))
    assert_as_unpacked(layer, batch)


def test_two_threads(layer, batch) -> None:
    """One layer used by two threads while a third packs it again."""
    expected = layer(*batch)
    wrong = []

    def use() -> None:
        wrong.extend(1 for _ in range(30) if not torch.equal(layer(*batch), expected))

    def pack() -> None:
        for _ in range(30):
            perfconv.prepack(layer)

    threads = [threading.Thread(target=target) for target in (use, use, pack)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_when_a_pack_is_dropped(layer, batch) -> None:
    assert layer._packed_weight is not None
    assert layer.train()._packed_weight is None
    assert perfconv.prepack(layer.eval())._packed_weight is not None
    assert layer.double()._packed_weight is None
    assert layer(batch[0].double(), batch[1]).dtype == torch.float64


def test_prepack_in_training_mode() -> None:
    with pytest.raises(ValueError, match=r"prepack: .* must be in eval mode, got .*\. Call"):
        perfconv.prepack(perfconv.PerforatedConv2d(3, 4, 3))


def test_prepack_of_a_network(batch) -> None:
    network = nn.Sequential(
        perfconv.PerforatedConv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)
    ).eval()
    assert perfconv.prepack(network) is network
    assert not network[0].weight.requires_grad
    assert network[2].weight.requires_grad


@pytest.mark.parametrize("name", ["prune", "parametrize"])
def test_prepack_of_a_computed_weight(name: str, layer) -> None:
    if name == "prune":
        prune.l1_unstructured(layer, "weight", amount=0.5)
    else:
        nn.utils.parametrizations.weight_norm(layer)
    network = nn.Sequential(perfconv.PerforatedConv2d(16, 16, 1), layer).eval()
    with pytest.raises(ValueError, match=r"prepack: .* must be a parameter .*'1'\. Make"):
        perfconv.prepack(network)
    assert network[0].weight.requires_grad  # nothing was changed
