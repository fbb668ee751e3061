"""boundary_loss: balance written out, several outputs, consensus, gradients, refusals."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from perfconv.losses import boundary_loss


def problem() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 4, 5, generator=generator, dtype=torch.float64)
    shares = torch.randint(0, 6, (2, 1, 4, 5), generator=generator).double() / 5
    shares[:, :, 1:3] = 0
    return logits, shares


def written_out(logits: Tensor, shares: Tensor, valid: Tensor, consensus: float) -> float:
    """The mean over images, pixel by pixel."""
    losses = []
    for i in range(len(logits)):
        pixels = zip(*(part[i].flatten().tolist() for part in (logits, shares, valid)), strict=True)
        positive, negative = [], []
        for logit, share, counts in pixels:
            probability = 1 / (1 + math.exp(-logit))
            if counts and share > consensus:
                positive.append(-math.log(probability))
            elif counts and share == 0:
                negative.append(-math.log(1 - probability))
        total = len(positive) + len(negative)
        beta = len(negative) / total
        losses.append((beta * sum(positive) + (1 - beta) * sum(negative)) / total)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("consensus", [0.0, 0.4])
def test_value(consensus: float) -> None:
    logits, shares = problem()
    valid = torch.ones_like(shares, dtype=torch.bool)
    valid[0, 0, 0, :2] = False
    expected = written_out(logits, shares, valid, consensus)
    logits = torch.where(valid, logits, torch.nan)
    found = boundary_loss(logits, shares, valid=valid, consensus=consensus)
    assert found.item() == pytest.approx(expected)


def test_outputs_add_up() -> None:
    logits, shares = problem()
    expected = boundary_loss(logits, shares) + boundary_loss(-logits, shares)
    torch.testing.assert_close(boundary_loss([logits, -logits], shares), expected)


def test_extreme_logits_stay_finite() -> None:
    shares = torch.tensor([1.0, 0.0]).reshape(1, 1, 1, 2)
    logits = torch.tensor([-1000.0, 1000.0]).reshape(1, 1, 1, 2).requires_grad_()
    loss = boundary_loss(logits, shares)
    loss.backward()
    assert loss.item() == pytest.approx(500)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_one_kind_only_costs_nothing(share: float) -> None:
    logits = torch.randn(1, 1, 3, 3, requires_grad=True)
    loss = boundary_loss(logits, torch.full((1, 1, 3, 3), share))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_gradient() -> None:
    logits, shares = problem()
    logits.requires_grad_()
    assert gradcheck(lambda x: boundary_loss([x, 2 * x], shares, consensus=0.2), logits)
    boundary_loss(logits, shares, consensus=0.5).backward()
    between = (shares > 0) & (shares <= 0.5)
    assert (logits.grad[between] == 0).all()
    assert (logits.grad[~between] != 0).all()


def test_refusals() -> None:
    maps = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"consensus must be in \[0, 1\), got 1"):
        boundary_loss(*maps, consensus=1)
    with pytest.raises(ValueError, match="logits must hold an output"):
        boundary_loss([], maps[1])
    with pytest.raises(ValueError, match="logits and boundaries must have the same shape"):
        boundary_loss(maps[0], maps[1][..., :1])
    with pytest.raises(ValueError, match=r"logits must be \(N, 1, H, W\)"):
        boundary_loss(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2))
    with pytest.raises(TypeError, match="boundaries must be floating point"):
        boundary_loss(maps[0], maps[1].bool())
