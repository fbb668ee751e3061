"""gate_mask: decision, list, P(compute) and its gradients against the float64 oracle."""

import pytest
import torch
from helpers import DTYPES, LAYOUTS, allowed_error, assert_gated, gate_operands, largest, relayout
from torch import Tensor

import perfconv
from perfconv.ops import reference

# Below, at and beyond the lanes of the sums (32), and far beyond.
CHANNELS = (1, 3, 31, 32, 33, 70, 256)
SIZES = [(0, 4, 4), (1, 1, 1), (2, 9, 11), (3, 0, 4)]


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gate(dtype: torch.dtype, channels: int, has_bias: bool) -> None:
    operands = gate_operands(channels, dtype, has_bias=has_bias)
    active, soft = perfconv.gate_mask(*operands)
    assert soft is None
    assert_gated((torch.empty(0), *active), *operands)
    operands[1].requires_grad_()
    active, soft = perfconv.gate_mask(*operands)
    assert soft is not None
    assert soft.requires_grad
    assert not any(value.requires_grad for value in active)
    assert_gated((soft.detach(), *active), operands[0], operands[1].detach(), operands[2])
    with torch.no_grad():
        assert perfconv.gate_mask(*operands)[1] is None


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_and_layouts(size: tuple[int, int, int], layout: str) -> None:
    input, weight, bias = gate_operands(8, torch.float32, size)
    input = relayout(input, layout)
    found = torch.ops.perfconv.gate_mask(input, weight[:, :, None, None], bias, True)
    assert_gated(found, input, weight, bias)


def test_no_channels() -> None:
    """The bias alone decides."""
    input, weight = torch.empty(1, 0, 2, 3), torch.empty(2, 0)
    assert perfconv.gate_mask(input, weight, torch.tensor([0.0, 1.0]))[0].mask.all()
    assert not perfconv.gate_mask(input, weight, None)[0].mask.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_and_nan_are_inactive(dtype: torch.dtype) -> None:
    input = torch.tensor([1.0, torch.nan, torch.inf, -1.0, 0.0]).to(dtype).view(1, 1, 1, 5)
    weight = torch.tensor([[-1.0], [1.0]], dtype=dtype)
    active, _ = perfconv.gate_mask(input, weight, None)
    assert active.mask.flatten().tolist() == [True, False, True, False, False]
    same = weight[1:].expand(2, 1)
    assert not perfconv.gate_mask(input, same, None)[0].mask.any()


def test_extreme_logits_give_zero_and_one() -> None:
    input = torch.tensor([-1e4, 1e4]).view(1, 1, 1, 2)
    weight = torch.tensor([[-1.0], [1.0]], requires_grad=True)
    _, soft = perfconv.gate_mask(input, weight, None)
    assert soft is not None
    assert soft.flatten().tolist() == [0.0, 1.0]
    assert not torch.autograd.grad(soft.sum(), weight)[0].isnan().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients(dtype: torch.dtype) -> None:
    """Twice the error of torch in the same dtype; the sums of both are of the same size."""
    operands = gate_operands(13, dtype)
    grad = torch.randn(2, 1, 9, 11, generator=torch.Generator().manual_seed(1)).to(dtype)

    def gradients(function, values: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
        leaves = [value.detach().requires_grad_() for value in values]
        return torch.autograd.grad(function(*leaves)[1], leaves, grad)

    double = [value.double() for value in operands]
    exact = gradients(reference.gate_mask, double, grad.double())
    dense = gradients(lambda *values: reference.gate_mask(*values, dtype=dtype), operands, grad)
    found = gradients(perfconv.gate_mask, operands, grad)
    sizes = [double[1].abs().sum() * grad.abs(), double[0].abs() * grad.abs(), grad.abs()]
    for result, wanted, theirs, size in zip(found, exact, dense, sizes, strict=True):
        assert result.dtype == dtype
        sums = size.double().sum().expand_as(wanted) if size is not sizes[0] else size.double()
        assert largest(result.double() - wanted) <= allowed_error(wanted, theirs, sums)


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
def test_derivatives(has_bias: bool) -> None:
    operands = gate_operands(3, torch.float64, (2, 3, 2), has_bias)
    leaves = tuple(value.requires_grad_() for value in operands if value is not None)

    def soft(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        result = perfconv.gate_mask(input, weight, bias)[1]
        assert result is not None
        return result

    assert torch.autograd.gradcheck(soft, leaves)
    assert torch.autograd.gradgradcheck(soft, leaves)


def test_func_transforms() -> None:
    """grad, vmap, and per-sample gradients."""
    input, weight, bias = gate_operands(5, torch.float64)

    def loss(weight: Tensor, image: Tensor) -> Tensor:
        soft = perfconv.gate_mask(image[None], weight, bias)[1]
        assert soft is not None
        return soft.square().sum()

    each = [torch.func.grad(loss)(weight, image) for image in input]
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, input)
    torch.testing.assert_close(found, torch.stack(each))
    masks = torch.func.vmap(lambda image: perfconv.gate_mask(image[None], weight, bias)[0].mask)
    expected = torch.stack(
        [perfconv.gate_mask(image[None], weight, bias)[0].mask for image in input]
    )
    assert torch.equal(masks(input), expected)


def test_autocast() -> None:
    """As the dense gate: products of the low dtype, gradients in the parameters' own."""
    input, weight, bias = gate_operands(8, torch.float32)
    weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        active, soft = perfconv.gate_mask(input, weight, bias)
    low = [value.detach().bfloat16() for value in (input, weight, bias)]
    assert soft is not None
    assert soft.dtype == torch.bfloat16
    assert torch.equal(active.mask, perfconv.gate_mask(*low)[0].mask)
    assert torch.autograd.grad(soft.sum(), weight)[0].dtype == torch.float32


def test_the_active_pixels_are_those_of_compact_mask() -> None:
    active, _ = perfconv.gate_mask(*gate_operands(8, torch.float32, (3, 20, 31)))
    listed = perfconv.compact_mask(active.mask)
    for found, expected in zip(active, listed, strict=True):
        assert torch.equal(found, expected)


def test_any_number_of_threads() -> None:
    operands = [*gate_operands(64, torch.float32, (2, 60, 61)), True]
    first = torch.ops.perfconv.gate_mask(*operands)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        second = torch.ops.perfconv.gate_mask(*operands)
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
