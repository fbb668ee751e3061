"""Writes docs/experiments/report.md and its plots from the rows of tools/experiments.py.

    python tools/experiments_report.py [--rows FILE] [--output FOLDER]

Reads only. Differences are paired by seed; their 95 % interval is Student's t over the seeds.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from experiments import GROUPS, ROWS, TASKS, finished, read_rows
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy import stats

LATENCY = "latency.json"
# Task: its score in the results, the factor that makes "higher is better" points of it, its name.
SCORES = {
    "segmentation": (("mean_iou",), 100, "mean IoU, %"),
    "log_depth": (("delta", 0), 100, "share within 1.25, %"),
    "normals": (("mean_deg",), -1, "minus mean angle, degrees"),
    "boundary": (("ods",), 100, "ODS, %"),
}
QUESTIONS = {
    "a": (
        "What decides the receptive field?",
        "The authors, on Cityscapes: average 74.7, true depth tied 74.8, true depth 75.3, and "
        "predicted depth 75.9 (IoU). Reference here: average.",
    ),
    "b": (
        "Do recurrent loops help, and depth in them?",
        "The authors, on NYUv2: no loop 41.8, one loop without depth 41.9, with it 42.7, two loops "
        "43.1 (IoU). Reference here: no loop.",
    ),
    "c": (
        "Where does a pool over dilations belong?",
        "The authors, on NYUv2: none 42.05, res6 45.99, res5 46.52 (IoU); res3 and res4 without "
        "numbers. Reference here: no pool, trained as long; the pool at res5 is "
        "segmentation-attention.",
    ),
    "d": (
        "Pool by attention and by hard choice, task by task",
        "The authors: both better than the baseline on every task, and within a few tenths of each "
        "other. Reference here: no pool, trained as long.",
    ),
    "e": (
        "Fewer computations: blocks dropped, layers skipped, pixels gated",
        "The authors, on NYUv2 at target density 0.5 / 0.7 / 0.9: truncated 36.3 / 37.7 / 40.3, "
        "layers skipped 37.8 / 39.8 / 41.3, PAG 40.9 / 43.6 / 45.8 (IoU). Reference here: PAG of "
        "the same target density, whatever either executes; below, at equal executed MACs.",
    ),
}


@dataclass(frozen=True)
class Difference:
    """Of two recipes over the seeds that both have."""

    seeds: int
    mean: float
    low: float  # of the 95 % interval
    high: float

    @property
    def verdict(self) -> str:
        if self.seeds < 2 or not math.isfinite(self.low):
            return "too few seeds"
        if self.low <= 0 <= self.high:
            return "undecided"
        return "better" if self.low > 0 else "worse"

    def __str__(self) -> str:
        if self.seeds < 2:
            return f"{self.mean:+.2f} ({self.verdict})" if self.seeds else "-"
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f}), **{self.verdict}**"


def paired(ours: dict[int, float], theirs: dict[int, float]) -> Difference:
    """``ours`` minus ``theirs``, by seed."""
    both = sorted(set(ours) & set(theirs))
    values = [ours[seed] - theirs[seed] for seed in both]
    if not values:
        return Difference(0, math.nan, math.nan, math.nan)
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Difference(1, mean, math.nan, math.nan)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return Difference(len(values), mean, mean - half, mean + half)


def score(row: dict) -> float:
    """The main score of a row, higher is better."""
    task = next(task for task in SCORES if task in row["results"])
    path, factor, _ = SCORES[task]
    value = row["results"][task]
    for key in path:
        value = value[key]
    return factor * value


class Rows:
    """Finished runs by recipe and seed; rows of recipes that have changed since do not count."""

    def __init__(self, rows: list[dict]) -> None:
        self.rows = {
            (row["recipe"], row["seed"]): row
            for row in rows
            if finished(rows, row["recipe"], row["seed"]) is row
        }

    def of(self, name: str) -> dict[int, dict]:
        return {seed: row for (recipe, seed), row in self.rows.items() if recipe == name}

    def scores(self, name: str) -> dict[int, float]:
        return {seed: score(row) for seed, row in self.of(name).items()}

    def macs(self, name: str, column: str) -> float:
        return statistics.fmean(row["results"]["macs"][column] for row in self.of(name).values())

    def density(self, name: str) -> float | None:
        values = [
            statistics.fmean(row["results"]["density"].values())
            for row in self.of(name).values()
            if row["results"].get("density")
        ]
        return statistics.fmean(values) if values else None


def reference(group: str, name: str) -> str:
    """What a recipe of a group is compared with."""
    if group in "ab":
        return "average" if group == "a" else "predicted-depth"
    if group == "c":
        return "segmentation-baseline"
    task = next(task for task in TASKS if name.startswith(task))
    if group == "d":
        return f"{task}-baseline"
    if name == f"{task}-pag":
        return name
    return f"{task}-pag-{name.rsplit('-', 1)[1]}"


def table(group: str, rows: Rows) -> list[str]:
    lines = [
        "| recipe | seeds | score | minus its reference, 95 % | executed MMACs | density |",
        "|---|---|---|---|---|---|",
    ]
    for name in GROUPS[group]:
        found = rows.scores(name)
        if not found:
            lines.append(f"| {name} | 0 | not run | | | |")
            continue
        against = reference(group, name)
        difference = "reference" if against == name else paired(found, rows.scores(against))
        density = rows.density(name)
        spread = statistics.stdev(found.values()) if len(found) > 1 else math.nan
        shown = f"{statistics.fmean(found.values()):.2f}"
        shown += f" (s.d. {spread:.2f})" if len(found) > 1 else ""
        lines.append(
            f"| {name} | {len(found)} | {shown} | {difference} | "
            f"{rows.macs(name, 'executed') / 1e6:.1f} | "
            f"{'' if density is None else f'{density:.2f}'} |"
        )
    return lines


def _save(figure: Figure, path: Path) -> None:
    """The same rows give the same bytes."""
    with rc_context({"svg.hashsalt": path.name}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def plot_differences(group: str, rows: Rows, path: Path) -> bool:
    """A dot and its interval for each recipe of a group that has two seeds or more."""
    points = []
    for name in GROUPS[group]:
        against = reference(group, name)
        difference = paired(rows.scores(name), rows.scores(against))
        if name != against and difference.seeds > 1:
            points.append((name, difference))
    if not points:
        return False
    figure = Figure(figsize=(7, 0.8 + 0.32 * len(points)), layout="constrained")
    axes = figure.subplots()
    for place, (_, difference) in enumerate(points):
        colour = {"better": "#1a7f37", "worse": "#b42318"}.get(difference.verdict, "#57606a")
        half = difference.high - difference.mean
        axes.errorbar(difference.mean, -place, xerr=half, fmt="o", color=colour, capsize=3)
    axes.axvline(0, color="#8a93a0", linewidth=1)
    axes.set_yticks([-place for place in range(len(points))], [name for name, _ in points])
    axes.set_xlabel("points more than the reference, with 95 % interval")
    _save(figure, path)
    return True


def curve(task: str, kind: str) -> list[str]:
    """The recipes of (e) that save computations in one way, the cheapest first."""
    names = [f"{task}-{kind}-{rho}" for rho in (0.5, 0.7, 0.9)]
    return [*names, f"{task}-pag"] if kind == "pag" else names


def at_equal_cost(task: str, kind: str, rho: float, rows: Rows) -> tuple[Difference, int]:
    """A rival minus PAG at the rival's executed MACs; in how many seeds PAG is never as cheap.

    PAG's score there is interpolated between its networks of the same seed.
    """
    ours: dict[int, float] = {}
    theirs: dict[int, float] = {}
    below = 0
    for seed, row in rows.of(f"{task}-{kind}-{rho}").items():
        gated = [rows.of(name)[seed] for name in curve(task, "pag") if seed in rows.of(name)]
        points = sorted((one["results"]["macs"]["executed"], score(one)) for one in gated)
        cost = row["results"]["macs"]["executed"]
        if len(points) < 2 or cost > points[-1][0]:
            continue
        if cost < points[0][0]:
            below += 1
            continue
        ours[seed] = score(row)
        theirs[seed] = float(np.interp(cost, *zip(*points, strict=True)))
    return paired(ours, theirs), below


def equal_cost_table(task: str, rows: Rows) -> list[str]:
    """Rivals at PAG's own cost; empty without them."""
    lines = []
    for kind in ("truncated", "skipping"):
        for rho in (0.5, 0.7, 0.9):
            name = f"{task}-{kind}-{rho}"
            difference, below = at_equal_cost(task, kind, rho, rows)
            if difference.seeds or below:
                lines.append(
                    f"| {name} | {rows.macs(name, 'executed') / 1e6:.1f} | {difference.seeds} | "
                    f"{difference} | {below} |"
                )
    if not lines:
        return []
    return [
        "",
        f"At equal executed MACs, {task}: the rival minus PAG, whose score at the rival's cost is "
        "interpolated between its networks of the same seed.",
        "",
        "| recipe | executed MMACs | seeds | minus PAG at that cost, 95 % | seeds in which every "
        "PAG network costs more |",
        "|---|---|---|---|---|",
        *lines,
    ]


def plot_costs(task: str, rows: Rows, path: Path) -> bool:
    """Score over executed MACs, a curve for each way to save them, of the seeds that all have."""
    kinds = {"truncated": "#b42318", "skipping": "#9a6700", "pag": "#1a7f37"}
    there = [name for kind in kinds for name in curve(task, kind) if rows.scores(name)]
    if not there:
        return False
    seeds = set.intersection(*(set(rows.scores(name)) for name in there))
    if not seeds:
        return False
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for kind, colour in kinds.items():
        chosen = [[rows.of(name)[seed] for seed in seeds] for name in curve(task, kind)
                  if name in there]  # fmt: skip
        costs = [_mean(row["results"]["macs"]["executed"] / 1e6 for row in of) for of in chosen]
        axes.plot(costs, [_mean(map(score, of)) for of in chosen], "o-", color=colour, label=kind)
    axes.set_xlabel("executed MMACs per image")
    axes.set_ylabel(f"{SCORES[task.replace('-', '_')][2]}, {len(seeds)} seeds")
    axes.legend(frameon=False)
    _save(figure, path)
    return True


def _mean(values: Iterable[float]) -> float:
    return statistics.fmean(values)


def latency_tables(path: Path) -> list[str]:
    """What tools/experiments_latency.py measured; empty if nobody did."""
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    lines = []
    for measured in content["tables"]:
        height, width = measured["size"]
        lines += [
            "",
            f"Latency, {measured['task']}, one image of {height} x {width}, seed 1, BatchNorm "
            f"folded, {content['threads']} thread, {content['isa']}, torch {content['torch']}, "
            f"{measured['rounds']} rounds in turn (speed-up: median and quartiles of the pairs):",
            "",
            "| recipe | ms | speed-up over the baseline |",
            "|---|---|---|",
        ]
        for name, row in measured["recipes"].items():
            spread = f"({row['speed_up_low']:.2f} to {row['speed_up_high']:.2f})"
            lines.append(f"| {name} | {row['ms']:.2f} | {row['speed_up']:.2f} {spread} |")
    return lines


def report(rows: Rows, folder: Path, latency: Path | None = None) -> str:
    made = sorted({(row["torch"], row["isa"], row["threads"]) for row in rows.rows.values()})
    lines = [
        "# The authors' experiments in small",
        "",
        "Written by `tools/experiments_report.py` from `rows.jsonl`, which `tools/experiments.py` "
        "appends to; do not edit.",
        "",
        "Made-up scenes (`PerspectiveScenes`, 64 x 96 pixels, 400 for training, 100 for testing), "
        "networks of 0.3 to 0.7 million parameters, 400 steps of 8 images, or 300 of a base "
        "network and 200 of what is made of it (`perfconv/train/scene_recipes.py`, fixed before "
        "the first comparison). One row is one recipe; runs with the same seed are pairs. A "
        "difference whose 95 % interval contains 0 is **undecided**. What is found here says "
        "something of these small networks and scenes; the authors' figures are of large ones and "
        "photos. What can be read from it: "
        "[reading.md](reading.md).",
        "",
        f"{len(rows.rows)} finished runs. Computed with "
        + "; ".join(f"torch {torch}, {isa}, threads {threads}" for torch, isa, threads in made)
        + ".",
    ]
    for group, (question, theirs) in QUESTIONS.items():
        if not any(rows.scores(name) for name in GROUPS[group]):
            lines += ["", f"## ({group}) {question}", "", theirs, "", "Not run yet."]
            continue
        lines += ["", f"## ({group}) {question}", "", theirs, ""]
        units = {SCORES[task][2] for task in SCORES if _has_task(group, task, rows)}
        lines += [f"Score: {'; '.join(sorted(units))}.", "", *table(group, rows)]
        path = folder / f"group-{group}.svg"
        if plot_differences(group, rows, path):
            lines += ["", f"![differences of group {group}]({path.name})"]
        if group == "e":
            for task in ("segmentation", "boundary"):
                path = folder / f"costs-{task}.svg"
                if plot_costs(task, rows, path):
                    lines += ["", f"![score over MACs, {task}]({path.name})"]
                lines += equal_cost_table(task, rows)
            lines += [] if latency is None else latency_tables(latency)
    return "\n".join(lines) + "\n"


def _has_task(group: str, task: str, rows: Rows) -> bool:
    found = (row for name in GROUPS[group] for row in rows.of(name).values())
    return any(task in row["results"] for row in found)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--output", type=Path, help="folder; default: that of the rows")
    args = parser.parse_args(argv)
    folder = args.output or args.rows.parent
    folder.mkdir(parents=True, exist_ok=True)
    latency = args.rows.with_name(LATENCY)
    (folder / "report.md").write_text(report(Rows(read_rows(args.rows)), folder, latency))
    return 0


if __name__ == "__main__":
    sys.exit(main())
