"""A results file: one JSON object a line, the environment first, continued if it is there."""

import json
import os
from pathlib import Path
from typing import TextIO


class ResultsFile:
    """Keeps measurements as they come; without a path it only says what is done: nothing."""

    def __init__(self, path: Path | None, head: dict) -> None:
        self._stream: TextIO | None = None
        self._done: set[str] = set()
        if path is None:
            return
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self._done = {row["problem"] for row in rows if "problem" in row}
        self._stream = path.open("a")
        if not rows:
            self._write(head)

    def has(self, problem: str) -> bool:
        return problem in self._done

    def add(self, record: dict) -> None:
        """``record`` has the name of its problem under "problem"."""
        self._done.add(record["problem"])
        self._write(record)

    def _write(self, row: dict) -> None:
        if self._stream is not None:
            print(json.dumps(row), file=self._stream, flush=True)
            os.fsync(self._stream.fileno())
