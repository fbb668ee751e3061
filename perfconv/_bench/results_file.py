"""A results file: one JSON object a line, the environment first, continued if it is there."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

# What has to be the same for a file to be continued, or for two files to be compared.
SAME_MACHINE = ("processor", "isa", "torch", "device")

Key = tuple[str, str, int]  # problem, pass, threads


def read(path: Path) -> tuple[dict, list[dict]]:
    """(environment, measurements) of a results file."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return rows[0], [row for row in rows if "problem" in row]


def row_key(row: dict, head: dict) -> Key:
    return row["problem"], row.get("pass", ""), row.get("threads", head.get("threads", 0))


def difference(old_head: dict, new_head: dict) -> str | None:
    """The first thing that two machines differ in, if any; files without it say nothing of it."""
    for name in SAME_MACHINE:
        old, new = old_head.get(name), new_head.get(name)
        if old != new and name in old_head and name in new_head:
            return f"{name} is {old!r} in the one and {new!r} in the other"
    return None


class ResultsFile:
    """Keeps measurements as they come; without a path it only says what is done: nothing."""

    def __init__(self, path: Path | None, head: dict) -> None:
        self._stream: TextIO | None = None
        self._done: set[Key] = set()
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists() or not path.read_text().strip()
        if not is_new:
            old_head, rows = read(path)
            reason = difference(old_head, head)
            if reason is not None:
                raise SystemExit(
                    f"perfconv bench: {path} is of another machine or setting: {reason}. "
                    "Give another --output."
                )
            self._done = {row_key(row, old_head) for row in rows}
        self._stream = path.open("a")
        if is_new:
            self._write([head])

    def has(self, key: Key) -> bool:
        return key in self._done

    def add(self, rows: Iterable[dict]) -> None:
        """The rows of one measurement, together: an interrupted run leaves none of them."""
        self._write(rows)

    def _write(self, rows: Iterable[dict]) -> None:
        if self._stream is not None:
            self._stream.write("".join(json.dumps(row) + "\n" for row in rows))
            self._stream.flush()
            os.fsync(self._stream.fileno())
