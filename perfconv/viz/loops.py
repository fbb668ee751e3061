"""What a recurrent network says after each loop: pooling size, depth and labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from perfconv.viz.drawing import INK, draw_choice, draw_image, grid, need_matplotlib
from perfconv.viz.tasks import Classes, draw_maps

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class LoopPictures(NamedTuple):
    """What is known after one stage, or the ground truth; None is left empty."""

    name: str  # such as "feed-forward", "loop 1"
    pooling: Tensor | None  # (h, w), int64, the dilation index of each pixel; -1 = unknown
    depth_m: Tensor | None  # (1, H, W), metres
    labels: Tensor | None  # (H, W), int64


def loop_figure(
    stages: Sequence[LoopPictures],
    *,
    image: Tensor,
    dilations: Sequence[int],
    classes: Classes,
    title: str | None = None,
) -> "Figure":
    """A row for each stage: pooling size of each pixel, depth, labels, all in the same colours.

    Args:
        stages: the ground truth, if it is known (named "ground truth"), then the feed-forward pass
            and every loop.
        image: (3, H, W), beside the first row.
        dilations: of the branches, in the order of ``pooling``.
        classes: of the labels.
        title: of the whole figure.

    Returns:
        A matplotlib figure, for :func:`perfconv.viz.save`.

    Raises:
        RuntimeError: matplotlib is not installed.
        ValueError: ``stages`` is empty.

    Source: the layout of the authors' figures (Kong and Fowlkes 2018, released code).
    """
    need_matplotlib()
    if not stages:
        raise ValueError("viz: stages must hold at least one stage, got none. Run the network.")
    size = (image.size(-2), image.size(-1))
    figure, axes = grid(len(stages), 4, size, title)
    rows = [axes[4 * number : 4 * number + 4] for number in range(len(stages))]
    draw_image(rows[0][0], image)
    for row, stage in zip(rows, stages, strict=True):
        if row is not rows[0]:
            row[0].text(
                0.96, 0.5, stage.name, transform=row[0].transAxes, ha="right", va="center",
                color=INK, fontsize=11,
            )  # fmt: skip
        if stage.pooling is not None:
            draw_choice(row[1], stage.pooling, dilations, f"dilation: {stage.name}", size)
    depths = {s.name: s.depth_m for s in stages if s.depth_m is not None}
    labels = {s.name: s.labels for s in stages if s.labels is not None}
    if depths:
        places = [row[2] for row, s in zip(rows, stages, strict=True) if s.depth_m is not None]
        draw_maps(figure, "log_depth", depths, places)
    if labels:
        places = [row[3] for row, s in zip(rows, stages, strict=True) if s.labels is not None]
        draw_maps(figure, "segmentation", labels, places, classes)
    return figure
