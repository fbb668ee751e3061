"""Whole networks."""

from perfconv.models.augmentation import predict_augmented
from perfconv.models.builders import (
    baseline_resnet50,
    depth_aware_resnet50,
    depth_aware_resnet101,
    gated_resnet50,
    layer_skipping_resnet50,
    multi_pool_resnet50,
    multi_scale_resnet50,
    pag_resnet50,
    pag_resnet101,
    recurrent_depth_resnet50,
    recurrent_depth_resnet101,
    resnet_trunk,
    truncated_resnet50,
)
from perfconv.models.efficientnet_lite import EfficientNetLite0, square_input
from perfconv.models.efficientnet_lite_weights import efficientnet_lite0_imagenet, find_cat_photo
from perfconv.models.hed import HED, EdgeMaps, block_sizes
from perfconv.models.hed_weights import hed_bsds500
from perfconv.models.multi_scale import MultiScaleTrunk
from perfconv.models.parsers import DepthAwareParser, SceneParser, StageOutput
from perfconv.models.resnet import FeatureInfo, ResNet
from perfconv.models.weights import load_weights, read_weights

__all__ = [
    "HED",
    "DepthAwareParser",
    "EdgeMaps",
    "EfficientNetLite0",
    "FeatureInfo",
    "MultiScaleTrunk",
    "ResNet",
    "SceneParser",
    "StageOutput",
    "baseline_resnet50",
    "block_sizes",
    "depth_aware_resnet50",
    "depth_aware_resnet101",
    "efficientnet_lite0_imagenet",
    "find_cat_photo",
    "gated_resnet50",
    "hed_bsds500",
    "layer_skipping_resnet50",
    "load_weights",
    "multi_pool_resnet50",
    "multi_scale_resnet50",
    "pag_resnet50",
    "pag_resnet101",
    "predict_augmented",
    "read_weights",
    "recurrent_depth_resnet50",
    "recurrent_depth_resnet101",
    "resnet_trunk",
    "square_input",
    "truncated_resnet50",
]
