"""Gates that cost what a gate costs and open the pixels they are told to."""

import torch
from torch import Tensor

import perfconv
from perfconv.nn import PixelGate
from perfconv.ops import ActivePixels


class GivenGate(PixelGate):
    """Reads its input and decides as ever, then hands out the mask it was given.

    Not ``force_gates``, which saves the gate: its time belongs to what is measured.
    """

    given: ActivePixels | None = None

    def give(self, mask: Tensor) -> None:
        self.given = perfconv.compact_mask(mask)

    def _fused_decision(self, input: Tensor) -> ActivePixels:
        decided = super()._fused_decision(input)
        return decided if self.given is None else self.given


def read_bandwidth(mebibytes: int = 256, repeats: int = 7) -> float:
    """Bytes a second at which this machine reads memory, with torch's threads."""
    from timing import median_ms

    values = torch.ones(mebibytes << 18)
    return values.nbytes / (1e-3 * median_ms(values.sum, repeats))
