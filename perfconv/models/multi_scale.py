"""MultiScaleTrunk: one trunk on images of several sizes, weighted for each pixel."""

from collections.abc import Collection, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from perfconv.models.augmentation import resized_images
from perfconv.models.resnet import ResNet, features_of
from perfconv.nn.dilation_pool import weighted_sum
from perfconv.nn.scale_gate import ScaleGate


class MultiScaleTrunk(nn.Module):
    """The alternative to dilations: the last feature is a sum over image scales.

    Every scale goes through the same trunk; its last feature is resized to that of scale 1, and the
    sum takes the softmax of a :class:`ScaleGate` of scale 1 as weights. Other features are those of
    scale 1. Costs the trunk times the sum of the squared scales.

    Args:
        trunk: of every scale.
        scales: factors of the image's size; 1 must be one of them.

    Source: Kong and Fowlkes 2018, "MultiScale (input)", of which no code was released.
    Example:
        >>> from perfconv.models import resnet_trunk
        >>> trunk = MultiScaleTrunk(resnet_trunk(18), (0.5, 1.0)).eval()
        >>> trunk(torch.rand(1, 3, 64, 48))["res5"].shape
        torch.Size([1, 512, 8, 6])
    """

    def __init__(self, trunk: ResNet, scales: Sequence[float] = (0.5, 1.0)) -> None:
        super().__init__()
        if 1 not in scales or not all(scale > 0 for scale in scales):
            raise ValueError(
                f"MultiScaleTrunk: scales must be above 0 and hold 1, got {tuple(scales)}. Add 1, "
                "whose feature map the others are resized to."
            )
        self.trunk = trunk
        self.scales = tuple(scales)
        self.feature_info = trunk.feature_info
        self.gate = ScaleGate(self.feature_info[-1].channels, len(self.scales))

    def forward(self, images: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """The features of ``images`` (N, 3, H, W), as :class:`ResNet` returns them."""
        name = self.feature_info[-1].name
        features = features_of(self.trunk, images, names if names is None else {*names, name})
        single = features[name]
        maps = [
            single if scale == 1 else self._rescaled(images, scale, single) for scale in self.scales
        ]
        return {**features, name: weighted_sum(maps, self.gate.logits(single).softmax(1))}

    def _rescaled(self, images: Tensor, scale: float, single: Tensor) -> Tensor:
        name = self.feature_info[-1].name
        height, width = (max(1, round(side * scale)) for side in images.shape[2:])
        scaled = resized_images(images, (height, width), is_smaller=scale < 1)
        found = features_of(self.trunk, scaled, (name,))[name]
        return F.interpolate(
            found, size=single.shape[2:], mode="bilinear", align_corners=False
        )  # (N, C, h, w)

    def extra_repr(self) -> str:
        return f"scales={self.scales}"
