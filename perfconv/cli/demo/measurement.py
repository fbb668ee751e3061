"""Times the settings of the demo in interleaved rounds and puts the figures of each in one row."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perfconv.cli.demo.perforate import (
    BLENDED,
    DENSE,
    EDGES,
    GATES,
    RANDOM,
    LayerFlops,
    Run,
    Setting,
    agreement,
    layer_flops,
    run_setting,
)
from perfconv.models.hed import HED
from perfconv.nn.conv import prepack

ENOUGH = 0.95  # the agreement that the closing sentence asks for
MIN_ROUNDS = 3


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a measurement."""

    median: float
    low: float  # first quartile
    high: float  # third quartile

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        low, median, high = np.percentile(values, [25, 50, 75])
        return cls(float(median), float(low), float(high))


@dataclass(frozen=True)
class Row:
    """Everything about one setting."""

    setting: Setting
    run: Run  # of the last round
    layers: list[LayerFlops]
    total_s: Spread
    mask_s: Spread
    speedup: Spread  # of dense time / time, round by round
    agreement: float  # F with the dense edges

    @property
    def density(self) -> float:
        """Active pixels / pixels over the perforated layers; 1 for dense."""
        return self.setting.density or 1.0

    @property
    def executed_flops(self) -> int:
        return sum(layer.executed_flops for layer in self.layers)

    @property
    def dense_flops(self) -> int:
        return sum(layer.dense_flops for layer in self.layers)

    @property
    def is_perforated(self) -> bool:
        return self.setting.kind in (GATES, EDGES, RANDOM)


@dataclass(frozen=True)
class Measurement:
    """The table, and what it was measured with."""

    rows: list[Row]  # the slower dense layout left out
    other_dense: Row | None  # the slower dense layout
    rounds: int
    seconds: float  # of measuring
    threads: int

    @property
    def dense(self) -> Row:
        return self.rows[0]

    @property
    def best(self) -> Row | None:
        """The fastest perforated setting whose agreement is enough."""
        good = [row for row in self.rows if row.is_perforated and row.agreement >= ENOUGH]
        return min(good, key=lambda row: row.total_s.median, default=None)

    @property
    def shown(self) -> Row:
        """The perforated setting whose pictures are shown: the best, or else the nearest to it."""
        if self.best is not None:
            return self.best
        guided = [row for row in self.rows if row.setting.kind in (GATES, EDGES)]
        return max(guided, key=lambda row: row.agreement)

    def random_twin(self, row: Row) -> Row:
        """The random mask whose FLOPs are nearest to those of ``row``."""
        twins = [other for other in self.rows if other.setting.kind == RANDOM]
        return min(twins, key=lambda other: abs(other.executed_flops - row.executed_flops))


def measure(
    model: HED,
    photo: Tensor,
    settings: Sequence[Setting],
    *,
    gated: HED | None = None,
    seconds: float,
    rounds: int | None = None,
    advance: Callable[[Setting], None] = lambda setting: None,
) -> Measurement:
    """Runs every setting once per round, in turn, after one round of warming up.

    Args:
        model: HED in eval mode.
        photo: (1, 3, H, W), RGB in [0, 1].
        settings: both dense layouts first.
        gated: the model with learned gates; without it, settings of GATES are left out.
        seconds: when to begin no further round (at least three are run).
        rounds: how many instead of ``seconds``.
        advance: called after each run.
    """
    # Weights decide too: channels_last ones make torch convert an NCHW photo.
    settings = [setting for setting in settings if gated is not None or setting.kind != GATES]
    layouts = {setting.layout for setting in settings}
    photos = {layout: photo.contiguous(memory_format=layout) for layout in layouts}
    models = {layout: in_layout(model, layout) for layout in layouts}
    with_gates = None if gated is None else in_layout(gated, torch.channels_last)

    def run_once(setting: Setting) -> Run:
        chosen = with_gates if setting.kind == GATES else models[setting.layout]
        assert chosen is not None
        return run_setting(chosen, photos[setting.layout], setting)

    runs: dict[Setting, list[Run]] = {setting: [] for setting in settings}
    for setting in settings:
        run_once(setting)
        advance(setting)
    begin = time.perf_counter()
    done = 0
    while done < (rounds or MIN_ROUNDS) or (
        rounds is None and (time.perf_counter() - begin) * (done + 1) / done < seconds
    ):
        for setting in settings:
            runs[setting].append(run_once(setting))
            advance(setting)
        done += 1
    elapsed = time.perf_counter() - begin
    return _tabulate(model, photo, runs, elapsed)


def in_layout(model: HED, layout: torch.memory_format) -> HED:
    """A prepacked copy of the model with its weights in this memory layout."""
    copied = copy.deepcopy(model)
    copied.to(memory_format=layout)  # type: ignore[call-overload]
    return prepack(copied)


def _tabulate(
    model: HED, photo: Tensor, runs: dict[Setting, list[Run]], seconds: float
) -> Measurement:
    size = (photo.size(2), photo.size(3))
    medians = {
        setting: float(np.median([run.total_s for run in of_setting]))
        for setting, of_setting in runs.items()
    }
    dense_settings = sorted((s for s in runs if s.kind == DENSE), key=medians.__getitem__)
    dense = runs[dense_settings[0]]
    rows = {}
    for setting, of_setting in runs.items():
        last = of_setting[-1]
        ratios = [base.total_s / run.total_s for base, run in zip(dense, of_setting, strict=True)]
        rows[setting] = Row(
            setting,
            last,
            layer_flops(model, size, last, setting.kind),
            Spread.of([run.total_s for run in of_setting]),
            Spread.of([run.mask_s for run in of_setting]),
            Spread.of(ratios),
            agreement(last.edges, dense[-1].edges),
        )
    others = [rows[setting] for setting in dense_settings[1:]]
    table = [rows[dense_settings[0]]] + [rows[s] for s in runs if s.kind != DENSE]
    return Measurement(
        table, others[0] if others else None, len(dense), seconds, torch.get_num_threads()
    )


def conclusion(measurement: Measurement) -> str:
    """One sentence: the fastest setting with enough agreement."""
    dense, best = measurement.dense, measurement.best
    if dense.run.edges.max() < 0.5:
        return (
            "The dense network finds no edge in this photo, so that agreement with it says "
            "nothing; try another photo."
        )
    if best is None:
        shown = measurement.shown
        return (
            f"No perforated setting reached F >= {ENOUGH:g}: {describe(shown)} came nearest "
            f"with F = {shown.agreement:.3f}; try higher densities."
        )
    share = best.executed_flops / dense.executed_flops
    times = f"{best.total_s.median * 1e3:.0f} ms against {dense.total_s.median * 1e3:.0f} ms"
    quartiles = f"{best.speedup.low:.2f} to {best.speedup.high:.2f}"
    if best.speedup.low <= 1:
        verdict = "it is slower than" if best.speedup.high < 1 else "this run cannot tell it from"
        return (
            f"The fastest setting with F >= {ENOUGH:g} is {describe(best)}, but {verdict} "
            f"dense ({times}, quartiles of the speed-up {quartiles}); "
            f"F = {best.agreement:.3f} with {share:.0%} of the FLOPs."
        )
    return (
        f"The fastest setting with F >= {ENOUGH:g} is {describe(best)}: "
        f"{best.speedup.median:.2f} times as fast as dense ({times}) with {share:.0%} of its "
        f"FLOPs, F = {best.agreement:.3f}."
    )


def describe(row: Row) -> str:
    """A setting in words, such as "blocks 2 to 5 at density 0.5 with the edge mask"."""
    if row.setting.kind == DENSE:
        return row.setting.name
    kinds = {
        GATES: "with learned gates",
        EDGES: "with the edge mask",
        RANDOM: "with a random mask",
        BLENDED: "blended",
    }
    return f"blocks 2 to 5 at density {row.density:g} {kinds[row.setting.kind]}"


def text_table(measurement: Measurement) -> str:
    """The rows as aligned text of at most 80 columns."""
    dense = measurement.dense
    lines = [
        f"{'setting':<23} {'density':>7} {'GFLOP':>6} {'FLOPs':>5} {'ms':>5} "
        f"{'quartiles':>11} {'mask':>4} {'speed':>5} {'F':>5}"
    ]
    for row in measurement.rows:
        time_ms = [1e3 * value for value in (row.total_s.low, row.total_s.high)]
        lines.append(
            f"{row.setting.name:<23} {row.density:>7.2f} {row.executed_flops / 1e9:>6.1f} "
            f"{row.executed_flops / dense.executed_flops:>5.0%} {row.total_s.median * 1e3:>5.0f} "
            f"{f'{time_ms[0]:.0f}-{time_ms[1]:.0f}':>11} {row.mask_s.median * 1e3:>4.0f} "
            f"{row.speedup.median:>4.2f}x {row.agreement:>5.3f}"
        )
    return "\n".join(lines)
