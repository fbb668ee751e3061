"""The oracle itself, against loops written out and cases worked by hand."""

import math

import pytest
import torch
from helpers import Problem
from torch import Tensor

from perfconv.ops import reference


def conv_by_loops(problem: Problem, tensors: dict, n: int, k: int, y: int, x: int) -> float:
    """One output of the convolution from its definition, with padding in numbers."""
    inputs, outputs = (
        count // problem.groups for count in (problem.in_channels, problem.out_channels)
    )
    first = k // outputs * inputs
    total = float(tensors["bias"][k]) if tensors["bias"] is not None else 0.0
    for c in range(inputs):
        for i in range(problem.kernel[0]):
            for j in range(problem.kernel[1]):
                row = y * problem.stride[0] - problem.padding[0] + i * problem.dilation[0]
                column = x * problem.stride[1] - problem.padding[1] + j * problem.dilation[1]
                if 0 <= row < problem.size[0] and 0 <= column < problem.size[1]:
                    value = tensors["input"][n, first + c, row, column]
                    total += float(value) * float(tensors["weight"][k, c, i, j])
    return total


ACTIVATIONS = {
    None: lambda value: value,
    "relu": lambda value: max(value, 0.0),
    "relu6": lambda value: min(max(value, 0.0), 6.0),
    "silu": lambda value: value / (1 + math.exp(-value)),
    "hardswish": lambda value: value * min(max(value + 3, 0.0), 6.0) / 6,
}


def nearest_by_loops(mask: Tensor, n: int, y: int, x: int) -> tuple[int, int] | None:
    """The first of the nearest active pixels in reading order."""
    best, found = None, None
    for row in range(mask.size(2)):
        for column in range(mask.size(3)):
            distance = (row - y) ** 2 + (column - x) ** 2
            if mask[n, 0, row, column] and (best is None or distance < best):
                best, found = distance, (row, column)
    return found


@pytest.mark.parametrize(
    "problem",
    [
        Problem(batch=2, in_channels=4, out_channels=6, size=(5, 6), groups=2),
        Problem(
            batch=1, in_channels=2, out_channels=3, size=(7, 6), stride=(2, 1), dilation=(1, 2),
            padding=(2, 1), kernel=(3, 2), has_residual=True, activation="relu6", fill="nearest",
            density=0.2,
        ),
        Problem(
            batch=2, in_channels=2, out_channels=2, size=(4, 4), activation="silu",
            fill="passthrough", activate_base=True, is_mask_shared=True, has_bias=False,
        ),
        Problem(
            batch=1, in_channels=2, out_channels=2, size=(4, 5), activation="hardswish",
            fill="passthrough",
        ),
        Problem(batch=2, in_channels=1, out_channels=1, size=(3, 4), activation="relu", density=0.1,
                fill="nearest", seed=3),
    ],
    ids=lambda problem: f"{problem.fill}-{problem.activation}",
)  # fmt: skip
def test_written_out(problem: Problem) -> None:
    tensors = problem.tensors(torch.float64)
    tensors.pop("grad_output")
    found = reference.perforated_conv2d(**tensors, **problem.options)
    mask = tensors["mask"].expand(problem.batch, -1, -1, -1)
    activation = ACTIVATIONS[problem.activation]

    def active_value(n: int, k: int, y: int, x: int) -> float:
        total = conv_by_loops(problem, tensors, n, k, y, x)
        if tensors["residual"] is not None:
            total += float(tensors["residual"][n, k, y, x])
        return activation(total)

    for n, k, y, x in torch.cartesian_prod(*map(torch.arange, problem.output_shape)).tolist():
        if mask[n, 0, y, x]:
            expected = active_value(n, k, y, x)
        elif problem.fill == "zero":
            expected = 0.0
        elif problem.fill == "passthrough":
            base = float(tensors["base"][n, k, y, x])
            expected = activation(base) if problem.activate_base else base
        else:
            source = nearest_by_loops(mask, n, y, x)
            expected = 0.0 if source is None else active_value(n, k, *source)
        assert float(found[n, k, y, x]) == pytest.approx(expected, abs=1e-12)


def test_ties_go_to_the_lowest_position() -> None:
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    mask[0, 0, [0, 1, 1, 2], [1, 0, 2, 1]] = True  # a diamond around the middle
    source = reference.nearest_source(mask)[0].tolist()
    assert source == [1, 1, 1, 3, 1, 5, 3, 7, 5]


def test_same_padding_puts_the_odd_rest_below_and_right() -> None:
    ones = torch.ones(1, 1, 3, 3)
    everywhere = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    found = reference.perforated_conv2d(ones, torch.ones(1, 1, 2, 2), everywhere, padding="same")
    assert found[0, 0].tolist() == [[4, 4, 2], [4, 4, 2], [2, 2, 1]]


def test_expand_mask_by_hand() -> None:
    mask = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    mask[0, 0, 0, 1] = True
    found = reference.expand_mask(
        mask, (2, 2), stride=(2, 2), padding=(1, 0), dilation=(2, 1), input_size=(3, 5)
    )  # the output at row -1, column 2 reads rows -1 and 1, columns 2 and 3
    assert found[0, 0].int().tolist() == [[0] * 5, [0, 0, 1, 1, 0], [0] * 5]
