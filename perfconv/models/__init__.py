"""Whole networks."""

from perfconv.models.hed import HED, EdgeMaps, block_sizes
from perfconv.models.hed_weights import hed_bsds500

__all__ = ["HED", "EdgeMaps", "block_sizes", "hed_bsds500"]
