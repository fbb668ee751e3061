"""Depth losses: against sums written out, gradients, validity, and refusals."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from perfconv.losses import log_depth_loss, scale_invariant_depth_loss


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """A prediction, metres with every kind of missing pixel, and which pixels are valid."""
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randn(3, 1, 4, 5, generator=generator, dtype=torch.float64)
    depth = torch.rand(3, 1, 4, 5, generator=generator, dtype=torch.float64) * 9 + 0.5
    depth[0, 0, 0] = torch.tensor([0.0, -1.0, math.inf, math.nan, 1.0])
    depth[2] = 0  # an image without a valid pixel
    return prediction, depth, torch.isfinite(depth) & (depth > 0)


def differences(prediction: Tensor, depth: Tensor, valid: Tensor) -> list[list[float]]:
    """Per image, of the valid pixels."""
    return [
        [
            x - math.log(d)
            for x, d, v in zip(*(part[i].flatten().tolist() for part in parts), strict=True)
            if v
        ]
        for parts in [(prediction, depth, valid)]
        for i in range(len(prediction))
    ]


@pytest.mark.parametrize("form", ["valid", "authors"])
def test_log_depth(form: str) -> None:
    prediction, depth, valid = problem()
    squares = [d * d for image in differences(prediction, depth, valid) for d in image]
    expected = (
        sum(squares) / len(squares) if form == "valid" else 0.5 * sum(squares) / depth.numel()
    )
    assert log_depth_loss(prediction, depth, form=form).item() == pytest.approx(expected)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_scale_invariant(balance: float) -> None:
    prediction, depth, valid = problem()
    per_image = [
        sum(d * d for d in image) / len(image) - balance * (sum(image) / len(image)) ** 2
        for image in differences(prediction, depth, valid)
        if image
    ]
    found = scale_invariant_depth_loss(prediction, depth, balance=balance).item()
    assert found == pytest.approx(sum(per_image) / len(per_image))


def test_a_common_factor_costs_nothing() -> None:
    prediction, depth, _ = problem()
    first, second = (
        scale_invariant_depth_loss(prediction + shift, depth, balance=1.0) for shift in (0, 2)
    )
    torch.testing.assert_close(first, second)
    assert log_depth_loss(prediction, depth) != log_depth_loss(prediction + 2, depth)


@pytest.mark.parametrize("loss", [log_depth_loss, scale_invariant_depth_loss])
def test_gradient(loss: object) -> None:
    prediction, depth, valid = problem()
    valid[1, 0, 0, 0] = False
    prediction.requires_grad_()
    assert gradcheck(lambda x: loss(x, depth, valid=valid), prediction)
    loss(prediction, depth, valid=valid).backward()
    assert (prediction.grad[~valid] == 0).all()
    assert (prediction.grad[valid] != 0).all()


@pytest.mark.parametrize("loss", [log_depth_loss, scale_invariant_depth_loss])
def test_nothing_valid(loss: object) -> None:
    prediction = torch.randn(2, 1, 3, 3, requires_grad=True)
    value = loss(prediction, torch.zeros(2, 1, 3, 3))
    value.backward()
    assert value.item() == 0
    assert (prediction.grad == 0).all()


@pytest.mark.parametrize("loss", [log_depth_loss, scale_invariant_depth_loss])
def test_refusals(loss: object) -> None:
    maps = torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    name = loss.__name__
    with pytest.raises(ValueError, match=f"{name}: log_depth and depth_m must have the same shape"):
        loss(maps[0], maps[1][..., :3])
    with pytest.raises(ValueError, match=rf"{name}: log_depth must be \(N, 1, H, W\)"):
        loss(torch.ones(2, 2, 4, 4), torch.ones(2, 2, 4, 4))
    with pytest.raises(TypeError, match=f"{name}: depth_m must be floating point"):
        loss(maps[0], maps[1].long())
    with pytest.raises(TypeError, match=f"{name}: valid must be bool"):
        loss(*maps, valid=maps[0])
    with pytest.raises(ValueError, match=rf"{name}: valid must be \(N, 1, H, W\) = \(2, 1, 4, 4\)"):
        loss(*maps, valid=maps[0][:1] > 0)


def test_own_refusals() -> None:
    maps = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match="form must be one of"):
        log_depth_loss(*maps, form="l1")
    with pytest.raises(ValueError, match=r"balance must be in \[0, 1\], got 1.5"):
        scale_invariant_depth_loss(*maps, balance=1.5)
