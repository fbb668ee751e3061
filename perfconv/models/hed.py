"""HED, the holistically-nested edge detector: a VGG-16 trunk with an edge map after each block.

Blocks can be computed at the active pixels of a mask only. Weights: models/hed_weights.py.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple

from perfconv.nn.conv import PerforatedConv2d
from perfconv.ops.conv import perforated_conv2d
from perfconv.ops.mask import ActivePixels, compact_mask

# Channels and number of convolutions of the five blocks of VGG-16.
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))

# Mean colour of the images VGG-16 was trained on: blue, green, red, in [0, 255].
MEAN_BGR = (104.007, 116.669, 122.679)

Masks = Mapping[int, Tensor | ActivePixels]


class EdgeMaps(NamedTuple):
    """What HED makes of an image."""

    edges: Tensor  # (N, 1, H, W), probability that a pixel lies on an edge
    sides: tuple[Tensor, ...]  # five logit maps, (N, 1, H_k, W_k) for the block sizes (H_k, W_k)


# So that exported programs that return it can be saved.
_register_namedtuple(EdgeMaps, serialized_type_name="perfconv.EdgeMaps")


class Block(nn.Sequential):
    """The convolutions between two pools, ``conv1`` to ``conv3``; one mask serves all of them."""

    def __init__(self, in_channels: int, channels: int, depth: int, *, fill: str) -> None:
        widths = [in_channels] + [channels] * depth
        super().__init__(
            OrderedDict(
                (
                    f"conv{i + 1}",
                    PerforatedConv2d(widths[i], widths[i + 1], 3, padding=1, fill=fill),
                )
                for i in range(depth)
            )
        )

    def forward(
        self,
        input: Tensor,
        mask: Tensor | ActivePixels | None = None,
        *,
        algorithm: str = "auto",
    ) -> Tensor:
        for convolution in self:
            input = conv_relu(cast(PerforatedConv2d, convolution), input, mask, algorithm=algorithm)
        return input


def conv_relu(
    convolution: PerforatedConv2d,
    input: Tensor,
    mask: Tensor | ActivePixels | None,
    *,
    algorithm: str = "auto",
) -> Tensor:
    """ReLU of a convolution; in one pass, at active pixels, where there is a mask."""
    if mask is None:
        return convolution(input).relu_()
    return perforated_conv2d(
        input,
        convolution.weight,
        mask,
        convolution.bias,
        padding=1,
        fill=convolution.fill,
        activation="relu",
        algorithm=algorithm,
        packed_weight=convolution.current_pack(),
    )


class HED(nn.Module):
    """HED over a VGG-16 trunk: five blocks, a side edge map after each, one fused edge map.

    Blocks are numbered 1 to 5 and work at 1, 1/2, 1/4, 1/8 and 1/16 of the image size, rounded up.
    Parameters: ``block{k}.conv{i}``, ``side{k}`` and ``fuse``, each with ``weight`` and ``bias``.

    Args:
        fill: what inactive pixels of a perforated block hold, "zero" or "nearest".

    Source: Xie and Tu 2015, section 3. Side outputs are upsampled bilinearly to the image size
        instead of by a transposed convolution and a crop; pools round sizes up.
    Example:
        >>> model = HED().eval()
        >>> image, masks = torch.rand(1, 3, 64, 64), {2: torch.rand(1, 1, 32, 32) < 0.5}
        >>> model(image, masks).edges.shape
        torch.Size([1, 1, 64, 64])
    """

    mean_bgr: Tensor  # (1, 3, 1, 1)

    def __init__(self, *, fill: str = "zero") -> None:
        super().__init__()
        if fill not in ("zero", "nearest"):
            raise ValueError(
                f"HED: fill must be 'zero' or 'nearest', got {fill!r}. 'passthrough' needs as many "
                "input as output channels, which four of the blocks lack."
            )
        in_channels = 3
        for number, (channels, depth) in enumerate(BLOCKS, 1):
            self.add_module(f"block{number}", Block(in_channels, channels, depth, fill=fill))
            self.add_module(f"side{number}", PerforatedConv2d(channels, 1, 1, fill="passthrough"))
            in_channels = channels
        self.fuse = nn.Conv2d(len(BLOCKS), 1, 1)
        mean = torch.tensor(MEAN_BGR).view(1, 3, 1, 1)
        self.register_buffer("mean_bgr", mean, persistent=False)

    def forward(
        self,
        image: Tensor,
        masks: Masks | None = None,
        base_sides: tuple[Tensor, ...] | None = None,
        *,
        algorithm: str = "auto",
    ) -> EdgeMaps:
        """Edge maps of a batch of images.

        Args:
            image: (N, 3, H, W), red, green, blue in [0, 1].
            masks: block number (1 to 5) to the mask of its output pixels, (N or 1, 1, H_k, W_k)
                bool, or its ActivePixels; see ``block_sizes``. A block without a mask is dense.
            base_sides: five logit maps (N, 1, any height, any width), such as ``sides`` of a pass
                over a smaller image: what side outputs hold at the inactive pixels of a perforated
                block. None: what the side's 1x1 convolution makes of the filled features.
            algorithm: of every perforated 3x3 convolution, as in ``perforated_conv2d``.

        Returns:
            EdgeMaps, dtype and device of ``image``.

        Raises:
            ValueError: a block number or a shape above does not hold.
        """
        masks = self._checked(image, masks, base_sides)
        features = image.flip(1) * 255 - self.mean_bgr
        features = features.contiguous(memory_format=_layout(image))
        sides = []
        for number in range(1, len(BLOCKS) + 1):
            if number > 1:
                features = F.max_pool2d(features, 2, ceil_mode=True)
            active = masks.get(number)
            features = getattr(self, f"block{number}")(features, active, algorithm=algorithm)
            base = None if base_sides is None else base_sides[number - 1]
            sides.append(self._side(number, features, active, base))
        size = (image.size(2), image.size(3))
        upsampled = [sides[0], *(_resize(side, size) for side in sides[1:])]
        logits = self.fuse(torch.cat(upsampled, 1))  # (N, 1, H, W)
        return EdgeMaps(logits.sigmoid(), tuple(sides))

    def _side(
        self, number: int, features: Tensor, active: ActivePixels | None, base: Tensor | None
    ) -> Tensor:
        """The logits of one block, (N, 1, H_k, W_k); ``base`` at its inactive pixels."""
        layer = getattr(self, f"side{number}")
        if active is None or base is None:
            return F.conv2d(features, layer.weight, layer.bias)
        return torch.where(
            active.mask,
            F.conv2d(features, layer.weight, layer.bias),
            _resize(base, (features.size(2), features.size(3))),
        )

    def _checked(
        self, image: Tensor, masks: Masks | None, base_sides: tuple[Tensor, ...] | None
    ) -> dict[int, ActivePixels]:
        if image.dim() != 4 or image.size(1) != 3:
            raise ValueError(
                f"HED: image must be (N, 3, H, W), got {tuple(image.shape)}. For one image, "
                "image.unsqueeze(0)."
            )
        if base_sides is not None and len(base_sides) != len(BLOCKS):
            raise ValueError(
                f"HED: base_sides must be {len(BLOCKS)} maps, one for each block, got "
                f"{len(base_sides)}. Pass EdgeMaps.sides of another image size."
            )
        sizes = block_sizes(image.size(2), image.size(3))
        checked = {}
        for number, mask in (masks or {}).items():
            if number not in range(1, len(BLOCKS) + 1):
                raise ValueError(
                    f"HED: masks are keyed by block, 1 to {len(BLOCKS)}, got {number}."
                )
            active = mask if isinstance(mask, ActivePixels) else compact_mask(mask)
            if tuple(active.mask.shape[-2:]) != sizes[number - 1]:
                raise ValueError(
                    f"HED: the mask of block {number} must be (N or 1, 1, H, W) with (H, W) = "
                    f"{sizes[number - 1]} for this image, got {tuple(active.mask.shape)}. Use "
                    "perfconv.models.hed.block_sizes and perfconv.downsample_mask."
                )
            checked[number] = active
        return checked


def block_sizes(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """(H_k, W_k) of the five blocks for an image of this size, in pixels."""
    sizes = [(height, width)]
    for _ in BLOCKS[1:]:
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return tuple(sizes)


def _layout(tensor: Tensor) -> torch.memory_format:
    is_last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
