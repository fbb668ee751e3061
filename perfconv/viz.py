"""Pictures of what gates decide: ponder map, the mask of every gate, scale choices.

``ponder_map`` needs torch alone, the figures matplotlib.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perfconv.nn.dilation_pool import MultiDilationPool
from perfconv.nn.gate_record import GateCall, GateRecord, record_gates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SKIPPED, COMPUTED = "#352a87", "#f8e71c"  # of the masks, as in the authors' figures
PONDER_COLOURS, CHOICE_COLOURS = "viridis", "turbo"
INK, FAINT = "#1b2330", "#8a93a0"
COLUMNS = 4
PANEL_INCHES = 2.6  # width


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
    choices = _choices(model, record)
    if not record and not choices:
        raise ValueError(
            f"viz: the model must have gates that run, got a {type(model).__name__} without any. "
            "Convert it: perfconv.convert(model)."
        )
    return Decisions(record.calls, choices, (images.size(2), images.size(3)))


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
    _need_matplotlib()
    from matplotlib.patches import Patch

    _check_index(found, index)
    panels = _panels(found)
    count = len(panels) + len(found.choices) + bool(panels) + (image is not None)
    figure, axes = _grid(count, found.size, title)
    places = iter(axes)
    if image is not None:
        _draw_image(next(places), image[index])
    for name, choice, dilations in found.choices:
        _draw_choice(next(places), name, choice[index, 0], dilations)
    for names, call in panels:
        _draw_mask(next(places), names, call.gate.mask[index, 0], found.size)
    if panels:
        _draw_ponder(next(places), found.ponder()[index, 0], found.layers)
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
    _need_matplotlib()
    _check_index(found, index)
    if not found.calls:
        raise ValueError(
            "viz: a ponder map must have gates to count, got scale choices only. Draw them with "
            "gate_figure."
        )
    figure, axes = _grid(1 + (image is not None), found.size, title, inches=3.6)
    if image is not None:
        _draw_image(axes[0], image[index])
    _draw_ponder(axes[-1], found.ponder()[index, 0], found.layers)
    return figure


def save(figure: "Figure", path: str | Path) -> None:
    """Writes a figure as PNG."""
    figure.savefig(path, format="png", dpi=160, facecolor="white")


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
    from matplotlib.figure import Figure

    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    height = inches * min(max(size[0] / size[1], 0.3), 1.6) + 0.35
    figure = Figure(figsize=(inches * columns + 0.5, height * rows + 0.45), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place in axes:
        place.set_axis_off()
    if title is not None:
        figure.suptitle(title, color=INK, fontsize=11)
    return figure, axes


def _draw_image(axes: "Axes", image: Tensor) -> None:
    axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
    axes.set_title("image", color=INK, fontsize=9)


def _draw_mask(axes: "Axes", names: Sequence[str], mask: Tensor, size: tuple[int, int]) -> None:
    from matplotlib.colors import ListedColormap

    axes.imshow(
        mask.numpy(), cmap=ListedColormap([SKIPPED, COMPUTED]), vmin=0, vmax=1,
        interpolation="nearest", extent=(0, size[1], size[0], 0),
    )  # fmt: skip
    share = mask.float().mean().item()
    axes.set_title(f"{_joined(names)}  ({share:.2f})", color=INK, fontsize=9)


def _draw_ponder(axes: "Axes", ponder: Tensor, layers: int) -> None:
    drawn = axes.imshow(
        ponder.numpy(), cmap=PONDER_COLOURS, vmin=0, vmax=layers, interpolation="nearest"
    )
    axes.set_title(f"ponder map  (mean {ponder.mean().item():.1f} of {layers})", color=INK,
                   fontsize=9)  # fmt: skip
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02, aspect=14)
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.set_ticks([0, layers] if layers < 4 else [0, layers // 2, layers])
    bar.set_label("active layers", color=INK, fontsize=7)


def _draw_choice(axes: "Axes", name: str, choice: Tensor, dilations: Sequence[int]) -> None:
    import matplotlib
    from matplotlib.colors import BoundaryNorm

    count = len(dilations)
    colours = matplotlib.colormaps[CHOICE_COLOURS].resampled(count)
    norm = BoundaryNorm([position - 0.5 for position in range(count + 1)], count)
    drawn = axes.imshow(choice.numpy(), cmap=colours, norm=norm, interpolation="nearest")
    axes.set_title(f"{name}: dilation", color=INK, fontsize=9)
    figure = axes.get_figure()
    assert figure is not None
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02, aspect=14, ticks=range(count))
    bar.ax.set_yticklabels(["copy" if dilation == 0 else str(dilation) for dilation in dilations])
    bar.ax.tick_params(labelsize=7, colors=INK, length=0)


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


def _need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "viz: figures need the package matplotlib. Install it: pip install matplotlib."
        ) from error
