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

from perfconv._bench import charts, summary, table2
from perfconv._bench.problems import SWEPT
from perfconv._bench.regression import changes, why_not_comparable
from perfconv._bench.report import commits, describe, shape_name, write_atomically
from perfconv._bench.results_file import ResultsError, read

# What the rows are that are no peers.
OWN = {
    "auto": "as the planner chooses",
    "dense": "the fastest of both layouts, eager and compiled",
    "implicit_gemm": "perfconv, told to take its kernel",
    "compact_mask": "the list of active pixels alone",
    "given ActivePixels": "perfconv, the list made beforehand",
}


def of(rows: Sequence[dict], *names: str) -> list[dict]:
    """The rows of these benchmarks; a file without the column is one of convolutions."""
    return [row for row in rows if row.get("benchmark", "conv") in names]


def convolutions(rows: Sequence[dict]) -> list[dict]:
    return [row for row in of(rows, "conv") if "dense_layout" in row and "kernel" in row]


def classes(sections: Sequence[charts.Section]) -> dict:
    """Break-even densities: a line for each shape with a curve, a column for a pass and dtype."""
    drawn = [section for section in sections if any(panel.is_curve for panel in section.panels)]
    titles = [section.title for section in drawn]
    lines: dict[str, dict[str, str]] = {}
    for section in drawn:
        for panel in section.panels:
            if panel.is_curve:
                lines.setdefault(panel.name, {})[section.title] = break_even(panel)
    return {
        "titles": titles,
        "lines": [(name, [found.get(t, "") for t in titles]) for name, found in lines.items()],
    }


def break_even(panel: charts.Panel) -> str:
    if panel.break_even is not None:
        return f"{panel.break_even:.2f}"
    last = panel.curve.points[-1].density
    return "none" if last > 0.99 else f"none to {last:.2f}"


def left_out(layers: Sequence[dict]) -> dict[str, str]:
    """Peers that failed on some problem: on how many, and the reason of the first."""
    reasons: dict[str, list[str]] = {}
    for row in layers:
        for name, reason in row.get("left_out", {}).items():
            reasons.setdefault(name, []).append(reason)
    return {
        name: f"left out of {len(found)} problems: {found[0]}" for name, found in reasons.items()
    }


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


def mebibytes(row: dict | None) -> str:
    """Peak memory; an older file does not say."""
    peak = None if row is None else row.get("peak_bytes")
    return "" if peak is None else f"{peak / 2**20:.1f}"


def methods(machine: list[dict], layers: list[dict], algorithm: str) -> list[dict[str, str]]:
    """Ours, dense and every peer: what it is, and what it takes on the layer that is swept."""
    timed = {
        row["algorithm"]: row
        for row in layers
        if (row["problem"], row["pass"]) == (SWEPT.name, "forward")
        and row.get("threads") == layers[0].get("threads")
    }
    calls = {row["algorithm"]: row["overhead_us"] for row in machine if "overhead_us" in row}
    about = {row["algorithm"]: row for row in machine if row.get("kind") == "peer"}
    omitted = left_out(layers)
    found = []
    for name in dict.fromkeys([algorithm, "dense", *about, *calls, *timed]):
        row, peer = timed.get(name), about.get(name, {})
        about_it = peer or row or {}
        state = f"no: {peer['why_not']}" if peer.get("why_not") else "yes"
        found.append(
            {
                "label": charts.METHODS.get(name, name),
                "ms": "" if row is None else f"{row['candidate_ms']:.2f}",
                "speed_up": "" if row is None else f"{row['speed_up']:.2f}x",
                "mebibytes": mebibytes(row),
                "overhead_us": f"{calls[name]:.1f}" if name in calls else "",
                "same": "yes" if about_it.get("is_same_function", True) else "no",
                "what": about_it.get("what", OWN.get(name, "")),
                "state": "; ".join(
                    filter(None, [state, peer.get("version", ""), omitted.get(name, "")])
                ),
            }
        )
    return found if machine else []


def factors(layers: Sequence[dict], algorithm: str) -> list[tuple[str, str, dict]]:
    """(what is changed, to what, row) around one layer."""
    found = []
    for name, rows in charts.one_at_a_time(layers, algorithm, SWEPT.record()):
        for row in rows:
            value = row[charts.FACTORS[name]]
            if name == "map":
                value = f"{row['height']}x{row['width']}"
            elif name == "density":
                value = f"{value:.2f}"
            found.append((name, str(value), row))
    return found


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
    timed = {row["algorithm"] for row in layers}
    return {
        **changed(head, rows, before),
        "head": head,
        "method": describe(head, rows, source),
        "commits": commits(head, rows),
        "answer": summary.answer(rows, algorithm),
        "algorithm": algorithm,
        "sections": sections,
        "classes": classes(sections),
        "base": SWEPT,
        "factors": factors(layers, algorithm),
        "roofs": charts.roofs(machine, layers, algorithm),
        "peers": methods(machine, layers, algorithm),
        "bars": charts.bars(of(rows, "breakdown")),
        "blocks": of(rows, "bottleneck"),
        "block_name": charts.block_name,
        "networks": of(rows, *summary.NETWORKS),
        "pools": of(rows, "pool"),
        "compactions": of(rows, "compaction"),
        "steps": of(rows, "train-step"),
        "table2": sorted(of(rows, "table2"), key=lambda row: (-row["density"], row["algorithm"])),
        "notes": table2.NOTES,
        "reference_macs": table2.REFERENCE_MACS,
        "methods": {name: text for name, text in charts.METHODS.items() if name in timed},
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
