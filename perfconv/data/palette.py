"""Colours of classes."""

from collections.abc import Sequence

import torch
from torch import Tensor

from perfconv.data.sample import IGNORE


def palette(colours: Sequence[tuple[int, int, int]] | None = None) -> Tensor:
    """(256, 3), in [0, 1]: a colour for each label; unknown is black.

    Args:
        colours: a data set's own, 0 .. 255; None: those of PASCAL VOC, moved by one, since its 0 is
            background.
    """
    found = torch.zeros(IGNORE + 1, 3)
    if colours is not None:
        found[: len(colours)] = torch.tensor(colours) / 255
        return found
    for label in range(IGNORE):
        bits = label + 1
        for plane in range(8):
            for channel in range(3):
                bit = bits >> (3 * plane + channel) & 1
                found[label, channel] += bit * (128 >> plane) / 255
    return found
