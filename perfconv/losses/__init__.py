"""Losses."""

from perfconv.losses.boundary import boundary_loss
from perfconv.losses.density import density_loss
from perfconv.losses.depth import log_depth_loss, scale_invariant_depth_loss
from perfconv.losses.normals import inverse_cosine_loss, normals_l2_loss, normals_loss
from perfconv.losses.segmentation import segmentation_loss
from perfconv.losses.weights import (
    CITYSCAPES_WEIGHTS,
    NYUV2_WEIGHTS,
    StageWeights,
    refinement_loss,
)

__all__ = [
    "CITYSCAPES_WEIGHTS",
    "NYUV2_WEIGHTS",
    "StageWeights",
    "boundary_loss",
    "density_loss",
    "inverse_cosine_loss",
    "log_depth_loss",
    "normals_l2_loss",
    "normals_loss",
    "refinement_loss",
    "scale_invariant_depth_loss",
    "segmentation_loss",
]
