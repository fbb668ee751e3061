"""Pretrained weights from a user's file: tensors only, never code."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a ``.pth`` / ``.pt`` file of tensors only.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds something else than tensors by name.
        RuntimeError: a ``.safetensors`` file without the package ``safetensors``.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        try:
            from safetensors.torch import load_file
        except ImportError as error:
            raise RuntimeError(
                f"read_weights: {path.name} needs the package safetensors, which is not installed. "
                "Run: pip install safetensors"
            ) from error
        return load_file(path)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"read_weights: {path.name} must hold tensors only, got what torch.load refuses with "
            f"weights_only=True: {str(error).splitlines()[0]}. Save model.state_dict() alone."
        ) from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(
            f"read_weights: {path.name} must hold a state dict, got a {type(found).__name__} of "
            "other things. Save model.state_dict() alone."
        )
    return dict(found)


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor] | str | Path,
    *,
    ignored: Sequence[str] = ("fc.",),
    new: Sequence[str] = (),
) -> None:
    """Loads a state dict strictly: every key fits, both ways, but for those named here.

    Args:
        model: changed in place, only if everything fits.
        weights: a state dict, or the file to read it from (:func:`read_weights`).
        ignored: prefixes of keys of ``weights`` that may be left over, such as the classifier of
            a torchvision network.
        new: prefixes of keys of ``model`` that ``weights`` may lack, such as "res6.".

    Raises:
        ValueError: a key is missing, left over, or has another shape; the message lists them.
    """
    given = read_weights(weights) if isinstance(weights, str | Path) else weights
    own = model.state_dict()
    used = {key: value for key, value in given.items() if key in own}
    problems = [
        f"lacks {key}" for key in own if key not in given and not key.startswith(tuple(new))
    ]
    problems += [
        f"has {key} besides"
        for key in given
        if key not in own and not key.startswith(tuple(ignored))
    ]
    problems += [
        f"has {key} of {tuple(value.shape)}, not {tuple(own[key].shape)}"
        for key, value in used.items()
        if value.shape != own[key].shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; {len(problems)} in all" if len(problems) > 5 else "")
        raise ValueError(
            f"load_weights: the state dict must fit the {type(model).__name__}, got one that "
            f"{shown}. Give the weights of this network, or name the prefixes to leave out."
        )
    model.load_state_dict({**own, **used})
