"""DroppedBlock: what stands in the place of a residual block that was left out."""

from torch import Tensor, nn


class DroppedBlock(nn.Identity):
    """The shortcut of the block that was here: the input itself. Other blocks keep their names."""

    def forward(self, input: Tensor, drop_connect_rate: float | None = None) -> Tensor:
        return input
