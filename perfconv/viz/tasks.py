"""A picture for each task: image, prediction, ground truth, ponder map, and what colours mean."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from perfconv.viz.drawing import (
    DOTS_PER_INCH,
    FAINT,
    INK,
    colour_bar,
    draw_image,
    draw_ponder,
    grid,
    need_matplotlib,
)
from perfconv.viz.gates import Decisions

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TASKS = ("segmentation", "log_depth", "normals", "boundary")
TITLES = {
    "segmentation": "classes",
    "log_depth": "depth",
    "normals": "surface normals",
    "boundary": "boundaries",
}
DEPTH_COLOURS, BOUNDARY_COLOURS = "turbo_r", "gray_r"  # near is warm; a boundary is dark
UNKNOWN = "#000000"
LEGEND_ENTRIES = 18  # the largest classes
DEPTH_TICKS_M = (0.5, 1, 2, 3, 5, 7, 10, 20, 30, 50, 100, 200, 500, 1000)
KEY_PIXELS = 161  # diameter of the ball that explains the colours of normals
INCHES = (3.2, 6.4)  # width of a panel: of a small image, of a large one


class Classes(NamedTuple):
    """What labels mean and how they are drawn."""

    names: Sequence[str]
    colours: Tensor  # (at least as many as names, 3), red, green, blue in [0, 1]


def task_figure(
    task: str,
    prediction: Tensor,
    *,
    image: Tensor | None = None,
    truth: Tensor | None = None,
    classes: Classes | None = None,
    found: Decisions | None = None,
    index: int = 0,
    title: str | None = None,
) -> "Figure":
    """Prediction and ground truth of one task side by side, in the same colours, with their key.

    | task | prediction and truth | unknown (black) |
    |---|---|---|
    | segmentation | (H, W), int64, labels | a label without a class, such as 255 |
    | log_depth | (1, H, W), metres | not finite or not above 0 |
    | normals | (3, H, W), unit vectors | length below one half |
    | boundary | (1, H, W), in [0, 1] | |

    Args:
        task: one of these names.
        prediction: as above.
        image: (3, H, W), shown first; None for none.
        truth: as above; None for none. The range of depth colours is the truth's, if there is one.
        classes: needed for segmentation.
        found: of a gated network, whose ponder map is shown last; None for none.
        index: of the image in ``found``.
        title: of the whole figure.

    Returns:
        A matplotlib figure, for :func:`save`.

    Raises:
        RuntimeError: matplotlib is not installed.
        ValueError: the task is none of these, a shape above does not hold, or there are no
            ``classes`` for segmentation.
    """
    need_matplotlib()
    _check(task, prediction, truth, classes)
    maps = {"prediction": prediction} if truth is None else {
        "prediction": prediction, "ground truth": truth
    }  # fmt: skip
    has_ponder = found is not None and bool(found.calls)
    size = (prediction.size(-2), prediction.size(-1))
    count = (image is not None) + len(maps) + (task == "normals") + has_ponder
    # Four panels of a wide image stand two by two.
    columns = 2 if count > 2 and size[1] > 2 * size[0] else count
    inches = min(max(size[1] / DOTS_PER_INCH, INCHES[0]), INCHES[1])
    figure, axes = grid(-(-count // columns), columns, size, title, inches=inches)
    places = iter(axes)
    if image is not None:
        draw_image(next(places), image)
    draw_maps(figure, task, maps, [next(places) for _ in maps], classes)
    if task == "normals":
        _draw_ball(next(places), size)
    if has_ponder:
        assert found is not None
        draw_ponder(next(places), found.ponder()[index, 0], found.layers)
    return figure


def draw_maps(
    figure: "Figure",
    task: str,
    maps: dict[str, Tensor],
    places: "Sequence[Axes]",
    classes: Classes | None = None,
) -> None:
    """Maps of one task by their titles, in the same colours, with one legend or colour bar."""
    if task == "segmentation":
        assert classes is not None
        _draw_labels(figure, maps, places, classes)
    elif task == "log_depth":
        _draw_depth(maps, places)
    elif task == "normals":
        for place, (title, normals) in zip(places, maps.items(), strict=True):
            draw_image(place, coloured_normals(normals), f"{TITLES[task]}: {title}")
    else:
        for place, (title, boundary) in zip(places, maps.items(), strict=True):
            drawn = place.imshow(
                boundary[0].numpy(force=True), cmap=BOUNDARY_COLOURS, vmin=0, vmax=1
            )
            place.set_title(f"{TITLES[task]}: {title}", color=INK, fontsize=9)
        colour_bar(_neighbours(places), drawn).set_label("probability", color=INK, fontsize=7)


def coloured_labels(labels: Tensor, classes: Classes) -> Tensor:
    """(3, H, W): the colour of each label of (H, W); black where there is no class."""
    count = len(classes.names)
    known = (labels >= 0) & (labels < count)
    table = torch.cat([classes.colours[:count].float(), torch.zeros(1, 3)])
    return table[torch.where(known, labels, count)].permute(2, 0, 1)


def coloured_normals(normals: Tensor) -> Tensor:
    """(3, H, W): x, y, z from -1 .. 1 to red, green, blue; black where there is no normal."""
    known = normals.square().sum(0, keepdim=True) > 0.25
    return torch.where(known, (normals + 1) / 2, 0.0).clamp(0, 1)


def _draw_labels(
    figure: "Figure", maps: dict[str, Tensor], places: "Sequence[Axes]", classes: Classes
) -> None:
    from matplotlib.patches import Patch

    for place, (title, labels) in zip(places, maps.items(), strict=True):
        draw_image(place, coloured_labels(labels, classes), f"{TITLES['segmentation']}: {title}")
    every = torch.cat([labels.flatten() for labels in maps.values()])
    count = len(classes.names)
    is_known = (every >= 0) & (every < count)
    pixels = torch.bincount(every[is_known], minlength=count)
    present = pixels.argsort(descending=True, stable=True)[: int((pixels > 0).sum())].tolist()
    handles = [
        Patch(facecolor=(r, g, b), edgecolor=FAINT, label=classes.names[label])
        for label in present[:LEGEND_ENTRIES]
        for r, g, b in [classes.colours[label].tolist()]
    ]
    if len(present) > LEGEND_ENTRIES:
        more = f"and {len(present) - LEGEND_ENTRIES} smaller ones"
        handles.append(Patch(facecolor="none", edgecolor="none", label=more))
    if not bool(is_known.all()):
        handles.append(Patch(facecolor=UNKNOWN, edgecolor=FAINT, label="unknown"))
    columns = max(2, int(figure.get_figwidth() / 1.4))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(columns, len(handles)),
        frameon=False, labelcolor=INK, fontsize=8, handlelength=1.2, columnspacing=1.0,
    )  # fmt: skip
    rows = -(-len(handles) // min(columns, len(handles)))
    figure.set_figheight(figure.get_figheight() + 0.2 * rows)


def _draw_depth(maps: dict[str, Tensor], places: "Sequence[Axes]") -> None:
    import matplotlib
    import numpy as np
    from matplotlib.colors import LogNorm

    reference = maps.get("ground truth", next(iter(maps.values())))
    near, far = _depth_range(reference)
    colours = matplotlib.colormaps[DEPTH_COLOURS].with_extremes(bad=UNKNOWN)
    norm = LogNorm(near, far, clip=True)
    for place, (title, depth_m) in zip(places, maps.items(), strict=True):
        values = depth_m[0].numpy(force=True)
        shown = np.ma.masked_where(~(np.isfinite(values) & (values > 0)), values)
        drawn = place.imshow(shown, cmap=colours, norm=norm, interpolation="nearest")
        place.set_title(f"{TITLES['log_depth']}: {title}", color=INK, fontsize=9)
    bar = colour_bar(_neighbours(places), drawn)
    ticks = [tick for tick in DEPTH_TICKS_M if near <= tick <= far]
    ticks = ticks if len(ticks) > 1 else [near, far]
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
    bar.minorticks_off()
    bar.ax.invert_yaxis()  # near on top, as it is warm
    bar.set_label("metres", color=INK, fontsize=7)


def _depth_range(depth_m: Tensor) -> tuple[float, float]:
    """Between 1 % and 99 % of the known depths, and never empty."""
    known = depth_m[torch.isfinite(depth_m) & (depth_m > 0)].float()
    if not known.numel():
        return 1.0, 10.0
    ordered = known.flatten().sort().values
    last = ordered.numel() - 1
    near, far = (ordered[round(share * last)].item() for share in (0.01, 0.99))
    return near, max(far, 1.2 * near)


def _neighbours(places: "Sequence[Axes]") -> "Sequence[Axes]":
    """All of them if they stand in one row or column, else the last one."""
    specs = [place.get_subplotspec() for place in places]
    rows = {spec.rowspan.start for spec in specs if spec is not None}
    columns = {spec.colspan.start for spec in specs if spec is not None}
    return places if min(len(rows), len(columns)) == 1 else places[-1:]


def _draw_ball(axes: "Axes", size: tuple[int, int]) -> None:
    """The colours of the normals of a ball in front of the viewer, in a picture like ``size``."""
    shorter = min(size)
    line_y, line_x = (torch.linspace(1, -1, KEY_PIXELS * side // shorter) for side in size)
    y, x = torch.meshgrid(line_y * size[0] / shorter, -line_x * size[1] / shorter, indexing="ij")
    square = x.square() + y.square()
    ball = torch.stack([x, y, (1 - square).clamp(min=0).sqrt()])  # y up, z towards the viewer
    draw_image(axes, torch.where(square <= 1, coloured_normals(ball), 1.0), "key: a ball")


def _check(task: str, prediction: Tensor, truth: Tensor | None, classes: Classes | None) -> None:
    if task not in TASKS:
        raise ValueError(
            f"viz: task must be one of {', '.join(map(repr, TASKS))}, got {task!r}. Choose one of "
            "these."
        )
    channels = {"segmentation": (), "log_depth": (1,), "normals": (3,), "boundary": (1,)}[task]
    for name, given in (("prediction", prediction), ("truth", truth)):
        if given is None:
            continue
        fits = given.dim() == len(channels) + 2 and tuple(given.shape[:-2]) == channels
        if not fits or given.shape[-2:] != prediction.shape[-2:]:
            wanted = "".join(f"{channel}, " for channel in channels)
            raise ValueError(
                f"viz: {name} of {task} must be ({wanted}H, W), as large as the prediction, got "
                f"{tuple(given.shape)}. Give one image."
            )
    if task == "segmentation" and classes is None:
        raise ValueError(
            "viz: segmentation must have classes, got none. Give Classes(names, colours)."
        )
