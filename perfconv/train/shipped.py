"""The trained network that ships with the package; tools/train_shipped_model.py makes it again."""

from pathlib import Path

from perfconv.train.checkpoint import Loaded, load_model

SHIPPED = Path(__file__).with_name("scenes_parser.safetensors")
RECIPE = "scenes-parser"
LONGEST_SIDE = 192  # pixels; the scenes it has learnt from were scaled up to this, then cropped


def shipped_model() -> Loaded:
    """A small PAG network for labels, depth and boundaries, in eval mode.

    It has learnt from ``PerspectiveScenes`` alone, at 64 x 96 pixels: good enough to see what gates
    and pools do, not for photos. ``config["results"]`` has its scores, ``config["recipe"]`` how it
    was trained.

    Raises:
        ModuleNotFoundError: the package safetensors is not installed.

    Example:
        >>> import torch
        >>> model = shipped_model().model
        >>> with torch.no_grad():
        ...     maps = model(torch.rand(1, 3, 64, 96))
        >>> sorted(maps)
        ['boundary', 'log_depth', 'segmentation']
    """
    return load_model(SHIPPED)
