"""refinement_loss: the losses of a recurrent network's stages, weighted as the authors did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StageWeights:
    """Factors of the losses of one stage; a term with factor 0 need not be given."""

    segmentation: float
    depth_bins: float = 0.0  # classification of the pooling size
    depth: float = 0.0  # regression of log depth


# The feed-forward pass, then each loop. Kong and Fowlkes 2018, released training scripts.
NYUV2_WEIGHTS = (
    StageWeights(1.0, depth_bins=0.01, depth=0.001),
    StageWeights(5.0, depth_bins=0.01, depth=0.001),
    StageWeights(5.0, depth_bins=0.01, depth=0.001),
)
CITYSCAPES_WEIGHTS = (
    StageWeights(0.0),
    StageWeights(0.1, depth_bins=0.01),
    StageWeights(0.5, depth_bins=0.01),
    StageWeights(1.0, depth_bins=0.01),
)


def refinement_loss(
    stages: Sequence[Mapping[str, Tensor]], weights: Sequence[StageWeights] = NYUV2_WEIGHTS
) -> Tensor:
    """The weighted sum of the losses of all stages.

    Args:
        stages: the losses of the feed-forward pass, then of each loop, scalars by name
            ("segmentation", "depth_bins", "depth"). A stage may leave terms out.
        weights: of at least as many stages; those beyond the last stage are not used.

    Returns:
        A scalar.

    Raises:
        KeyError: a term is none of the three.
        ValueError: there is no stage, more stages than weights, or no term with a factor above 0.

    Example:
        >>> base = {"segmentation": torch.tensor(2.0), "depth_bins": torch.tensor(1.0)}
        >>> loop = {"segmentation": torch.tensor(1.0)}
        >>> round(float(refinement_loss([base, loop])), 4)
        7.01
    """
    if not 1 <= len(stages) <= len(weights):
        raise ValueError(
            f"refinement_loss: stages must be 1 .. {len(weights)} for these weights, got "
            f"{len(stages)}. Give a StageWeights for each stage."
        )
    terms: list[Tensor] = []
    for losses, factors in zip(stages, weights, strict=False):
        for name, loss in losses.items():
            if name not in StageWeights.__dataclass_fields__:
                raise KeyError(
                    "refinement_loss: terms are segmentation, depth_bins and depth, got "
                    f"{name!r}. Add others to the result."
                )
            factor = getattr(factors, name)
            if factor:
                terms.append(factor * loss)
    if not terms:
        raise ValueError(
            "refinement_loss: a term must have a factor above 0, got none. Check names and weights."
        )
    return torch.stack(terms).sum()
