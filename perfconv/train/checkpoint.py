"""Checkpoints: one file with tensors and plain values, replaced whole or not at all.

| key | holds |
|---|---|
| format | ``FORMAT`` |
| config | JSON: "model" {"name", "arguments"}, "tasks", "classes", and what else its writer keeps |
| model | the network's state dict |
| ema | the averages of its parameters, if they were asked for |
| training | of an unfinished run: optimiser and position; its random numbers follow from these |

A model file (``.safetensors``) holds config and model only, matrices and kernels in float16.
"""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from perfconv.train.networks import Network, build_network

FORMAT = "perfconv checkpoint 1"
SUFFIX = ".writing"
MODEL_SUFFIX = ".safetensors"
METADATA = "perfconv"  # one key of a model file: several would have no fixed order
FINAL, LAST = "model.pt", "last.pt"  # in the folder of a run: finished, or under way


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read, or not be written."""


class Loaded(NamedTuple):
    """What :func:`load_model` returns."""

    model: Network  # in eval mode, on the CPU
    config: dict  # "model" {"name", "arguments"}, "tasks", "classes" (names, by label), ...

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.config["tasks"])


def write_checkpoint(
    path: str | Path,
    *,
    config: Mapping[str, object],
    model: Mapping[str, Tensor],
    ema: Mapping[str, Tensor] | None = None,
    training: Mapping[str, object] | None = None,
) -> None:
    """Replaces ``path`` by a checkpoint; whatever happens, the file is the old one or the new one.

    Written beside it, flushed to the disk, then renamed. A process that is killed leaves at most
    ``<path>.writing`` behind, which the next call overwrites.

    Raises:
        CheckpointError: it cannot be written (a full disk); what was there is still there.
        TypeError: ``config`` holds what JSON cannot.
    """
    path = Path(path)
    content: dict[str, object] = {
        "format": FORMAT,
        "config": json.dumps(config),
        "model": dict(model),
    }
    if ema is not None:
        content["ema"] = dict(ema)
    if training is not None:
        content["training"] = dict(training)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    replace_file(path, buffer.getvalue())


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
        CheckpointError: it cannot be written; an old file of that name is as it was.
    """
    temporary = path.with_name(path.name + SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name, too
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        kept = "The file that was there is unchanged. " if path.exists() else ""
        raise CheckpointError(
            f"{path} ({len(content):,} bytes) could not be written: {error.strerror or error}. "
            f"{kept}Free space or name another folder, and run the same command again."
        ) from error


def read_checkpoint(path: str | Path) -> dict:
    """The content of a checkpoint, on the CPU, "config" parsed; tensors and plain values only.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is no checkpoint of this library.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = str(error).split(". ")[0].splitlines()[0].rstrip(".")
        raise CheckpointError(
            f"{path} must be a checkpoint of perfconv train, got a file that torch.load refuses "
            f"with weights_only=True: {reason}. Name another file; if it is the last.pt of a run "
            "that should go on, remove its folder to begin again."
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        given = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(
            f"{path} must be of format {FORMAT!r}, got {given!r}. Name a file that perfconv train "
            "wrote."
        )
    content["config"] = json.loads(content["config"])
    return content


def checkpoint_file(path: str | Path) -> Path:
    """``path`` itself, or the checkpoint of the run whose folder it is.

    Raises:
        CheckpointError: a folder without a checkpoint.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    for name in (FINAL, LAST):
        if (path / name).exists():
            return path / name
    raise CheckpointError(
        f"the folder {path} must hold {FINAL} or {LAST}, got neither. Name the --output of "
        "perfconv train, or a file."
    )


def write_model(path: str | Path, model: Loaded) -> None:
    """Writes a model file, about half the bytes of its float32 weights, for :func:`load_model`.

    Weights of two dimensions and more become float16; vectors, BatchNorm's among them, keep their
    dtype. Same model, same bytes.

    Args:
        path: ends in ``.safetensors``, by which :func:`load_model` knows a model file.
        model: the network, and what is to be kept as its config.

    Raises:
        ValueError: ``path`` ends otherwise.
        CheckpointError: it cannot be written; what was there is still there.
        ModuleNotFoundError: the package safetensors is not installed.
    """
    from safetensors.torch import save

    path = Path(path)
    if path.suffix != MODEL_SUFFIX:
        raise ValueError(
            f"write_model: path must end in {MODEL_SUFFIX}, by which load_model knows the file, "
            f"got {path}. Name it so."
        )
    state = {
        name: (value.half() if value.dim() > 1 else value).contiguous()
        for name, value in model.model.state_dict().items()
    }
    about = json.dumps({"format": FORMAT, "config": model.config})
    replace_file(path, save(state, {METADATA: about}))


def _read_model(path: Path) -> dict:
    """The content of a model file, as of a checkpoint."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            model = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} must be a safetensors file, got one that cannot be read: {error}. Copy it "
            "again, or name another file."
        ) from error
    if about.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} must be of format {FORMAT!r}, got {about.get('format')!r}. A state dict alone "
            "needs its network: perfconv predict --network NAME --weights FILE."
        )
    return {**about, "model": model}


def load_model(path: str | Path) -> Loaded:
    """The network of a checkpoint with its weights (the averaged ones, if there are any).

    Args:
        path: of a file that ``perfconv train`` wrote, or of :func:`write_model`.

    Returns:
        A :class:`Loaded`: the model in eval mode on the CPU, and the config.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is no checkpoint, or its weights do not fit its model.
        ModuleNotFoundError: a model file without the package safetensors.
    """
    path = Path(path)
    content = _read_model(path) if path.suffix == MODEL_SUFFIX else read_checkpoint(path)
    config = content["config"]
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then overwritten
        model = build_network(config["model"]["name"], config["model"]["arguments"])
    state = {**content["model"], **content.get("ema", {})}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} must hold the weights of {config['model']['name']}, got others: "
            f"{str(error).splitlines()[-1].strip()}. Was it written by another version?"
        ) from error
    return Loaded(model.eval(), config)
