"""Pictures: what gates decide, what networks predict, and what recurrent loops make better.

``ponder_map`` needs torch alone, the figures matplotlib.
"""

from perfconv.viz.drawing import COMPUTED, SKIPPED, save
from perfconv.viz.gates import (
    Decisions,
    at_size,
    decisions,
    gate_figure,
    ponder_figure,
    ponder_map,
    recorded,
)
from perfconv.viz.loops import LoopPictures, loop_figure
from perfconv.viz.tasks import Classes, task_figure

__all__ = [
    "COMPUTED",
    "SKIPPED",
    "Classes",
    "Decisions",
    "LoopPictures",
    "at_size",
    "decisions",
    "gate_figure",
    "loop_figure",
    "ponder_figure",
    "ponder_map",
    "recorded",
    "save",
    "task_figure",
]
