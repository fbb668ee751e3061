"""Pictures of a run: a sheet of truth and prediction, and the decisions of the gates."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from perfconv import viz
from perfconv.data import Sample
from perfconv.data.verify import contact_sheet
from perfconv.nn import gates
from perfconv.train.datasets import Samples
from perfconv.train.networks import Network


def save_sheet(rows: Sequence[Sample], samples: Samples, path: Path) -> Path:
    """A row for each sample: image, then its labels, depth, normals, boundaries."""
    sheet = contact_sheet(rows, samples)  # type: ignore[arg-type]
    pixels = (sheet.permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path)
    return path


def save_gates(network: Network, sample: Sample, path: Path) -> Path | None:
    """The gates of one image, their masks and the ponder map; None without gates or matplotlib."""
    if not gates(network) or importlib.util.find_spec("matplotlib") is None:
        return None
    device = next(network.parameters()).device
    found = viz.decisions(network, sample.image[None].to(device))
    viz.save(viz.gate_figure(found, image=sample.image[None], title=sample.name), path)
    return path
