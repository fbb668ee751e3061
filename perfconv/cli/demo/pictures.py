"""The demo's pictures: photo, edges, mask, disagreement, and the two curves."""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from perfconv.cli.demo.measurement import ENOUGH, Measurement, Row
from perfconv.cli.demo.perforate import BLENDED, EDGES, GATES, RANDOM

# Colours of the figures: drawn with the first, which in the report becomes a variable of the page.
INK, FAINT = "#1b2330", "#c9cfd8"
EDGE_COLOUR, RANDOM_COLOUR, DENSE_COLOUR = "#0b7285", "#c2410c", "#5b4bc4"
GATES_COLOUR = "#2b8a3e"
# What is perforated: colour, marker, label.
KINDS = {
    GATES: (GATES_COLOUR, "v", "learned gates"),
    EDGES: (EDGE_COLOUR, "o", "edge mask"),
    RANDOM: (RANDOM_COLOUR, "s", "random mask"),
}
VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--line)",
    EDGE_COLOUR: "var(--edge)",
    RANDOM_COLOUR: "var(--random)",
    DENSE_COLOUR: "var(--dense)",
    GATES_COLOUR: "var(--gates)",
}


def photo_image(pixels: Tensor) -> Image.Image:
    """(1, 3, H, W) in [0, 1] as a picture."""
    return Image.fromarray((pixels[0].permute(1, 2, 0) * 255).round().byte().numpy())


def edge_image(edges: Tensor) -> Image.Image:
    """(1, 1, H, W) probabilities, dark where there is an edge."""
    return Image.fromarray(255 - (edges[0, 0] * 255).round().byte().numpy())


def mask_image(mask: Tensor, pixels: Tensor) -> Image.Image:
    """The photo at active pixels; inactive ones faded to grey.

    Args:
        mask: (1, 1, h, w), bool, on a grid at most as fine as the photo's.
        pixels: (1, 3, H, W) in [0, 1].
    """
    colours = np.asarray(photo_image(pixels)).astype(np.float32)  # (H, W, 3)
    height, width = colours.shape[:2]
    rows = np.arange(height) * mask.size(2) // height
    columns = np.arange(width) * mask.size(3) // width
    active = mask[0, 0].numpy()[rows][:, columns][..., None]  # (H, W, 1)
    grey = 200 + 0.12 * (colours.mean(2, keepdims=True) - 128)
    return Image.fromarray(np.where(active, colours, grey).astype(np.uint8))


def disagreement_image(edges: Tensor, reference: Tensor, threshold: float = 0.5) -> Image.Image:
    """Edges of both maps in grey, of the reference alone in orange, of ``edges`` alone in blue."""
    found, wanted = (maps[0, 0].numpy() >= threshold for maps in (edges, reference))
    colours = np.full((*found.shape, 3), 255, dtype=np.uint8)
    colours[found & wanted] = (176, 182, 190)
    colours[wanted & ~found] = (217, 72, 15)
    colours[found & ~wanted] = (25, 90, 200)
    return Image.fromarray(colours)


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_address(image: Image.Image, *, is_photo: bool = False) -> str:
    """The picture as an address that holds its bytes, for a page without other files."""
    if not is_photo:
        return "data:image/png;base64," + base64.b64encode(png_bytes(image)).decode()
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def latency_figure(measurement: Measurement) -> Figure:
    """Executed FLOPs against latency, and the line on which time falls exactly like FLOPs."""
    figure, axes = _figure()
    dense = measurement.dense
    full_gflop, full_ms = dense.executed_flops / 1e9, dense.total_s.median * 1e3
    axes.plot([0, full_gflop], [0, full_ms], color=FAINT, linewidth=1.5, zorder=1)
    axes.annotate(
        "time falls like FLOPs",
        (0.3 * full_gflop, 0.3 * full_ms),
        (6, -10),
        textcoords="offset points",
        color=INK,
        fontsize=9,
    )

    drawn = {**KINDS, BLENDED: (DENSE_COLOUR, "^", "dense x mask")}
    for kind, (colour, marker, label) in drawn.items():
        rows = [row for row in measurement.rows if row.setting.kind == kind]
        if rows:
            _plot_spread(axes, rows, colour, marker, label)
    axes.plot(full_gflop, full_ms, "D", color=DENSE_COLOUR, markersize=8, label="dense")
    axes.set_xlabel("executed GFLOP, gates or quarter-size pass included")
    axes.set_ylabel("latency in ms")
    axes.set_xlim(0, None)
    highest = max(row.total_s.median for row in measurement.rows) * 1e3
    axes.set_ylim(0, 1.15 * highest)
    axes.legend(frameon=False, labelcolor=INK, loc="upper left")
    return figure


def agreement_figure(measurement: Measurement) -> Figure:
    """Agreement with the dense edges against speed-up."""
    figure, axes = _figure()
    sides = cycle([((7, 4), "left", "bottom"), ((-7, -4), "right", "top")])
    for kind, (colour, marker, label) in KINDS.items():
        place, right_or_left, above_or_below = next(sides)  # neighbouring curves cross
        rows = [row for row in measurement.rows if row.setting.kind == kind]
        if not rows:
            continue
        axes.plot([row.speedup.median for row in rows], [row.agreement for row in rows],
                  color=colour, marker=marker, markersize=7, label=label)  # fmt: skip
        for row in rows:
            axes.annotate(
                f"{row.density:g}",
                (row.speedup.median, row.agreement),
                place,
                textcoords="offset points",
                ha=right_or_left,
                va=above_or_below,
                color=colour,
                fontsize=9,
            )
    axes.plot(1, 1, "D", color=DENSE_COLOUR, markersize=8, label="dense")
    axes.axhline(ENOUGH, color=FAINT, linewidth=1.5, zorder=1)
    axes.annotate(f"F = {ENOUGH:g}", (1, ENOUGH), (0, 4), xycoords=("axes fraction", "data"),
                  textcoords="offset points", color=INK, fontsize=9, ha="right")  # fmt: skip
    axes.set_xlabel("speed-up over dense (number at a point: density)")
    axes.set_ylabel("agreement F with the dense edges")
    axes.set_ylim(None, 1.02)
    axes.legend(frameon=False, labelcolor=INK, loc="lower left")
    return figure


@dataclass(frozen=True)
class Picture:
    """A figure with its place in the report."""

    name: str  # of the file, without suffix
    title: str
    caption: str
    figure: Figure


def figure_address(figure: Figure) -> str:
    """The figure as an address that holds its bytes."""
    return "data:image/png;base64," + base64.b64encode(figure_png(figure)).decode()


def figure_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def figure_svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element whose colours are variables of the page.

    Args:
        figure: drawn with the colours of this module.
        name: makes the identifiers of this figure differ from another one's.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', svg, count=1
    )
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 3.9), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    return figure, axes


def _plot_spread(
    axes: Axes,
    rows: Sequence[Row],
    colour: str,
    marker: str,
    label: str,
) -> None:
    """Median latencies with their quartiles as bars."""
    middle = [row.total_s.median * 1e3 for row in rows]
    below = [(row.total_s.median - row.total_s.low) * 1e3 for row in rows]
    above = [(row.total_s.high - row.total_s.median) * 1e3 for row in rows]
    axes.errorbar([row.executed_flops / 1e9 for row in rows], middle, [below, above], color=colour,
                  marker=marker, markersize=7, capsize=3, label=label)  # fmt: skip
