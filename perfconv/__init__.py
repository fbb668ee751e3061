"""Perforated convolution for PyTorch: skipped pixels become saved time.

``perforated_conv2d`` computes a convolution at the True pixels of a mask only; ``PerforatedConv2d``
is the drop-in layer. Importing this package never touches CUDA.
"""

from perfconv import data, flops, losses, metrics, models, nn, onnx, schedules, viz
from perfconv._ext import build_info, cuda_error, has_cuda
from perfconv.convert import convert, unconvert
from perfconv.distill import distill_gates
from perfconv.nn import (
    MaskState,
    PerforatedConv2d,
    force_gates,
    fuse,
    gates,
    prepack,
    record_gates,
)
from perfconv.ops import (
    ActivePixels,
    compact_mask,
    density,
    downsample_mask,
    expand_mask,
    explain,
    gate_mask,
    gather_pixels,
    multi_dilation_conv2d,
    pack_weight,
    perforated_conv2d,
    scatter_pixels,
)
from perfconv.truncate import truncate

__version__ = build_info()["version"]

__all__ = [
    "ActivePixels",
    "MaskState",
    "PerforatedConv2d",
    "build_info",
    "compact_mask",
    "convert",
    "cuda_error",
    "data",
    "density",
    "distill_gates",
    "downsample_mask",
    "expand_mask",
    "explain",
    "flops",
    "force_gates",
    "fuse",
    "gate_mask",
    "gates",
    "gather_pixels",
    "has_cuda",
    "losses",
    "metrics",
    "models",
    "multi_dilation_conv2d",
    "nn",
    "onnx",
    "pack_weight",
    "perforated_conv2d",
    "prepack",
    "record_gates",
    "scatter_pixels",
    "schedules",
    "truncate",
    "unconvert",
    "viz",
]
