"""Samples with every kind of label: readers of data sets, transforms, made-up scenes."""

from perfconv.data.geometry import Normals, boundaries_from_labels, normals_from_depth, pixel_rays
from perfconv.data.sample import IGNORE, Batch, Camera, Sample, collate
from perfconv.data.scenes import PerspectiveScenes
from perfconv.data.transforms import (
    Augmentation,
    colour,
    crop,
    flip,
    gamma,
    gamma_exponent,
    inner_size,
    rotate,
    scale,
)

__all__ = [
    "IGNORE",
    "Augmentation",
    "Batch",
    "Camera",
    "Normals",
    "PerspectiveScenes",
    "Sample",
    "boundaries_from_labels",
    "collate",
    "colour",
    "crop",
    "flip",
    "gamma",
    "gamma_exponent",
    "inner_size",
    "normals_from_depth",
    "pixel_rays",
    "rotate",
    "scale",
]
