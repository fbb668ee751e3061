"""Scene parsers: a trunk with heads, and the recurrent one that re-estimates depth."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from perfconv.models.heads import blurred, features_read, upsample
from perfconv.models.multi_scale import MultiScaleTrunk
from perfconv.models.resnet import ResNet, features_of
from perfconv.nn.depth_branch import DepthPrediction
from perfconv.nn.depth_pool import DepthAwarePool
from perfconv.nn.hooks import has_hooks
from perfconv.nn.recurrent import RecurrentRefinement, merge


class SceneParser(nn.Module):
    """One trunk and a head for each task.

    Args:
        trunk: returns features by name; if its ``forward`` takes ``names``, those alone.
        heads: by task; each takes the features, those of ``reads`` if it has that, and the size of
            the image.
    """

    def __init__(self, trunk: ResNet | MultiScaleTrunk, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict(dict(heads))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The maps of every task for ``images`` (N, 3, H, W), RGB in [0, 1], at their size.

        "segmentation" (N, classes, H, W) logits, "log_depth" (N, 1, H, W), "normals" (N, 3, H, W)
        of length 1, "boundary" (N, 1, H, W) logits; in training "boundary_sides" too.
        """
        features = features_of(self.trunk, images, self._names_read())
        size = (images.size(2), images.size(3))
        found: dict[str, Tensor] = {}
        for head in self.heads.values():
            found.update(head(features, size))
        return found

    def _names_read(self) -> list[str] | None:
        """The features that the heads read; None for all, also where a hook may look at them."""
        names: list[str] = []
        for head in self.heads.values():
            reads = features_read(head)
            if reads is None or has_hooks(head):
                return None
            names += reads
        return names


class StageOutput(NamedTuple):
    """What the feed-forward pass, or one loop, says."""

    segmentation: Tensor  # (N, classes, H, W), logits at the size of the image
    depth: DepthPrediction | None  # at the resolution of the features
    choice: Tensor | None  # (N, 1, h, w), int64, the dilation index of each pixel, if hard
    weights: Tensor | None = None  # (N, K, h, w), of the dilations, if soft

    @property
    def pooling(self) -> Tensor | None:
        """(N, 1, h, w), int64: the dilation that counts most at each pixel; None without a pool."""
        if self.weights is not None:
            return self.weights.argmax(1, keepdim=True)
        return self.choice


# So that exported programs that return it can be saved.
_register_namedtuple(StageOutput, serialized_type_name="perfconv.StageOutput")


class DepthAwareParser(nn.Module):
    """Trunk with res6, depth-aware pool, classifier; then loops of recurrent refinement.

    Args:
        trunk: with res6, whose channels the pool has.
        pool: of res6; its depth branch, if any, sees res5.
        classes: of the classifier.
        refinement: the loops; None for the feed-forward network alone.
        dropout: before the classifier.
        blur_radius: of the depth that ``predict`` gives, as of :class:`DepthHead`.
    """

    def __init__(
        self,
        trunk: ResNet,
        pool: DepthAwarePool,
        classes: int,
        *,
        refinement: RecurrentRefinement | None = None,
        dropout: float = 0.1,
        blur_radius: int = 0,
    ) -> None:
        super().__init__()
        info = trunk.feature_info[-1]
        if info.name != "res6":
            raise ValueError(
                f"DepthAwareParser: the trunk must have res6, got one that ends with {info.name}. "
                "Build it with res6_channels."
            )
        self.trunk = trunk
        self.pool = pool
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(info.channels, classes, 1)
        self.refinement = refinement
        self.stride = info.stride
        self.blur_radius = blur_radius

    def forward(self, images: Tensor, depth: Tensor | None = None) -> list[StageOutput]:
        """The outputs of the feed-forward pass and of every loop, each for its losses.

        Args:
            images: (N, 3, H, W), RGB in [0, 1].
            depth: (N, 1, H, W), in the unit of the pool's bins: metres, unless others than the
                builders' are given; for true depth.
        """
        size = (images.size(2), images.size(3))
        features = features_of(self.trunk, images, ("res5", "res6"))
        pooled = self.pool(features["res6"], depth, depth_features=features["res5"])
        logits = self.classifier(self.dropout(pooled.features))
        large = upsample(logits, self.stride, size)
        stages = [StageOutput(large, pooled.depth, pooled.choice, pooled.weights)]
        if self.refinement is not None:
            for loop in self.refinement(features["res6"], pooled.features, depth):
                large = upsample(loop.logits, self.stride, size)
                stages.append(StageOutput(large, loop.depth, loop.choice, loop.weights))
        return stages

    def predict(
        self, images: Tensor, depth: Tensor | None = None, *, merging: str = "last"
    ) -> dict[str, Tensor]:
        """One map for each task, as :class:`SceneParser` returns them.

        Args:
            images, depth: as for ``forward``.
            merging: of the stages' probabilities: "last", "mean" or "max"; "segmentation" is their
                logarithm unless "last". Depth is of the last stage that predicts it.
        """
        return self.merged(self(images, depth), merging=merging)

    def merged(self, stages: Sequence[StageOutput], *, merging: str = "last") -> dict[str, Tensor]:
        """What ``predict`` returns, from the outputs of ``forward``."""
        logits = stages[-1].segmentation
        if merging != "last":
            tiny = torch.finfo(logits.dtype).tiny
            logits = merge([s.segmentation for s in stages], merging).clamp(min=tiny).log()
        found = {"segmentation": logits}
        depths = [s.depth.log_depth for s in stages if s.depth is not None]
        for log_depth in [depth for depth in depths if depth is not None][-1:]:
            size = (logits.size(2), logits.size(3))
            large = upsample(log_depth, self.stride, size)
            found["log_depth"] = blurred(large, self.blur_radius)
        return found
