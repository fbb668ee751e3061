"""Turns a results file of bench_conv.py into one HTML page that needs no other file.

    python benchmarks/page.py benchmarks/results/NAME.jsonl --output report.html
    python benchmarks/page.py NEW.jsonl --before OLD.jsonl    # with what changed since

Reads only, never times. Per shape: measured time and executed FLOPs against density, both as a
share of dense, and the density at which the layer stops being faster than dense.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import jinja2

from perfconv._bench.regression import Change, changes, why_not_comparable
from perfconv._bench.report import describe, shape_name, write_atomically
from perfconv._bench.results_file import read

WIDTH, HEIGHT = 300.0, 190.0  # of a chart, in its own units
LEFT, BOTTOM, TOP, RIGHT = 34.0, 26.0, 8.0, 8.0
TOP_SHARE = 1.25  # the largest time that a chart shows, as a share of dense


@dataclass(frozen=True)
class Point:
    """One measurement, as shares of dense."""

    density: float
    time: float  # candidate / dense, median
    fastest: float  # quartiles of the same
    slowest: float
    gflops: float  # executed, of the perforated call

    @property
    def x(self) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * self.density

    @property
    def y(self) -> float:
        return height(self.time)

    @property
    def y_fastest(self) -> float:
        return height(self.fastest)

    @property
    def y_slowest(self) -> float:
        return height(self.slowest)


@dataclass(frozen=True)
class Panel:
    """One shape: its curve over random masks, and the other patterns."""

    name: str
    dense_ms: float
    dense_gflops: float
    curve: list[Point]
    others: dict[str, list[Point]]
    break_even: float | None  # None: faster than dense at every density that was measured

    @property
    def line(self) -> str:
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.curve)


@dataclass(frozen=True)
class Section:
    """The panels of one pass and dtype."""

    title: str
    panels: list[Panel]


def height(share: float) -> float:
    """The y of a share of the dense time."""
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(share, TOP_SHARE) / TOP_SHARE)


def dense_macs(row: dict) -> int:
    taps = row["kernel"] ** 2 * row["channels"] // row["groups"]
    return row["batch"] * row["height"] * row["width"] * row["out_channels"] * taps


def flops(row: dict) -> float:
    """Of the dense call: forward, or forward and both gradients."""
    passes = 3 if row["pass"] == "training" else 1
    return 2.0 * passes * dense_macs(row)


def make_point(row: dict) -> Point:
    return Point(
        density=row["density"],
        time=1 / row["speed_up"],
        fastest=1 / row["speed_up_high"],
        slowest=1 / row["speed_up_low"],
        gflops=row["density"] * flops(row) / row["candidate_ms"] / 1e6,
    )


def break_even(curve: Sequence[Point]) -> float | None:
    """The density at which the line between the measured points reaches the dense time."""
    for low, high in pairwise(curve):
        if low.time < 1 <= high.time:
            return low.density + (1 - low.time) / (high.time - low.time) * (
                high.density - low.density
            )
    return curve[0].density if curve and curve[0].time >= 1 else None


def make_panel(name: str, rows: Sequence[dict]) -> Panel:
    curve = sorted(
        (make_point(row) for row in rows if row["pattern"] == "random"),
        key=lambda point: point.density,
    )
    others: dict[str, list[Point]] = {}
    for row in rows:
        if row["pattern"] != "random":
            others.setdefault(row["pattern"], []).append(make_point(row))
    dense_ms = sorted(row["baseline_ms"] for row in rows)[len(rows) // 2]
    return Panel(
        name=name,
        dense_ms=dense_ms,
        dense_gflops=flops(rows[0]) / dense_ms / 1e6,
        curve=curve,
        others=others,
        break_even=break_even(curve),
    )


def sections(rows: Sequence[dict], algorithm: str) -> list[Section]:
    grouped: dict[tuple[str, str], dict[str, list[dict]]] = {}
    for row in rows:
        if row["algorithm"] == algorithm:
            shapes = grouped.setdefault((row["pass"], row["dtype"]), {})
            shapes.setdefault(shape_name(row), []).append(row)
    return [
        Section(
            f"{pass_name}, {dtype}", [make_panel(name, found) for name, found in shapes.items()]
        )
        for (pass_name, dtype), shapes in sorted(grouped.items())
    ]


def render(source: Path, algorithm: str, before: Path | None) -> str:
    head, rows = read(source)
    found = sections(rows, algorithm)
    if not found:
        known = ", ".join(sorted({row["algorithm"] for row in rows})) or "none"
        raise SystemExit(
            f"page: {source.name} has no measurement of algorithm {algorithm!r}; it has: {known}."
        )
    changed: list[Change] = []
    if before is not None:
        old_head, old_rows = read(before)
        reason = why_not_comparable(old_head, head)
        if reason is not None:
            raise SystemExit(f"page: {before.name} is not comparable: {reason}.")
        changed = changes(old_rows, rows)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        head=head,
        method=describe(head, rows, source).replace("`", ""),
        algorithm=algorithm,
        sections=found,
        before=before.name if before else None,
        changes=[change for change in changed if change.verdict != "no difference"],
        compared=len(changed),
        chart={
            "width": WIDTH,
            "height": HEIGHT,
            "left": LEFT,
            "right": WIDTH - RIGHT,
            "bottom": HEIGHT - BOTTOM,
            "top": TOP,
            "ticks_x": [
                (LEFT + (WIDTH - LEFT - RIGHT) * d, f"{d:g}") for d in (0, 0.25, 0.5, 0.75, 1)
            ],
            "ticks_y": [(height(share), f"{share:g}") for share in (0, 0.25, 0.5, 0.75, 1)],
        },
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--algorithm", default="auto")
    parser.add_argument("--before", type=Path, help="an earlier results file of this machine")
    parser.add_argument("--output", type=Path, default=Path("report.html"))
    arguments = parser.parse_args(argv)
    write_atomically(
        arguments.output, render(arguments.source, arguments.algorithm, arguments.before)
    )
    print(arguments.output.resolve())
    return 0


if __name__ == "__main__":
    sys.exit(main())
