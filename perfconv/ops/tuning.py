"""The break-even densities of this machine: read from the user's cache, given to the CPU's planner.

``perfconv bench --tune`` measures them and writes a file a version, instruction set and processor,
read when perfconv is imported. PERFCONV_TUNED=0 leaves the shipped table in place, and so does
torch.use_deterministic_algorithms(True), for as long as it holds: two machines then choose alike.
"""

import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from perfconv import _ext

FORMAT = 1
DTYPES = ("float32", "bfloat16")
PASSES = ("forward", "backward")
DISABLE = "PERFCONV_TUNED"

# Shape class: dtype: pass: density above which the dense convolution is faster.
Densities = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass
class Table:
    """A measured table, and whether the planner goes by it just now."""

    densities: Densities
    source: str  # what explain says
    is_in_use: bool = False


tuned: Table | None = None


def shape_classes() -> list[str]:
    """Names of the classes that a table may have densities for."""
    return list(_ext._C.measured_classes())


def processor() -> str:
    """The model of the processor, as the system names it; an empty text if it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "")


def cache_path() -> Path:
    """Where the table of this version, instruction set and processor lies."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    info = _ext.build_info()
    name = f"{info['version']}-{info['cpu_isa']}-{processor() or 'unknown'}"
    return Path(base) / "perfconv" / f"break-even-{re.sub(r'[^A-Za-z0-9.]+', '-', name)}.json"


def use_table(densities: Densities, source: str) -> None:
    """Makes the planner go by measured densities; a class, dtype or pass may be left out.

    Args:
        densities: by name of :func:`shape_classes`, dtype ("float32", which float16 follows,
            "bfloat16") and pass ("forward", "backward"); each in [0, 1].
        source: a few words for :func:`perfconv.explain`.

    Raises:
        ValueError: another name, or a density outside [0, 1].

    Notes: for the whole process, on the CPU; torch.use_deterministic_algorithms(True) suspends it.
    """
    global tuned
    _flat(densities)
    tuned = Table(densities, source)
    follow_mode()


def use_shipped_table() -> None:
    """Undoes :func:`use_table`, and what was read from the cache."""
    global tuned
    tuned = None
    _give([], "")


def follow_mode() -> None:
    """Takes the table or leaves it, by torch's deterministic mode; the doors of operators call it.

    A compiled graph does not: it goes by what the last call outside of graphs left.
    """
    if tuned is None or torch.compiler.is_compiling():
        return
    wanted = not torch.are_deterministic_algorithms_enabled()
    if wanted != tuned.is_in_use:
        tuned.is_in_use = wanted
        _give(_flat(tuned.densities) if wanted else [], tuned.source)


def _give(densities: list[float], source: str) -> None:
    torch.ops.perfconv.set_break_even(densities, source)
    _ext._C.set_break_even(densities, source)


def _flat(densities: Densities) -> list[float]:
    """In the order of csrc/cpu/break_even.h; NaN where nothing was measured."""
    classes = shape_classes()
    named = [(name, dtype, kind) for name in classes for dtype in DTYPES for kind in PASSES]
    given = {
        (name, dtype, kind): value
        for name, of_class in densities.items()
        for dtype, of_dtype in of_class.items()
        for kind, value in of_dtype.items()
    }
    unknown = set(given) - set(named)
    if unknown:
        raise ValueError(
            f"use_table: densities are by shape class, dtype and pass, got {sorted(unknown)[0]}. "
            f"Classes: {', '.join(classes)}; dtypes: {', '.join(DTYPES)}; "
            f"passes: {', '.join(PASSES)}."
        )
    for key, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(
                f"use_table: a density must be a number in [0, 1], got {value!r} for "
                f"{', '.join(key)}. Measure it again: perfconv bench --tune."
            )
    return [float(given.get(key, float("nan"))) for key in named]


# ---- the file ------------------------------------------------------------------------------------


def write_cache(densities: Densities, source: str, path: Path | None = None) -> Path:
    """Writes a table for later processes, whole or not at all; its path."""
    target = path or cache_path()
    target.parent.mkdir(parents=True, exist_ok=True)
    info = _ext.build_info()
    content = {
        "format": FORMAT,
        "version": info["version"],
        "isa": info["cpu_isa"],
        "processor": processor(),
        "source": source,
        "densities": densities,
    }
    part = target.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(part, target)
    return target


def read_cache(path: Path) -> None:
    """Uses the table of a file; a file that is no such table is ignored with a warning."""
    try:
        content = json.loads(path.read_text())
        info = _ext.build_info()
        mine = [FORMAT, info["version"], info["cpu_isa"], processor()]
        found = [content[name] for name in ("format", "version", "isa", "processor")]
        if found != mine:
            raise ValueError(f"it is of {found}, and this is {mine}")
        use_table(content["densities"], str(content["source"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        warnings.warn(
            f"perfconv: the break-even table {path} is ignored: {error}. Delete it, or measure it "
            "again: perfconv bench --tune.",
            stacklevel=2,
        )


def load() -> None:
    """Reads the table of this machine, if there is one and it is wanted; at import."""
    if os.environ.get(DISABLE) == "0":
        return
    path = cache_path()
    if path.exists():
        read_cache(path)


load()
