"""Modules built on the operators."""

from perfconv.nn.conv import PerforatedConv2d, prepack
from perfconv.nn.mask_state import MaskState

__all__ = ["MaskState", "PerforatedConv2d", "prepack"]
