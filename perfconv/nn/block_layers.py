"""BlockLayers: the layers of a residual block, found by its structure, and their geometry."""

from typing import cast

from torch import Tensor, nn

from perfconv.nn.batch_norm import has_statistics
from perfconv.nn.block_structure import BlockStructure, Stage
from perfconv.nn.in_place import InPlaceBlock
from perfconv.nn.stage_conv import as_bool
from perfconv.nn.stage_masks import stage_masks, stage_sizes
from perfconv.ops.mask import ActivePixels


class BlockLayers(InPlaceBlock):
    """What a gated block knows of its layers, whatever their names; says nothing of gates."""

    structure: BlockStructure

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The convolutions of the branch, with what follows each."""
        return self.structure.stages

    @property
    def stride(self) -> tuple[int, int]:
        """Input pixels per output pixel, (h, w)."""
        vertical = horizontal = 1
        for stage in self.stages:
            steps = self._conv(stage).stride
            vertical, horizontal = vertical * steps[0], horizontal * steps[1]
        return vertical, horizontal

    def _layer(self, path: str) -> nn.Module:
        layer: nn.Module = self
        for name in path.split("."):
            layer = getattr(layer, name)
        return layer

    def _conv(self, stage: Stage) -> nn.Conv2d:
        return cast(nn.Conv2d, self._layer(stage.conv))

    def _norm(self, stage: Stage) -> nn.Module:
        return self._layer(stage.norm)

    @property
    def projection(self) -> nn.Module | None:
        """The layer of the shortcut; None where that is the input itself."""
        path = self.structure.shortcut
        return None if path is None else self._layer(path)

    def _is_projection(self) -> bool:
        return self.structure.shortcut is not None

    def _has_active_statistics(self) -> bool:
        return any(has_statistics(self._norm(stage)) for stage in self.stages)

    def _sizes(self, input: Tensor) -> list[tuple[int, int]]:
        """The output size of each stage."""
        return stage_sizes(self.stages, self.stage_convs(), input)

    def _masks(self, mask: Tensor | ActivePixels, sizes: list[tuple[int, int]]) -> list:
        """The pixels that each stage must compute, None for all of them."""
        squeezed = None if self.structure.squeeze is None else len(self.stages) - 2
        return stage_masks(self.stages, self.stage_convs(), mask, sizes, squeezed)

    @property
    def perforated_stages(self) -> list[str]:
        """The convolutions that sparse execution computes at some pixels only, in their order."""
        first = max(0, len(self.stages) - 2) if self.structure.squeeze is not None else 0
        return [stage.conv for stage in self.stages[first:]]

    def needed_masks(self, mask: Tensor, input: Tensor) -> list[Tensor | None]:
        """For each stage the pixels that this mask of the gate needs, None for all of them."""
        needed_masks = self._masks(mask, self._sizes(input))
        return [None if needed is None else as_bool(needed) for needed in needed_masks]

    def stage_convs(self) -> list[nn.Conv2d]:
        """The convolutions of the branch."""
        return [self._conv(stage) for stage in self.stages]

    def _pixel_macs(self) -> int:
        """MACs of the branch for one output pixel; layers before a stride have several pixels."""
        vertical, horizontal = self.stride
        macs = 0
        for stage in self.stages:
            conv = self._conv(stage)
            vertical, horizontal = vertical // conv.stride[0], horizontal // conv.stride[1]
            macs += vertical * horizontal * conv.weight.numel()
        return macs
