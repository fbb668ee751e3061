"""refinement_loss: the authors' weights, terms left out, and refusals."""

import pytest
import torch

from perfconv.losses import CITYSCAPES_WEIGHTS, StageWeights, refinement_loss


def stage(**losses: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(loss, requires_grad=True) for name, loss in losses.items()}


def test_nyuv2_is_the_default() -> None:
    stages = [stage(segmentation=2.0, depth_bins=3.0, depth=4.0) for _ in range(3)]
    expected = 2 * (1 + 5 + 5) + 3 * 0.01 * 3 + 4 * 0.001 * 3
    assert refinement_loss(stages).item() == pytest.approx(expected)


def test_cityscapes() -> None:
    stages = [stage(segmentation=2.0, depth_bins=3.0) for _ in range(4)]
    expected = 2 * (0.1 + 0.5 + 1) + 3 * 0.01 * 3
    assert refinement_loss(stages, CITYSCAPES_WEIGHTS).item() == pytest.approx(expected)


def test_gradient_is_the_weight() -> None:
    stages = [stage(segmentation=2.0), stage(depth=1.0)]
    refinement_loss(stages, [StageWeights(0.5), StageWeights(1.0, depth=0.25)]).backward()
    assert stages[0]["segmentation"].grad.item() == 0.5
    assert stages[1]["depth"].grad.item() == 0.25


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"stages must be 1 \.\. 3 for these weights, got 4"):
        refinement_loss([stage(segmentation=1.0)] * 4)
    with pytest.raises(ValueError, match="got 0"):
        refinement_loss([])
    with pytest.raises(KeyError, match="got 'normals'"):
        refinement_loss([stage(normals=1.0)])
    with pytest.raises(ValueError, match="a term must have a factor above 0"):
        refinement_loss([stage(segmentation=1.0)], CITYSCAPES_WEIGHTS)
