"""First and second derivatives against finite differences, in float64."""

import pytest
import torch
from helpers import ALGORITHMS, OPERANDS, Problem
from torch import Tensor

import perfconv
from perfconv.ops import reference

SMALL = {"in_channels": 2, "out_channels": 3, "size": (4, 5), "density": 0.5}
FILLS = ("zero", "nearest", "passthrough", "none")
ACTIVATIONS = (None, "relu", "relu6", "silu", "hardswish")


def check_derivatives(problem: Problem, algorithm: str) -> None:
    tensors = problem.tensors(torch.float64)
    names = [name for name in OPERANDS if tensors[name] is not None]
    leaves = tuple(tensors[name].requires_grad_() for name in names)

    def function(*values: Tensor) -> Tensor:
        arguments = dict(zip(names, values, strict=True))
        output = perfconv.perforated_conv2d(
            mask=tensors["mask"], **arguments, **problem.options, algorithm=algorithm
        )
        return torch.where(tensors["mask"], output, 0) if problem.fill == "none" else output

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("fill", FILLS)
def test_every_fill_and_activation(fill: str, activation: str | None) -> None:
    problem = Problem(
        **SMALL, fill=fill, activation=activation, has_residual=True,
        activate_base=fill == "passthrough" and activation is not None,
    )  # fmt: skip
    check_derivatives(problem, "implicit_gemm")


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "dense"])
@pytest.mark.parametrize(
    "changes",
    [
        {"stride": (2, 1), "dilation": (1, 2), "padding": (1, 2)},
        {"in_channels": 4, "out_channels": 4, "groups": 2, "is_mask_shared": True},
        {"in_channels": 3, "groups": 3, "kernel": (2, 3), "padding": "same"},
        {"fill": "passthrough", "activation": "silu", "has_bias": False},
        {"density": 0.0},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_algorithm(changes: dict, algorithm: str) -> None:
    check_derivatives(Problem(**SMALL | changes), algorithm)


def test_only_what_is_asked_for() -> None:
    """Each operand alone gets the gradient that it gets beside the others."""
    problem = Problem(fill="passthrough", has_residual=True, activation="relu")
    tensors = problem.tensors(torch.float32)
    grad_output = tensors.pop("grad_output")
    every = {name: tensors[name].clone().requires_grad_() for name in OPERANDS}
    output = perfconv.perforated_conv2d(**tensors | every, **problem.options)
    grads = torch.autograd.grad(output, every.values(), grad_output)
    together = dict(zip(OPERANDS, grads, strict=True))
    for name in OPERANDS:
        alone = tensors[name].clone().requires_grad_()
        output = perfconv.perforated_conv2d(**tensors | {name: alone}, **problem.options)
        assert torch.equal(torch.autograd.grad(output, alone, grad_output)[0], together[name])


@pytest.mark.parametrize("activation", ["relu", "relu6", "silu", "hardswish"])
def test_a_nan_shows_in_the_gradient_as_in_torch(activation: str) -> None:
    bias = torch.tensor([float("nan"), 1.0])
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    weight = torch.ones(2, 3, 1, 1)
    slopes = []
    for convolution in (perfconv.perforated_conv2d, reference.perforated_conv2d):
        input = torch.ones(1, 3, 4, 4, requires_grad=True)
        convolution(input, weight, mask, bias, activation=activation).sum().backward()
        slopes.append(input.grad)
    torch.testing.assert_close(*slopes, equal_nan=True)
