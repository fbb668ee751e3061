"""What all figures share: a grid of panels, a picture with its title, a colour bar, files."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SKIPPED, COMPUTED = "#352a87", "#f8e71c"  # of the masks, as in the authors' figures
PONDER_COLOURS, CHOICE_COLOURS = "viridis", "turbo"
INK, FAINT = "#1b2330", "#8a93a0"
PANEL_INCHES = 2.6  # width
DOTS_PER_INCH = 160


def grid(
    rows: int,
    columns: int,
    size: tuple[int, int],
    title: str | None,
    *,
    inches: float = PANEL_INCHES,
) -> "tuple[Figure, list[Axes]]":
    """A figure of rows x columns panels, row by row, each as wide as high as ``size`` (H, W)."""
    from matplotlib.figure import Figure

    height = inches * min(max(size[0] / size[1], 0.3), 1.6) + 0.35
    figure = Figure(figsize=(inches * columns + 0.5, height * rows + 0.45), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for place in axes:
        place.set_axis_off()
    if title is not None:
        figure.suptitle(title, color=INK, fontsize=11)
    return figure, axes


def draw_image(axes: "Axes", image: Tensor, title: str = "image") -> "AxesImage":
    """(3, H, W), red, green, blue in [0, 1]."""
    axes.set_title(title, color=INK, fontsize=9)
    return axes.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy(force=True))


def draw_ponder(axes: "Axes", ponder: Tensor, layers: int) -> None:
    """(H, W), active layers per pixel out of ``layers``, with its colour bar."""
    drawn = axes.imshow(
        ponder.numpy(force=True), cmap=PONDER_COLOURS, vmin=0, vmax=layers, interpolation="nearest"
    )
    axes.set_title(f"ponder map  (mean {ponder.mean().item():.1f} of {layers})", color=INK,
                   fontsize=9)  # fmt: skip
    bar = colour_bar(axes, drawn)
    bar.set_ticks([0, layers] if layers < 4 else [0, layers // 2, layers])
    bar.set_label("active layers", color=INK, fontsize=7)


def draw_choice(
    axes: "Axes", choice: Tensor, dilations: Sequence[int], title: str, size: tuple[int, int]
) -> None:
    """(h, w), the branch of each pixel, over an image of ``size`` (H, W); -1 stays white."""
    import matplotlib
    import numpy as np
    from matplotlib.colors import BoundaryNorm

    count = len(dilations)
    colours = matplotlib.colormaps[CHOICE_COLOURS].resampled(count)
    norm = BoundaryNorm([position - 0.5 for position in range(count + 1)], count)
    values = np.ma.masked_less(choice.numpy(force=True), 0)
    extent = (0, size[1], size[0], 0)
    drawn = axes.imshow(values, cmap=colours, norm=norm, interpolation="nearest", extent=extent)
    axes.set_title(title, color=INK, fontsize=9)
    bar = colour_bar(axes, drawn, ticks=range(count))
    bar.ax.set_yticklabels(["copy" if dilation == 0 else str(dilation) for dilation in dilations])
    bar.ax.tick_params(length=0)


def colour_bar(
    axes: "Axes | Sequence[Axes]", drawn: "AxesImage", *, ticks: Sequence[float] | None = None
) -> "Colorbar":
    """Right of ``axes``, which may be several of one row or column."""
    places = axes if isinstance(axes, Sequence) else [axes]
    figure = places[0].get_figure()
    assert figure is not None
    rows = {place.get_position().y0 for place in places}
    bar = figure.colorbar(
        drawn, ax=places, shrink=0.8, pad=0.02, aspect=14 * len(rows), ticks=ticks
    )
    bar.ax.tick_params(labelsize=7, colors=INK)
    return bar


def save(figure: "Figure", path: str | Path) -> None:
    """Writes a figure as PNG: the whole file, or none if that fails."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(partial, format="png", dpi=DOTS_PER_INCH, facecolor="white")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise RuntimeError(
            "viz: figures need the package matplotlib. Install it: pip install matplotlib."
        ) from error
