"""Turns results files into Markdown tables; reads only, never times.

    python benchmarks/report.py benchmarks/results/NAME.jsonl
    python benchmarks/report.py benchmarks/results/NAME.jsonl --update README.md

With --update, the table replaces what stands between the two marker comments of that file, so a
number in a document is never typed.
"""

import argparse
import os
import sys
from pathlib import Path

from perfconv._bench.results_file import ResultsError, read

BEGIN, END = "<!-- benchmark table: begin -->", "<!-- benchmark table: end -->"
DENSITIES = (0.1, 0.25, 0.5, 0.75, 1.0)


def shape_name(row: dict) -> str:
    groups = "" if row["groups"] == 1 else f", {row['groups']} groups"
    kernel = f"{row['kernel']}x{row['kernel']}"
    batch = "" if row["batch"] == 1 else f"{row['batch']} x "
    return (
        f"{row['channels']} to {row['out_channels']}, {batch}{row['height']}x{row['width']}, "
        f"{kernel} dilation {row['dilation']}{groups}"
    )


def cell(row: dict | None) -> str:
    if row is None:
        return ""
    return f"{row['speed_up']:.2f}x ({row['speed_up_low']:.2f}-{row['speed_up_high']:.2f})"


def wanted(row: dict, dtype: str, pass_name: str, algorithm: str) -> bool:
    return (
        row["dtype"] == dtype
        and row["pass"] == pass_name
        and row["algorithm"] == algorithm
        and row["pattern"] == "random"
    )


def nearest_density(row: dict) -> float:
    return min(DENSITIES, key=lambda density: abs(density - row["density"]))


def table(rows: list[dict]) -> str:
    """Speed-up by pass, dtype, shape and density, in the order of the rows."""
    cases: dict[tuple[str, str], dict[float, dict]] = {}
    for row in rows:
        case = (f"{row['pass']}, {row['dtype']}", shape_name(row))
        cases.setdefault(case, {})[nearest_density(row)] = row
    densities = [d for d in DENSITIES if any(d in found for found in cases.values())]
    lines = [
        "| pass, dtype | shape | dense ms | " + " | ".join(f"{d:g}" for d in densities) + " |",
        "|---|---|---|" + "---|" * len(densities),
    ]
    for (what, name), found in cases.items():
        dense = sorted(row["baseline_ms"] for row in found.values())[len(found) // 2]
        cells = " | ".join(cell(found.get(d)) for d in densities)
        lines.append(f"| {what} | {name} | {dense:.2f} | {cells} |")
    return "\n".join(lines)


def commits(head: dict, rows: list[dict]) -> list[tuple[str, list[str], int]]:
    """(commit, benchmarks, number of rows) of a file: more than one if it was continued."""
    found: dict[str, list[dict]] = {}
    for row in rows:
        found.setdefault(row.get("commit", head["commit"]), []).append(row)
    return [
        (commit, list(dict.fromkeys(row.get("benchmark", "conv") for row in own)), len(own))
        for commit, own in found.items()
    ]


def describe(head: dict, rows: list[dict], source: Path) -> str:
    place = "benchmarks/results/" if source.resolve().parent.name == "results" else ""
    built = ", ".join(filter(None, (commit for commit, _, _ in commits(head, rows))))
    return (
        f"{head['processor']} ({head['isa']}), {head['threads']} threads, torch {head['torch']}, "
        f"{head['date']}, built from {built}. Median (quartiles) of interleaved pairs "
        f"against the faster dense layout; file: `{place}{source.name}`."
    )


def chosen_shapes(names: set[str], texts: list[str]) -> set[str]:
    """The names asked for: those of a whole name, or those that contain a part of one."""
    return {n for text in texts for n in names if (n == text if text in names else text in n)}


def document(
    source: Path, algorithm: str, dtypes: list[str], passes: list[str], shapes: list[str]
) -> str:
    head, rows = read(source)
    rows = [row for row in rows if "kernel" in row]
    if shapes:
        kept = chosen_shapes({shape_name(row) for row in rows}, shapes)
        rows = [row for row in rows if shape_name(row) in kept]
    chosen = [
        row
        for pass_name in passes
        for dtype in dtypes
        for row in rows
        if wanted(row, dtype, pass_name, algorithm)
    ]
    if not chosen:
        raise ResultsError(
            f"{source.name} has no convolution of algorithm {algorithm!r} with these shapes, "
            "dtypes and passes. Leave some of them out."
        )
    return f"{describe(head, chosen, source)}\n\n{table(chosen)}"


def update(target: Path, text: str) -> None:
    """Replaces the text between the markers, atomically."""
    content = target.read_text() if target.exists() else ""
    if BEGIN not in content or END not in content:
        raise ResultsError(f"{target} has no lines {BEGIN!r} and {END!r}; add them first.")
    before, rest = content.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    write_atomically(target, f"{before}{BEGIN}\n{text}\n{END}{after}")


def write_atomically(target: Path, text: str) -> None:
    """Writes a file under another name beside it, then moves it into place."""
    new = target.with_suffix(target.suffix + ".new")
    new.write_text(text)
    os.replace(new, target)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--algorithm", default="auto")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--pass", dest="passes", nargs="+", default=["forward", "training"])
    parser.add_argument(
        "--shapes", nargs="+", default=[], help="only shapes with one of these texts"
    )
    parser.add_argument("--update", type=Path, help="document with the two markers")
    arguments = parser.parse_args(argv)
    try:
        text = document(
            arguments.source,
            arguments.algorithm,
            arguments.dtype,
            arguments.passes,
            arguments.shapes,
        )
        if arguments.update:
            update(arguments.update, text)
    except ResultsError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    if arguments.update:
        print(arguments.update)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
