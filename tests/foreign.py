"""Networks of torchvision and timm, where these can be imported.

The torchvision of the package index needs CUDA libraries for its own operators and, next to a CPU
torch, fails at import because their schemas are missing. perfconv._bench.networks defines them.
"""

import importlib
import importlib.util

import pytest
import torch
from torch import nn

from perfconv._bench.networks import importable

TORCH = "2.13."
# Package and network: whether every block of it can be gated.
FOREIGN = {
    "torchvision.resnet18": True,
    "torchvision.resnet50": True,
    "torchvision.deeplabv3_resnet50": True,
    "torchvision.regnet_y_400mf": True,
    "torchvision.mobilenet_v2": False,
    "torchvision.efficientnet_b0": False,
    "timm.resnet18": True,
    "timm.resnet50": True,
    "timm.regnetx_002": True,
    "timm.regnety_002": True,
    "timm.tf_efficientnet_lite0": False,
    "segmentation_models_pytorch.resnet18": False,
    "segmentation_models_pytorch.efficientnet-b0": False,
    "segmentation_models_pytorch.deeplabv3:resnet18": True,
}
SLOW = {
    "torchvision.regnet_x_400mf": True,
    "torchvision.mobilenet_v3_small": False,
    "timm.efficientnet_b0": False,
    "timm.mobilenetv3_small_050": False,
    "segmentation_models_pytorch.timm-tf_efficientnet_lite0": False,
    "segmentation_models_pytorch.tu-regnety_002": False,
}


def make_importable(*packages: str) -> None:
    """Skips the test if one of torchvision and timm is not there."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed (make test installs tests/requirements.txt)")
    if not torch.__version__.startswith(TORCH):
        pytest.skip(f"the torchvision of tests/requirements.txt belongs to torch {TORCH}")
    importable("torchvision")


def foreign_network(name: str) -> nn.Module:
    """A network with random weights; skips the test if its package cannot be imported."""
    package, _, kind = name.partition(".")
    make_importable("torchvision", package)
    if package == "segmentation_models_pytorch":
        smp = importlib.import_module(package)
        head, _, encoder = kind.rpartition(":")
        if head == "deeplabv3":
            return smp.DeepLabV3(encoder, encoder_weights=None, classes=5, decoder_channels=16)
        return smp.Unet(kind, encoder_weights=None, classes=5, decoder_channels=(32, 16, 8, 8, 8))
    if package == "timm":
        return importlib.import_module("timm").create_model(kind, num_classes=5)
    models = importlib.import_module("torchvision.models")
    if kind.startswith("deeplab"):
        models = models.segmentation
        return getattr(models, kind)(weights=None, weights_backbone=None, num_classes=5)
    return getattr(models, kind)(num_classes=5)
