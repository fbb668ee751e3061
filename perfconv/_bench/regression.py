"""Compares two results files of one machine: which cells became slower or faster, beyond the noise.

    python benchmarks/regression.py OLD.jsonl NEW.jsonl

A cell (problem, pass, algorithm) is compared by its speed-up over the dense convolution of the same
run, which takes the machine's mood out of it. It changed if the quartiles of the two runs do not
overlap and the medians differ by more than 15 %; inside that there is no difference: two runs of
one build differed by up to 11 % where a call takes less than a millisecond. Where the dense
convolution itself took another time, something else used the machine: such a cell is "disturbed"
and says nothing. The exit status is 1 if any cell became slower, 2 if the files cannot be compared.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from perfconv._bench.results_file import SAME_MACHINE, ResultsError, read

# Set after two runs of one build, of which 5 % called 2 cells of 16 slower.
SMALLEST_CHANGE = 0.15
LARGEST_DRIFT = 1.25  # of the dense time between the two runs
BASELINES = ("dense", "nonzero")  # compared with themselves

Key = tuple[str, str, str]


@dataclass(frozen=True)
class Change:
    """One cell in both files. Speed-ups over dense; ratio = new / old, below 1 is slower."""

    key: Key
    old: float
    new: float
    verdict: str  # "slower" | "faster" | "no difference" | "disturbed"

    @property
    def ratio(self) -> float:
        return self.new / self.old


def verdict(old: dict, new: dict) -> str:
    """What the medians and quartiles of two measurements of one cell say."""
    drift = new["baseline_ms"] / old["baseline_ms"]
    if max(drift, 1 / drift) > LARGEST_DRIFT:
        return "disturbed"
    ratio = new["speed_up"] / old["speed_up"]
    if new["speed_up_high"] < old["speed_up_low"] and ratio < 1 - SMALLEST_CHANGE:
        return "slower"
    if new["speed_up_low"] > old["speed_up_high"] and ratio > 1 / (1 - SMALLEST_CHANGE):
        return "faster"
    return "no difference"


def changes(old_rows: Iterable[dict], new_rows: Iterable[dict]) -> list[Change]:
    """Every cell that both have, the slowest first."""
    old, new = by_key(old_rows), by_key(new_rows)
    found = [
        Change(key, old[key]["speed_up"], row["speed_up"], verdict(old[key], row))
        for key, row in new.items()
        if key in old
    ]
    return sorted(found, key=lambda change: change.ratio)


def by_key(rows: Iterable[dict]) -> dict[Key, dict]:
    """The cells of a file; those of another number of threads than its first say so."""
    rows = list(rows)
    usual = rows[0].get("threads") if rows else None

    def problem(row: dict) -> str:
        threads = row.get("threads")
        return row["problem"] if threads == usual else f"{row['problem']}, {threads} threads"

    return {
        (problem(row), row.get("pass", ""), row["algorithm"]): row
        for row in rows
        if "speed_up" in row and row.get("algorithm", "dense") not in BASELINES
    }


def why_not_comparable(old_head: dict, new_head: dict) -> str | None:
    """The first thing that two machines or settings differ in, if any."""
    for name in (*SAME_MACHINE, "threads"):
        old, new = old_head.get(name), new_head.get(name)
        if old != new:
            return f"{name} is {old!r} in the one and {new!r} in the other"
    return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    arguments = parser.parse_args(argv)
    try:
        (old_head, old_rows), (new_head, new_rows) = read(arguments.old), read(arguments.new)
    except ResultsError as error:
        print(f"regression: {error}", file=sys.stderr)
        return 2
    reason = why_not_comparable(old_head, new_head)
    if reason is not None:
        print(
            f"regression: both files must be from one machine and setting, but {reason}. "
            "Measure the old commit on this machine.",
            file=sys.stderr,
        )
        return 2
    compared = changes(old_rows, new_rows)
    if not compared:
        print("regression: the files have no cell in common. Use the same list.", file=sys.stderr)
        return 2
    for change in compared:
        if change.verdict != "no difference":
            print(
                f"{change.verdict}: {' '.join(change.key)}: "
                f"{change.old:.2f}x before, {change.new:.2f}x now"
            )
    counts = Counter(change.verdict for change in compared)
    print(
        f"{len(compared)} cells: {counts['slower']} slower, {counts['faster']} faster, "
        f"{counts['disturbed']} disturbed"
    )
    return 1 if counts["slower"] else 0


if __name__ == "__main__":
    sys.exit(main())
