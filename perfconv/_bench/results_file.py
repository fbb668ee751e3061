"""A results file: one JSON object a line, the environment first, continued if it is there."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

# What has to be the same for two files to be compared, and more for a file to be continued.
SAME_MACHINE = ("processor", "isa", "torch", "device")
SAME_RUN = (*SAME_MACHINE, "settings")

Key = tuple[str, str, int]  # problem, pass, threads


class ResultsError(Exception):
    """A results file that cannot be used; the text says what to do."""


def read(path: Path) -> tuple[dict, list[dict]]:
    """(environment, measurements) of a results file.

    Raises:
        ResultsError: there is none, or something else.
    """
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ResultsError(
            f"{path} is no results file: {error}. Give one that perfconv bench wrote."
        ) from error
    if not rows or not all(isinstance(row, dict) for row in rows) or "processor" not in rows[0]:
        raise ResultsError(
            f"{path} is no results file: its first line does not name the machine. Give one that "
            "perfconv bench wrote."
        )
    for row in rows[1:]:
        for name in SAME_MACHINE if "processor" in row else ():
            if row.get(name) != rows[0].get(name):
                raise ResultsError(
                    f"{path} has runs of two machines: {name} is {rows[0].get(name)!r} and "
                    f"{row.get(name)!r}. Keep a file for each."
                )
    return rows[0], [row for row in rows if "problem" in row]


def without_torn_end(text: str) -> str:
    """What a process that was killed while it wrote has left, less its last measurement.

    The rows of a measurement are written together and end in a line break.
    """
    if text.endswith("\n"):
        return text
    lines = text.splitlines(keepends=True)[:-1]
    if not lines:
        return ""
    last = _measurement(lines[-1])
    while len(lines) > 1 and _measurement(lines[-1]) == last:
        lines.pop()
    return "".join(lines)


def _measurement(line: str) -> tuple:
    row = json.loads(line)
    return row.get("problem"), row.get("pass"), row.get("threads")


def row_key(row: dict, head: dict) -> Key:
    return row["problem"], row.get("pass", ""), row.get("threads", head.get("threads", 0))


def difference(old_head: dict, new_head: dict) -> str | None:
    """The first thing that two runs differ in, if any; files without it say nothing of it."""
    for name in SAME_RUN:
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
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a"):  # for the right to write, before anything is measured
                text = path.read_text()
            kept = without_torn_end(text)
            if kept != text:
                path.write_text(kept)
        except (OSError, ValueError) as error:
            raise ResultsError(
                f"{path} cannot be continued: {error}. Give another --output."
            ) from error
        if kept.strip():
            old_head, rows = read(path)
            reason = difference(old_head, head)
            if reason is not None:
                raise ResultsError(
                    f"{path} is of another machine or setting: {reason}. Give another --output."
                )
            self._done = {row_key(row, old_head) for row in rows}
        self._stream = path.open("a")
        if not kept.strip():
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
