"""Turns a results file into one HTML page that needs no other file, or a Markdown document.

    python benchmarks/page.py benchmarks/results/NAME.jsonl --output report.html
    python benchmarks/page.py NEW.jsonl --before OLD.jsonl    # with what changed since
    python benchmarks/page.py NEW.jsonl --output report.md

Reads only, never times.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import jinja2

from perfconv._bench import charts, table2
from perfconv._bench.regression import changes, why_not_comparable
from perfconv._bench.report import describe, shape_name, write_atomically
from perfconv._bench.results_file import ResultsError, read

GATED = {"bottleneck", "resnet50", "networks", "parser"}


def of(rows: Sequence[dict], *names: str) -> list[dict]:
    """The rows of these benchmarks; a file without the column is one of convolutions."""
    return [row for row in rows if row.get("benchmark", "conv") in names]


def convolutions(rows: Sequence[dict]) -> list[dict]:
    return [row for row in of(rows, "conv") if "dense_layout" in row and "kernel" in row]


def classes(sections: Sequence[charts.Section]) -> list[tuple[str, str, str]]:
    """(pass and dtype, shape, break-even density) of every shape with a curve."""
    return [
        (
            section.title,
            panel.name,
            "none measured" if panel.break_even is None else f"{panel.break_even:.2f}",
        )
        for section in sections
        for panel in section.panels
        if panel.is_curve
    ]


def check_comparable(before: Path, head: dict) -> list[dict]:
    """The measurements of an earlier file; ResultsError if it is of another machine."""
    old_head, old_rows = read(before)
    reason = why_not_comparable(old_head, head)
    if reason is not None:
        raise ResultsError(f"{before.name} is not comparable: {reason}. Leave --before out.")
    return old_rows


def changed(head: dict, rows: list[dict], before: Path | None) -> dict:
    if before is None:
        return {"before": None, "changes": [], "compared": 0}
    old_rows = check_comparable(before, head)
    found = changes(old_rows, rows)
    return {
        "before": before.name,
        "changes": [change for change in found if change.verdict != "no difference"],
        "compared": len(found),
    }


def content(source: Path, algorithm: str, before: Path | None) -> dict:
    """Everything that a template shows."""
    head, rows = read(source)
    layers = convolutions(rows)
    sections = charts.sections(layers, algorithm)
    if layers and not sections:
        known = ", ".join(sorted({row["algorithm"] for row in layers}))
        raise ResultsError(
            f"{source.name} has no measurement of algorithm {algorithm!r}; it has: {known}."
        )
    machine = of(rows, "machine")
    methods = {row["algorithm"] for row in layers}
    return {
        **changed(head, rows, before),
        "head": head,
        "method": describe(head, rows, source),
        "algorithm": algorithm,
        "sections": sections,
        "classes": classes(sections),
        "roofs": charts.roofs(machine, layers, algorithm),
        "peers": [row for row in machine if row.get("kind") == "peer"],
        "overheads": [row for row in machine if "overhead_us" in row],
        "bars": charts.bars(of(rows, "breakdown")),
        "gated": [row for row in rows if row.get("benchmark") in GATED],
        "is_compiled": any("own" in row for row in rows),
        "pools": of(rows, "pool"),
        "compactions": of(rows, "compaction"),
        "steps": of(rows, "train-step"),
        "table2": sorted(of(rows, "table2"), key=lambda row: (-row["density"], row["algorithm"])),
        "notes": table2.NOTES,
        "reference_macs": table2.REFERENCE_MACS,
        "methods": {name: text for name, text in charts.METHODS.items() if name in methods},
        "stages": ("gate", "compaction", "halo", "conv1", "conv2", "conv3"),
        "shape_name": shape_name,
        "chart": {
            "width": charts.WIDTH,
            "height": charts.HEIGHT,
            "left": charts.LEFT,
            "right": charts.WIDTH - charts.RIGHT,
            "bottom": charts.HEIGHT - charts.BOTTOM,
            "top": charts.TOP,
            "ticks_x": [(charts.x_of(d), f"{d:g}") for d in (0, 0.25, 0.5, 0.75, 1)],
            "ticks_y": [(charts.y_of(share), f"{share:g}") for share in (0, 0.5, 1, 1.5)],
        },
    }


def render(source: Path, algorithm: str, before: Path | None, template: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=template.endswith(".html.jinja"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(content(source, algorithm, before))


def write(
    source: Path, target: Path, *, algorithm: str = "auto", before: Path | None = None
) -> None:
    """``target`` is Markdown if it ends in .md, else HTML."""
    template = "page.md.jinja" if target.suffix == ".md" else "page.html.jinja"
    write_atomically(target, render(source, algorithm, before, template))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--algorithm", default="auto")
    parser.add_argument("--before", type=Path, help="an earlier results file of this machine")
    parser.add_argument("--output", type=Path, default=Path("report.html"))
    arguments = parser.parse_args(argv)
    try:
        write(
            arguments.source,
            arguments.output,
            algorithm=arguments.algorithm,
            before=arguments.before,
        )
    except ResultsError as error:
        print(f"page: {error}", file=sys.stderr)
        return 2
    print(arguments.output.resolve())
    return 0
