"""Training and evaluation of scene parsers: recipes, the loop, checkpoints."""

from perfconv.train.checkpoint import (
    Loaded,
    load_model,
    read_checkpoint,
    write_checkpoint,
    write_model,
)
from perfconv.train.networks import build_network
from perfconv.train.shipped import shipped_model

__all__ = [
    "Loaded",
    "build_network",
    "load_model",
    "read_checkpoint",
    "shipped_model",
    "write_checkpoint",
    "write_model",
]
