"""The operators: validation, one call of a native operator, and its gradients."""

from perfconv.ops import flops  # noqa: F401  (registers the formulas)
from perfconv.ops.conv import explain, perforated_conv2d
from perfconv.ops.conv_into import perforated_conv2d_into
from perfconv.ops.gate import gate_mask
from perfconv.ops.gated_block import BlockStages, gated_block, gated_block_into
from perfconv.ops.gather import gather_pixels, scatter_pixels
from perfconv.ops.mask import (
    ActivePixels,
    compact_mask,
    density,
    downsample_mask,
    expand_mask,
)
from perfconv.ops.multi_dilation import multi_dilation_conv2d
from perfconv.ops.pack import pack_weight

__all__ = [
    "ActivePixels",
    "BlockStages",
    "compact_mask",
    "density",
    "downsample_mask",
    "expand_mask",
    "explain",
    "gate_mask",
    "gated_block",
    "gated_block_into",
    "gather_pixels",
    "multi_dilation_conv2d",
    "pack_weight",
    "perforated_conv2d",
    "perforated_conv2d_into",
    "scatter_pixels",
]
