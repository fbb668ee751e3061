"""Whole networks."""

from perfconv.models.augmentation import predict_augmented
from perfconv.models.efficientnet_lite import EfficientNetLite0, square_input
from perfconv.models.efficientnet_lite_weights import efficientnet_lite0_imagenet, find_cat_photo
from perfconv.models.hed import HED, EdgeMaps, block_sizes
from perfconv.models.hed_weights import hed_bsds500
from perfconv.models.resnet import FeatureInfo, ResNet
from perfconv.models.weights import load_weights, read_weights

__all__ = [
    "HED",
    "EdgeMaps",
    "EfficientNetLite0",
    "FeatureInfo",
    "ResNet",
    "block_sizes",
    "efficientnet_lite0_imagenet",
    "find_cat_photo",
    "hed_bsds500",
    "load_weights",
    "predict_augmented",
    "read_weights",
    "square_input",
]
