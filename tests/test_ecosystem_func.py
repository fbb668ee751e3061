"""torch.func on the operators: grad, vmap, per-sample gradients, Jacobians, second derivatives."""

import pytest
import torch
from helpers import Problem, random_mask
from torch import Tensor
from torch.func import grad, jacrev, vmap

import perfconv
from perfconv.ops import reference

PROBLEM = Problem(in_channels=8, out_channels=12, size=(12, 14), fill="nearest", activation="silu")


def loss(
    weight: Tensor, bias: Tensor, input: Tensor, mask: Tensor, function=perfconv.perforated_conv2d
) -> Tensor:
    """Of one image or several."""
    images = input if input.dim() == 4 else input[None]
    masks = mask if mask.dim() == 4 else mask[None]
    output = function(
        images, weight, masks, bias, padding=1, fill="nearest", activation="silu"
    )  # fmt: skip
    return output.square().sum()


@pytest.fixture
def operands() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors = PROBLEM.tensors(torch.float64)
    return tensors["weight"], tensors["bias"], tensors["input"], tensors["mask"]


def test_func_grad(operands) -> None:
    leaves = [value.clone().requires_grad_() for value in operands[:3]]
    by_torch = loss(*leaves, operands[3], reference.perforated_conv2d)
    expected = torch.autograd.grad(by_torch, leaves)
    found = grad(loss, argnums=(0, 1, 2))(*operands)
    torch.testing.assert_close(found, expected)


def test_per_sample_gradients(operands) -> None:
    """vmap(grad): images and masks mapped, weights shared."""
    weight, bias, input, mask = operands
    found = vmap(grad(loss, argnums=(0, 1)), in_dims=(None, None, 0, 0))(weight, bias, input, mask)
    each = [
        grad(loss, argnums=(0, 1))(weight, bias, *pair) for pair in zip(input, mask, strict=True)
    ]
    for position in (0, 1):
        torch.testing.assert_close(
            found[position], torch.stack([sample[position] for sample in each])
        )


@pytest.mark.parametrize(
    "in_dims",
    [(0, None, None), (None, 0, None), (None, None, 0), (0, 0, 0), (1, None, 1), (0, 1, None)],
)
@pytest.mark.parametrize("fill", ["zero", "nearest", "passthrough", "none"])
def test_vmap(in_dims: tuple, fill: str) -> None:
    def function(input: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        base = torch.ones(2, 6, 7, 8) if fill == "passthrough" else None
        return perfconv.perforated_conv2d(input, weight, mask, padding=1, fill=fill, base=base)

    def stacked(value: Tensor, dim: int | None) -> Tensor:
        return value[0] if dim is None else value.movedim(0, dim)

    torch.manual_seed(0)
    every = torch.randn(3, 2, 4, 7, 8), torch.randn(3, 6, 4, 3, 3), random_mask(3, 2, 1, 7, 8)
    arguments = [stacked(value, dim) for value, dim in zip(every, in_dims, strict=True)]
    found = vmap(function, in_dims=in_dims)(*arguments)
    for sample in range(3):
        chosen = [
            value[0 if dim is None else sample] for value, dim in zip(every, in_dims, strict=True)
        ]
        expected, one = function(*chosen), found[sample]
        if fill == "none":  # NaN or not is a matter of the algorithm
            expected, one = (torch.where(chosen[2], v, 0) for v in (expected, one))
        torch.testing.assert_close(one, expected)


@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 1, None), (None, None, 0), (1, 0, 0)])
def test_vmap_over_nothing(in_dims: tuple) -> None:
    """As torch's operators do it: no result, of the right shape."""
    weight, input = torch.zeros(3, 2, 3, 3), torch.zeros(4, 2, 5, 6)
    mask = torch.ones(4, 1, 5, 6, dtype=torch.bool)
    operands = [
        value if dim is None else value.unsqueeze(dim).narrow(dim, 0, 0)
        for value, dim in zip((input, weight, mask), in_dims, strict=True)
    ]

    def function(input: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        return perfconv.perforated_conv2d(input, weight, mask, padding=1)

    assert vmap(function, in_dims=in_dims)(*operands).shape == (0, 4, 3, 5, 6)
    slopes = vmap(grad(lambda *values: function(*values).sum()), in_dims=in_dims)(*operands)
    assert slopes.shape == (0, *input.shape)


def test_jacobian(operands) -> None:
    """vmap over the backward pass."""
    weight, bias, input, mask = (value[:1] if value.dim() == 4 else value for value in operands)
    weight, bias, input, mask = (
        weight[:, :, :2, :2],
        bias[:1],
        input[..., :3, :4],
        mask[..., :2, :3],
    )

    def function(values: Tensor, convolution=perfconv.perforated_conv2d) -> Tensor:
        return convolution(values, weight, mask, bias, activation="silu")

    found = jacrev(function)(input)
    by_torch = torch.autograd.functional.jacobian(
        lambda values: function(values, reference.perforated_conv2d), input
    )
    torch.testing.assert_close(found, by_torch)
    by_batches = torch.autograd.functional.jacobian(function, input, vectorize=True)
    torch.testing.assert_close(by_batches, by_torch)


def test_hessian_vector_product(operands) -> None:
    """Reverse over reverse."""
    weight, bias, input, mask = operands
    direction = torch.randn_like(weight)

    def slope(value: Tensor) -> Tensor:
        return (grad(loss)(value, bias, input, mask) * direction).sum()

    found = grad(slope)(weight)
    step = 1e-5
    forward, backward = (
        grad(loss)(weight + sign * step * direction, bias, input, mask) for sign in (1, -1)
    )
    torch.testing.assert_close(found, (forward - backward) / (2 * step), rtol=1e-5, atol=1e-4)


NESTED = {
    "backward through vmap": lambda scalar, input: torch.autograd.grad(
        vmap(scalar)(input).square().sum(), input
    )[0],
    "grad of vmap": lambda scalar, input: grad(lambda value: vmap(scalar)(value).sum())(input),
    "jacrev of jacrev": lambda scalar, input: jacrev(jacrev(scalar))(input[0]),
    "backward through jacrev": lambda scalar, input: torch.autograd.grad(
        jacrev(scalar)(input[0]).square().sum(), input
    )[0],
    "vmap of vmap of grad": lambda scalar, input: vmap(vmap(grad(scalar)))(input[None]),
}


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("shares_weight", [True, False])
def test_nested_transforms(name: str, shares_weight: bool) -> None:
    """Batched tensors hide that what they wrap requires a gradient."""
    torch.manual_seed(0)
    input = torch.randn(3, 2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    mask = random_mask(2, 1, 4, 5)

    def scalar(value: Tensor, convolution=perfconv.perforated_conv2d) -> Tensor:
        filters = weight if shares_weight else weight * value.mean()
        return convolution(value, filters, mask, padding=1, activation="silu").pow(3).sum()

    found = NESTED[name](scalar, input)
    by_torch = NESTED[name](lambda value: scalar(value, reference.perforated_conv2d), input)
    torch.testing.assert_close(found, by_torch)


def test_vmap_inside_a_compiled_function(operands) -> None:
    weight, bias, input, mask = operands

    def convolve(image: Tensor, chosen: Tensor) -> Tensor:
        return perfconv.perforated_conv2d(image[None], weight, chosen[None], bias, padding=1)

    compiled = torch.compile(vmap(convolve), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(input, mask), vmap(convolve)(input, mask))
