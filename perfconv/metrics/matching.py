"""match_boundaries: pixels of two boundary maps, one to one, within a distance."""

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class Match(NamedTuple):
    """Pixels that have a partner in the other map."""

    prediction: Tensor  # (H, W), bool
    truth: Tensor  # (H, W), bool; as many are True as in prediction


def match_boundaries(prediction: Tensor, truth: Tensor, *, max_distance: float) -> Match:
    """The largest set of pairs of a predicted and a true pixel, each used once at most.

    Pairs are at most ``max_distance`` apart. Which pixels stay without a partner is not unique;
    nearer partners are tried first.

    Args:
        prediction: (H, W), bool.
        truth: (H, W), bool.
        max_distance: pixels, Euclidean.

    Returns:
        A Match, on the CPU.

    Raises:
        ModuleNotFoundError: SciPy is not installed.
        TypeError: a map is not bool.
        ValueError: the shapes differ or are not (H, W), or the distance is below 0.

    Notes: the size is that of the evaluation of BSDS500, which also makes the sum of distances
        small and so may choose other pixels.
    Example:
        >>> line = torch.eye(4, dtype=torch.bool)
        >>> int(match_boundaries(line, line.roll(1, 0), max_distance=1.0).prediction.sum())
        3
    """
    for name, map in (("prediction", prediction), ("truth", truth)):
        if map.dtype != torch.bool:
            raise TypeError(
                f"match_boundaries: {name} must be bool, got {map.dtype}. Compare with a threshold."
            )
    if prediction.dim() != 2 or prediction.shape != truth.shape:
        raise ValueError(
            "match_boundaries: prediction and truth must have the same shape (H, W), got "
            f"{tuple(prediction.shape)} and {tuple(truth.shape)}."
        )
    if not max_distance >= 0:
        raise ValueError(
            f"match_boundaries: max_distance must be 0 or more pixels, got {max_distance}."
        )
    prediction, truth = prediction.cpu(), truth.cpu()
    partners = _partners(prediction, truth, max_distance)
    matched = Match(torch.zeros_like(prediction), torch.zeros_like(truth))
    of_prediction = prediction.nonzero()[partners >= 0]
    of_truth = truth.nonzero()[partners[partners >= 0]]
    matched.prediction[of_prediction[:, 0], of_prediction[:, 1]] = True
    matched.truth[of_truth[:, 0], of_truth[:, 1]] = True
    return matched


def _partners(prediction: Tensor, truth: Tensor, max_distance: float) -> Tensor:
    """For each predicted pixel, in order, the number of its true one, or -1."""
    try:
        from scipy.sparse.csgraph import maximum_bipartite_matching
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "match_boundaries: SciPy is needed to match boundaries and not installed. Install "
            "it: pip install 'perfconv[data]'.",
            name="scipy",
        ) from error
    count = int(prediction.sum())
    if not count or not bool(truth.any()):
        return torch.full((count,), -1)
    graph = _neighbour_graph(prediction, truth, max_distance)
    return torch.from_numpy(maximum_bipartite_matching(graph, perm_type="column")).long()


def _neighbour_graph(prediction: Tensor, truth: Tensor, max_distance: float) -> "csr_matrix":
    """Sparse matrix, predicted times true pixels: 1 where they are near; nearest first in a row."""
    import numpy as np
    from scipy.sparse import csr_matrix

    reach = int(max_distance)
    numbers = torch.full(truth.shape, -1)
    numbers[truth] = torch.arange(int(truth.sum()))
    padded = F.pad(numbers, (reach,) * 4, value=-1)
    span = torch.arange(-reach, reach + 1)
    offsets = torch.cartesian_prod(span, span)  # (K, 2)
    square = offsets.square().sum(1)
    near = square <= max_distance**2
    offsets = offsets[near][square[near].argsort(stable=True)]
    steps = offsets[:, 0] * padded.size(1) + offsets[:, 1]
    rows, columns = prediction.nonzero().unbind(1)
    centres = (rows + reach) * padded.size(1) + columns + reach
    found = padded.flatten()[centres[:, None] + steps]  # (P, K)
    starts = F.pad((found >= 0).sum(1).cumsum(0), (1, 0))
    indices = found[found >= 0]
    return csr_matrix(
        (
            np.ones(len(indices), np.int8),
            indices.numpy().astype(np.int32),
            starts.numpy().astype(np.int32),
        ),
        shape=(len(rows), int(truth.sum())),
    )
