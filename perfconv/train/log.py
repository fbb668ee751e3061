"""What a run says: a bar, a file of JSON lines, TensorBoard where it is installed."""

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path

from perfconv.train.checkpoint import replace_file

LOG = "log.jsonl"


class Log:
    """The log of a run in ``folder``; a process that is not the first says nothing.

    One JSON object a line: "stage", "step" (within the stage), "total_step", and what was measured.

    Args:
        folder: of the run; None for silence.
        start: lines of this total step and later ones are dropped: the run goes on from there.
        steps: of the whole run, for the bar.
        shows_bar: False for none.
    """

    def __init__(self, folder: Path | None, *, start: int, steps: int, shows_bar: bool) -> None:
        self.path = None if folder is None else folder / LOG
        self._bar = self._board = None
        if self.path is None or folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._drop_later(start)
        if shows_bar and importlib.util.find_spec("tqdm") is not None:
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=start, unit="step", disable=None)
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder), purge_step=start)

    def add(self, line: Mapping[str, object]) -> None:
        """Writes a line, and its numbers to TensorBoard."""
        if self.path is None:
            return
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in _numbers("", line):
                self._board.add_scalar(name, value, line["total_step"])

    def advance(self, text: str) -> None:
        """One step further."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._board is not None:
            self._board.close()

    def _drop_later(self, start: int) -> None:
        """A killed run has logged steps beyond its last checkpoint, and perhaps half a line."""
        assert self.path is not None
        if not self.path.exists():
            return
        kept = []
        for text in self.path.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if line["total_step"] < start:
                kept.append(text + "\n")
        replace_file(self.path, "".join(kept).encode())


def _numbers(prefix: str, values: Mapping[str, object]) -> list[tuple[str, float]]:
    """Numbers of nested dictionaries as "density/trunk.layer1.0"."""
    found: list[tuple[str, float]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _numbers(f"{prefix}{key}/", value)
        elif isinstance(value, int | float) and key not in ("step", "total_step"):
            found.append((prefix + key, value))
    return found
