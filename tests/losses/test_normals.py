"""Losses of surface normals: angles, gradients also at parallel vectors, validity, refusals."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck

from perfconv.losses import inverse_cosine_loss, normals_l2_loss, normals_loss


def vectors(*rows: tuple[float, float, float]) -> Tensor:
    """(1, 3, 1, W), float64."""
    return torch.tensor(rows, dtype=torch.float64).T.reshape(1, 3, 1, -1)


def problem() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    prediction = F.normalize(
        torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64), dim=1
    )
    normals = F.normalize(torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64), dim=1)
    normals[0, :, 0, 0] = 0
    normals[0, :, 0, 1] = torch.nan
    valid = torch.ones(2, 1, 3, 4, dtype=torch.bool)
    valid[1, 0, 2, 2] = False
    return prediction, normals, valid


@pytest.mark.parametrize("form", ["valid", "authors"])
def test_values(form: str) -> None:
    prediction, normals, valid = problem()
    counts = valid & torch.isfinite(normals).all(1, True) & (normals != 0).any(1, True)
    squares, angles = [], []
    for image, _, row, column in counts.nonzero().tolist():
        n, m = prediction[image, :, row, column], normals[image, :, row, column]
        squares.append(0.5 * (n - m).square().sum().item())
        angles.append(math.acos((n @ m).item()))
    assert len(angles) == 2 * 12 - 3
    divisor = len(angles) if form == "valid" else 3 * 2 * 12
    l2 = normals_l2_loss(prediction, normals, valid=valid, form=form)
    angle = inverse_cosine_loss(prediction, normals, valid=valid, form=form)
    assert l2.item() == pytest.approx(sum(squares) / divisor)
    assert angle.item() == pytest.approx(sum(angles) / divisor)
    both = normals_loss(prediction, normals, valid=valid, form=form, l2_weight=3, angle_weight=2)
    torch.testing.assert_close(both, 3 * l2 + 2 * angle)


@pytest.mark.parametrize(("square", "in_l2"), [(0.85, False), (0.95, True)])
def test_short_normals_in_the_authors_form(square: float, in_l2: bool) -> None:
    """Their L2 term counts squared lengths above 0.9, the angle those above 0.5."""
    prediction = vectors((0, 0, 1))
    normals = vectors((0, square**0.5, 0))
    assert bool(normals_l2_loss(prediction, normals, form="authors") > 0) == in_l2
    assert normals_l2_loss(prediction, normals) > 0
    assert inverse_cosine_loss(prediction, normals, form="authors") > 0


def test_small_angles_in_float32() -> None:
    """Where acos of the rounded cosine has lost every digit."""
    angles = torch.tensor([1e-4, 1e-5, math.pi - 1e-4], dtype=torch.float64)
    prediction = vectors(*[(math.sin(a), 0.0, math.cos(a)) for a in angles.tolist()]).float()
    found = inverse_cosine_loss(prediction, vectors(*[(0.0, 0.0, 1.0)] * 3).float())
    assert found.item() == pytest.approx(angles.mean().item(), rel=1e-6)


def test_gradient() -> None:
    prediction, normals, valid = problem()
    prediction.requires_grad_()
    assert gradcheck(lambda x: normals_loss(x, normals, valid=valid), prediction)
    normals_loss(prediction, normals, valid=valid).backward()
    assert (prediction.grad[~valid.expand_as(prediction)] == 0).all()
    assert torch.isfinite(prediction.grad).all()


@pytest.mark.parametrize("form", ["valid", "authors"])
def test_gradient_at_parallel_opposite_and_zero(form: str) -> None:
    prediction = vectors((0, 0, 1), (0, 0, -1), (0, 0, 0)).requires_grad_()
    target = vectors(*[(0, 0, 1)] * 3)
    loss = inverse_cosine_loss(prediction, target, form=form)
    assert loss.item() == pytest.approx((0 + math.pi + math.pi / 2) / (3 if form == "valid" else 9))
    loss.backward()
    assert torch.isfinite(prediction.grad).all()
    if form == "authors":  # -1 / (0.2 + sqrt(1 - t^2)) / (3 * 3 pixels), times the target
        expected = [-1 / 0.2 / 9, -1 / 0.2 / 9, -1 / 1.2 / 9]
        assert prediction.grad[0, 2, 0].tolist() == pytest.approx(expected)


def test_lengths_do_not_change_the_angle() -> None:
    prediction, normals, _ = problem()
    torch.testing.assert_close(
        inverse_cosine_loss(prediction, normals), inverse_cosine_loss(3 * prediction, normals)
    )


def test_a_step_along_the_gradient_turns_towards_the_target() -> None:
    prediction = vectors((1, 0, 0.01)).requires_grad_()
    target = vectors((0, 1, 0))
    loss = inverse_cosine_loss(prediction, target)
    (grad,) = torch.autograd.grad(loss, prediction)
    assert grad.norm().item() == pytest.approx(1 / prediction.norm().item())
    assert inverse_cosine_loss(prediction - 0.1 * grad, target) < loss - 0.09


def test_nothing_valid() -> None:
    prediction = F.normalize(torch.randn(1, 3, 2, 2), dim=1).requires_grad_()
    loss = normals_loss(prediction, torch.zeros(1, 3, 2, 2))
    loss.backward()
    assert loss.item() == 0
    assert (prediction.grad == 0).all()


@pytest.mark.parametrize("loss", [normals_l2_loss, inverse_cosine_loss])
def test_refusals(loss: object) -> None:
    maps = torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    name = loss.__name__
    with pytest.raises(ValueError, match=f"{name}: prediction and normals must have the same"):
        loss(maps[0], maps[1][:, :2])
    with pytest.raises(ValueError, match=rf"{name}: prediction must be \(N, 3, H, W\)"):
        loss(maps[0][:, :2], maps[1][:, :2])
    with pytest.raises(TypeError, match=f"{name}: prediction must be floating point"):
        loss(maps[0].int(), maps[1])
    with pytest.raises(TypeError, match=f"{name}: valid must be bool"):
        loss(*maps, valid=torch.ones(1, 1, 2, 2))
    with pytest.raises(ValueError, match=f"{name}: form must be one of"):
        loss(*maps, form="cosine")
