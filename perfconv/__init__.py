"""Perforated convolution for PyTorch: skipped pixels become saved time.

``perforated_conv2d`` computes a convolution at the True pixels of a mask only; ``PerforatedConv2d``
is the drop-in layer. Importing this package never touches CUDA.
"""

from perfconv import nn
from perfconv._ext import build_info, cuda_error, has_cuda
from perfconv.nn import MaskState, PerforatedConv2d, prepack
from perfconv.ops import (
    ActivePixels,
    compact_mask,
    density,
    downsample_mask,
    expand_mask,
    explain,
    gather_pixels,
    pack_weight,
    perforated_conv2d,
    scatter_pixels,
)

__version__ = build_info()["version"]

__all__ = [
    "ActivePixels",
    "MaskState",
    "PerforatedConv2d",
    "build_info",
    "compact_mask",
    "cuda_error",
    "density",
    "downsample_mask",
    "expand_mask",
    "explain",
    "gather_pixels",
    "has_cuda",
    "nn",
    "pack_weight",
    "perforated_conv2d",
    "prepack",
    "scatter_pixels",
]
