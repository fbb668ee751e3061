"""HED with a gate for each of its blocks 2 to 5, and the learned gates that ship with the package.

tools/distill_hed_gates.py learns them, writes the file and prints the table of what they do.
"""

from pathlib import Path

import torch
from torch import nn

from perfconv.convert import convert
from perfconv.models.hed import HED
from perfconv.nn import BinaryGate, CellGate, GatedConv2d, SharedGate, gates

GATES_FILE = Path(__file__).with_name("hed_gates.npz")
CELLS = {2: 4, 3: 2, 4: 1, 5: 1}  # block: side of a cell, in its pixels: 8, 8, 8, 16 image pixels
CONTEXT = (1, 2, 4)  # cells: whether an edge is near is not to be seen in the next cell alone
ANCHOR_STRIDE = 4
# Density of a block / density of all. An error in an early block is an error in every later one.
PROFILE = {2: 1.17, 3: 1.01, 4: 0.93, 5: 0.87}
# Of many pixels, instead: how much of a block is closed, relative to the others. Early features say
# little of where edges will be: the first cells that block 2 would close cost more than they save.
# Found on training photos, with gates that were learned without them.
CLOSED = {2: 0.0, 3: 0.7, 4: 1.0, 5: 1.0}
FEW, MANY = 0.4, 0.65  # densities of PROFILE and of CLOSED; a mixture between
# MACs of a block's convolutions for one image pixel: C_in * C_out * 9 / pixels of a cell.
SHARES = {2: 55296, 3: 92160, 4: 92160, 5: 27648}


def gated_hed(model: HED) -> HED:
    """A copy of ``model`` whose blocks 2 to 5 have a :class:`CellGate` each, open everywhere.

    The convolutions of a block share its gate, which sees the block's input; inactive pixels take
    the nearest active value.
    """
    names = iter([name for name, _ in model.named_modules() if _is_gated(name)])
    leaders: dict[int, CellGate] = {}

    def gate(conv: nn.Module) -> BinaryGate:
        block = int(next(names)[len("block")])
        if block in leaders:
            return SharedGate(leaders[block])
        assert isinstance(conv, nn.Conv2d)
        leaders[block] = CellGate(
            conv.in_channels, cell=CELLS[block], context=CONTEXT, anchor_stride=ANCHOR_STRIDE
        )
        return leaders[block]

    return convert(model, filter=lambda name, conv: _is_gated(name), gate=gate, fill="nearest")


def hed_with_learned_gates(
    model: HED, *, density: float | None = None, path: str | Path = GATES_FILE
) -> HED:
    """``gated_hed(model)`` in eval mode with learned gates.

    Args:
        model: HED with its pretrained weights.
        density: as for :func:`set_density`; None leaves the decision to the logits.
        path: of the gates.

    Raises:
        RuntimeError: numpy is not installed.
        FileNotFoundError: no such file.
        ValueError: the file holds other arrays than the gates of HED; ``density`` as below.
    """
    gated = gated_hed(model).eval().requires_grad_(False)
    load_gates(gated, path)
    if density is not None:
        set_density(gated, density)
    return gated


def set_density(model: HED, density: float) -> None:
    """Gives every image the same density over blocks 2 to 5, weighted by their MACs.

    Args:
        model: of :func:`gated_hed`; changed in place.
        density: in (0, 1]. Early blocks get more of it (``block_densities``).

    Raises:
        ValueError: ``density`` is not in (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(
            f"set_density: density must be in (0, 1], got {density}. Give a share of pixels."
        )
    densities = block_densities(density)
    for name, gate in gates(model).items():
        if isinstance(gate, CellGate):
            gate.density = densities[int(name[len("block")])]


def block_densities(density: float) -> dict[int, float]:
    """Density of each block, at most 1, with the mean ``density``."""
    many = min(max((density - FEW) / (MANY - FEW), 0.0), 1.0)
    by_profile, by_closed = _profile_densities(density), _closed_densities(density)
    return {k: (1 - many) * by_profile[k] + many * by_closed[k] for k in SHARES}


def _closed_densities(density: float) -> dict[int, float]:
    whole = sum(SHARES.values())
    closed = (1 - density) * whole / sum(SHARES[k] * CLOSED[k] for k in SHARES)
    return {block: 1 - closed * factor for block, factor in CLOSED.items()}


def _profile_densities(density: float) -> dict[int, float]:
    densities = {block: density * factor for block, factor in PROFILE.items()}
    for _ in PROFILE:
        free = {block for block, value in densities.items() if value < 1}
        densities = {block: min(value, 1.0) for block, value in densities.items()}
        missing = sum(SHARES[k] * (density - densities[k]) for k in densities)
        room = sum(SHARES[k] * densities[k] for k in free)
        if room == 0:
            break
        densities = {k: v * (1 + missing / room) if k in free else v for k, v in densities.items()}
    return {block: min(value, 1.0) for block, value in densities.items()}


def save_gates(model: HED, path: str | Path = GATES_FILE) -> None:
    """Writes every ``*.gate.*`` array of ``model`` to an npz file, float32."""
    import numpy as np

    state = {key: value.numpy() for key, value in model.state_dict().items() if ".gate." in key}
    with Path(path).open("wb") as file:
        np.savez_compressed(file, **state)


def load_gates(model: HED, path: str | Path = GATES_FILE) -> None:
    """Reads what :func:`save_gates` wrote; errors as :func:`hed_with_learned_gates`."""
    try:
        import numpy as np
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "HED: reading the gates needs the package numpy. Install it: pip install numpy."
        ) from error
    wanted = {key: value for key, value in model.state_dict().items() if ".gate." in key}
    with np.load(path) as file:
        found = {key: torch.from_numpy(file[key]) for key in file.files}
    shapes = [
        {key: tuple(value.shape) for key, value in state.items()} for state in (wanted, found)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"HED: {path} must hold the gates of gated_hed, got other names or shapes: "
            f"{', '.join(sorted(found)) or 'none'}. Write it with save_gates."
        )
    model.load_state_dict({**model.state_dict(), **found})


def gate_macs(model: HED, size: tuple[int, int]) -> int:
    """MACs of all gates of ``model`` for an image of ``size`` (H, W)."""
    total = 0
    for name, module in model.named_modules():
        if isinstance(module, GatedConv2d) and isinstance(module.gate, CellGate):
            side = 2 ** (int(name[len("block")]) - 1) * module.gate.cell
            cells = -(-size[0] // side) * -(-size[1] // side)
            layers = (m for m in module.gate.modules() if isinstance(m, nn.Conv2d))
            total += cells * sum(layer.weight.numel() for layer in layers)
    return total


def _is_gated(name: str) -> bool:
    return name.startswith("block") and ".conv" in name and int(name[len("block")]) in CELLS
