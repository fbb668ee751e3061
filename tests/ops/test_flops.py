"""FLOP formulas: FlopCounterMode counts what the masks need, forwards and backwards."""

import pytest
import torch
from helpers import Problem
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import perfconv


def counted(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def by_hand(problem: Problem, active: int) -> int:
    macs = problem.out_channels * problem.in_channels // problem.groups
    return 2 * active * macs * problem.kernel[0] * problem.kernel[1]


@pytest.mark.parametrize(
    "problem",
    [
        Problem(),
        Problem(is_mask_shared=True),
        Problem(groups=4),
        Problem(size=(13, 16), stride=(2, 3)),
        Problem(density=0.0),
        Problem(batch=0),
        Problem(batch=0, is_mask_shared=True),
        Problem(batch=1, size=(1, 1), density=1.0),
    ],
    ids=lambda problem: f"N{problem.batch}g{problem.groups}d{problem.density}s{problem.stride}",
)
def test_forward_and_backward(problem: Problem) -> None:
    tensors = problem.tensors(torch.float32)
    input, weight = tensors["input"].requires_grad_(), tensors["weight"].requires_grad_()
    images = problem.batch if problem.is_mask_shared else 1
    forward = by_hand(problem, int(tensors["mask"].sum()) * images)

    def compute() -> torch.Tensor:
        return perfconv.perforated_conv2d(input, weight, tensors["mask"], **problem.geometry)

    assert counted(compute) == forward
    assert counted(lambda: compute().backward(tensors["grad_output"])) == 3 * forward


def test_gate() -> None:
    input = torch.randn(2, 8, 9, 11)
    assert counted(lambda: perfconv.gate_mask(input, torch.randn(2, 8), None)) == 4 * input.numel()


def test_network() -> None:
    """A perforated layer between two others, per module, at the real density of its mask."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        perfconv.PerforatedConv2d(8, 16, 3, padding=1),
        nn.Conv2d(16, 4, 1),
    )
    state = perfconv.MaskState()
    network[1].mask_state = state
    mask = torch.rand(2, 1, 10, 12) < 0.3
    state.set(mask)
    input = torch.randn(2, 3, 10, 12)
    with FlopCounterMode(display=False) as counter:
        network(input)
    by_module = counter.get_flop_counts()
    op = torch.ops.perfconv.perforated_conv2d
    assert by_module["Sequential.1"] == {op: 2 * int(mask.sum()) * 16 * 8 * 9}
    dense = 2 * 240 * (8 * 3 * 9 + 4 * 16)
    assert counter.get_total_flops() == dense + by_module["Sequential.1"][op]


def test_without_data_every_pixel_counts() -> None:
    input, weight = torch.empty(2, 8, 9, 11, device="meta"), torch.empty(12, 8, 3, 3, device="meta")
    mask = torch.empty(1, 1, 9, 11, dtype=torch.bool, device="meta")
    flops = counted(lambda: perfconv.perforated_conv2d(input, weight, mask, padding=1))
    assert flops == by_hand(Problem(), 2 * 9 * 11)
