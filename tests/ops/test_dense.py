"""The operators' dense forms against the operators, in float64."""

import pytest
import torch
from helpers import random_mask
from torch import Tensor

import perfconv  # noqa: F401
from perfconv.ops import dense

ops = torch.ops.perfconv


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("fill", ["zero", "nearest", "passthrough"])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [([1, 1], [1, 1, 1, 1], [1, 1], 1), ([2, 1], [2, 1, 0, 3], [1, 2], 2)],
    ids=["plain", "lopsided"],
)
@pytest.mark.parametrize("activation", sorted(dense.ACTIVATIONS))
def test_perforated_convolution(
    fill: str, stride: list, padding: list, dilation: list, groups: int, activation: str
) -> None:
    input, weight, bias = normal(2, 4, 9, 11), normal(6, 4 // groups, 3, 3, seed=1), normal(6)
    size = [
        (length + before + after - 2 * spacing - 1) // step + 1
        for length, before, after, spacing, step in zip(
            (9, 11), padding[::2], padding[1::2], dilation, stride, strict=True
        )
    ]
    mask = random_mask(2, 1, *size)
    base, residual = normal(2, 6, *size, seed=2), normal(2, 6, *size, seed=3)
    arguments = (input, weight, mask, bias, base if fill == "passthrough" else None, residual)
    options = (stride, padding, dilation, groups, fill, activation, fill == "passthrough")
    found = dense.perforated_conv2d(*arguments, None, None, None, *options)
    wanted = ops.perforated_conv2d(*arguments, None, None, None, *options)
    torch.testing.assert_close(found, wanted)
    arguments = (input, weight, mask, bias, None, residual)
    everywhere = dense.perforated_conv2d(*arguments, None, None, None, *options[:4], "none")
    right = ops.perforated_conv2d(*arguments, None, None, None, *options[:4], "zero")
    torch.testing.assert_close(torch.where(mask, everywhere, 0), right)


@pytest.mark.parametrize("fill", ["zero", "nearest", "passthrough"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_multi_dilation_convolution(fill: str, is_tied: bool) -> None:
    dilations = [1, 0, 3]
    branches = () if is_tied else (3,)
    input, weight = normal(2, 4, 8, 9), normal(*branches, 4, 4, 3, 3, seed=1)
    bias = normal(*branches, 4, seed=2)
    choice = torch.randint(-1, 3, (2, 1, 8, 9), generator=torch.Generator().manual_seed(3))
    base = normal(2, 4, 8, 9, seed=4) if fill == "passthrough" else None
    arguments = (input, weight, choice.int(), bias, base, dilations, fill, "relu")
    torch.testing.assert_close(
        dense.multi_dilation_conv2d(*arguments), ops.multi_dilation_conv2d(*arguments)
    )


@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_masks(density: float) -> None:
    mask = random_mask(3, 1, 5, 6, density=density)
    for found, wanted in zip(dense.compact_mask(mask), ops.compact_mask(mask), strict=True):
        assert found.dtype == wanted.dtype
        assert torch.equal(found.sort().values, wanted.sort().values)
    values = normal(3, 2, 5, 6)
    assert torch.equal(dense.nearest_fill(values, mask), ops.nearest_fill(values, mask))


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "size"),
    [
        ([3, 3], [1, 1], [1, 1, 1, 1], [1, 1], [5, 6]),
        ([3, 2], [2, 3], [0, 2, 1, 0], [1, 2], [10, 19]),
        ([1, 1], [2, 2], [0, 0, 0, 0], [1, 1], [10, 11]),
    ],
)
def test_halo(kernel: list, stride: list, padding: list, dilation: list, size: list) -> None:
    mask = random_mask(2, 1, 5, 6, density=0.3)
    arguments = (mask, kernel, stride, padding, dilation, size)
    assert torch.equal(dense.expand_mask(*arguments), ops.expand_mask(*arguments))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("wants_soft", [True, False])
def test_gate(has_bias: bool, wants_soft: bool) -> None:
    input, weight, bias = normal(2, 4, 5, 6), normal(2, 4, seed=1), normal(2, seed=2)
    arguments = (input, weight, bias if has_bias else None, wants_soft)
    (soft, mask, *active), (right, *wanted) = dense.gate_mask(*arguments), ops.gate_mask(*arguments)
    torch.testing.assert_close(soft, right)
    assert torch.equal(mask, wanted[0])
    assert [value.shape for value in active] == [value.shape for value in wanted[1:]]


def test_every_form_is_of_an_operator() -> None:
    for op, function in dense.decompositions().items():
        arguments = [argument.name for argument in op._schema.arguments]
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        assert list(names) == arguments, op
