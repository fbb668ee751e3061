"""Training and evaluation of scene parsers: recipes, the loop, checkpoints."""

from perfconv.train.checkpoint import Loaded, load_model, read_checkpoint, write_checkpoint
from perfconv.train.networks import build_network

__all__ = [
    "Loaded",
    "build_network",
    "load_model",
    "read_checkpoint",
    "write_checkpoint",
]
