"""Pictures of what gates decide: ponder map, the mask of every gate, scale choices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perfconv.nn.dilation_pool import MultiDilationPool
from perfconv.nn.gate_record import GateCall, GateRecord, record_gates
from perfconv.viz.drawing import (
    COMPUTED,
    FAINT,
    INK,
    PANEL_INCHES,
    SKIPPED,
    draw_choice,
    draw_image,
    draw_ponder,
    grid,
    need_matplotlib,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4


@dataclass(frozen=True)
class Decisions:
    """What the gates of a model decided for a batch."""

    calls: list[GateCall]  # binary gates, in call order
    choices: list[tuple[str, Tensor, tuple[int, ...]]]  # name, (N, 1, h, w) branch, dilations
    size: tuple[int, int]  # (H, W) of the input, pixels

    @property
    def layers(self) -> int:
        return len(self.calls)

    def ponder(self) -> Tensor:
        """(N, 1, H, W), float32: active layers per pixel."""
        return sum(
            (at_size(call.gate.mask, self.size) for call in self.calls),
            start=torch.zeros(()),
        )


def decisions(model: nn.Module, images: Tensor) -> Decisions:
    """Runs ``model`` on ``images`` without gradients, as it is, and keeps what its gates decide.

    Args:
        model: with gates; in eval mode its masks are noise-free.
        images: (N, C, H, W), its one input.

    Raises:
        ValueError: ``images`` is not (N, C, H, W), or no gate ran.
    """
    if images.dim() != 4:
        raise ValueError(
            f"viz: images must be (N, C, H, W), got {tuple(images.shape)}. For one image, "
            "image.unsqueeze(0)."
        )
    with torch.no_grad(), record_gates(model) as record:
        model(images)
    found = recorded(model, record, (images.size(2), images.size(3)))
    if found is None:
        raise ValueError(
            f"viz: the model must have gates that run, got a {type(model).__name__} without any. "
            "Convert it: perfconv.convert(model)."
        )
    return found


def recorded(model: nn.Module, record: GateRecord, size: tuple[int, int]) -> Decisions | None:
    """The decisions of a run that ``record`` has followed; None if no gate ran.

    Args:
        model: whose gates were recorded.
        record: of ``record_gates(model)``.
        size: (H, W) of the input, pixels.
    """
    choices = _choices(model, record)
    return Decisions(record.calls, choices, size) if record or choices else None


def ponder_map(model: nn.Module, images: Tensor) -> Tensor:
    """Active layers per pixel, at input size.

    Each gate call whose mask is True where a pixel falls counts one; masks on coarser grids count
    for every pixel of their cell. A gate shared by three layers counts three times.

    Args:
        model: with gates; run without gradients, as it is.
        images: (N, C, H, W).

    Returns:
        (N, 1, H, W), float32, from 0 to the number of gated layers.

    Raises:
        ValueError: as :func:`decisions`.

    Example:
        >>> layers = [perfconv.nn.GatedConv2d(nn.Conv2d(3, 3, 3, padding=1)) for _ in range(2)]
        >>> model = nn.Sequential(*layers).eval()
        >>> perfconv.force_gates(layers[0], 0.0)
        >>> ponder_map(model, torch.rand(1, 3, 8, 8)).unique().tolist()
        [1.0]
    """
    return decisions(model, images).ponder()


def gate_figure(
    found: Decisions, *, image: Tensor | None = None, index: int = 0, title: str | None = None
) -> "Figure":
    """Every gate of one image in a grid of four columns.

    First the photo and the scale choices, if there are any, then the masks in call order (computed
    yellow, skipped blue, the density in the title; layers that share a mask share a panel), last
    the ponder map. With a legend, and colour bars for choices and ponder map.

    Args:
        found: of :func:`decisions`.
        image: (N, 3, H, W), red, green, blue in [0, 1], shown first; None for none.
        index: which image of the batch.
        title: of the whole figure.

    Returns:
        A matplotlib figure: ``figure.savefig("gates.png")``, or :func:`save`.

    Raises:
        RuntimeError: matplotlib is not installed.
        ValueError: ``index`` is not in the batch.
    """
    need_matplotlib()
    from matplotlib.patches import Patch

    _check_index(found, index)
    panels = _panels(found)
    count = len(panels) + len(found.choices) + bool(panels) + (image is not None)
    figure, axes = _grid(count, found.size, title)
    places = iter(axes)
    if image is not None:
        draw_image(next(places), image[index])
    for name, choice, dilations in found.choices:
        draw_choice(next(places), choice[index, 0], dilations, f"{name}: dilation", found.size)
    for names, call in panels:
        _draw_mask(next(places), names, call.gate.mask[index, 0], found.size)
    if panels:
        draw_ponder(next(places), found.ponder()[index, 0], found.layers)
        handles = [
            Patch(facecolor=COMPUTED, edgecolor=FAINT, label="computed"),
            Patch(facecolor=SKIPPED, edgecolor=FAINT, label="skipped"),
        ]
        figure.legend(
            handles=handles, loc="outside lower right", ncols=2, frameon=False, labelcolor=INK
        )
    return figure


def ponder_figure(
    found: Decisions, *, image: Tensor | None = None, index: int = 0, title: str | None = None
) -> "Figure":
    """The ponder map of one image with its colour bar, beside the photo if that is given.

    Args, Returns, Raises: as :func:`gate_figure`; ValueError without a binary gate.
    """
    need_matplotlib()
    _check_index(found, index)
    if not found.calls:
        raise ValueError(
            "viz: a ponder map must have gates to count, got scale choices only. Draw them with "
            "gate_figure."
        )
    figure, axes = _grid(1 + (image is not None), found.size, title, inches=3.6)
    if image is not None:
        draw_image(axes[0], image[index])
    draw_ponder(axes[-1], found.ponder()[index, 0], found.layers)
    return figure


def at_size(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, 1, h, w) on the grid of (H, W): each pixel takes the value of its cell; float32."""
    return F.interpolate(mask.float(), size=size, mode="nearest")


def _choices(model: nn.Module, record: GateRecord) -> list[tuple[str, Tensor, tuple[int, ...]]]:
    """Scale choices with the dilations of the pools that own the gates."""
    pools = {
        name: module.dilations
        for name, module in model.named_modules()
        if isinstance(module, MultiDilationPool)
    }
    return [
        (
            call.name,
            call.choice.choice,
            pools.get(call.name, tuple(range(call.choice.hard.size(1)))),
        )
        for call in record.choices
    ]


def _panels(found: Decisions) -> list[tuple[list[str], GateCall]]:
    """One mask each, with the layers that share it."""
    panels: dict[int, tuple[list[str], GateCall]] = {}
    for call in found.calls:
        names, _ = panels.setdefault(id(call.gate), ([], call))
        names.append(call.name)
    return list(panels.values())


def _grid(
    count: int, size: tuple[int, int], title: str | None, *, inches: float = PANEL_INCHES
) -> "tuple[Figure, list[Axes]]":
    columns = min(count, COLUMNS)
    return grid(-(-count // columns), columns, size, title, inches=inches)


def _draw_mask(axes: "Axes", names: Sequence[str], mask: Tensor, size: tuple[int, int]) -> None:
    from matplotlib.colors import ListedColormap

    axes.imshow(
        mask.numpy(force=True), cmap=ListedColormap([SKIPPED, COMPUTED]), vmin=0, vmax=1,
        interpolation="nearest", extent=(0, size[1], size[0], 0),
    )  # fmt: skip
    density = mask.float().mean().item()
    axes.set_title(f"{_joined(names)}  ({density:.2f})", color=INK, fontsize=9)


def _joined(names: Sequence[str]) -> str:
    """ "block2.conv1, conv2": what the names have in common is said once."""
    first, *others = [name or "model" for name in names]
    head = first.rpartition(".")[0] + "."
    return ", ".join([first, *(other.removeprefix(head) for other in others)])


def _check_index(found: Decisions, index: int) -> None:
    tensors = [call.gate.mask for call in found.calls] + [choice for _, choice, _ in found.choices]
    count = tensors[0].size(0)
    if not 0 <= index < count:
        raise ValueError(
            f"viz: index must be that of an image of the batch, 0 to {count - 1}, got {index}."
        )
