"""The geometry of the report's pictures: rows of a results file to points in an SVG's own units."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from perfconv._bench.report import shape_name

WIDTH, HEIGHT = 300.0, 190.0  # of a chart
LEFT, BOTTOM, TOP, RIGHT = 34.0, 31.0, 8.0, 14.0
TOP_SHARE = 1.5  # the largest share of dense that a chart shows; more is drawn at the edge
# Methods that compute every pixel, whatever the mask.
COMPUTES_ALL = {"dense", "dense_times_mask", "unfold_gemm"}
# Method: how the report calls it. The order is that of the tables.
METHODS = {
    "auto": "perfconv (auto)",
    "implicit_gemm": "perfconv (implicit_gemm)",
    "gather_gemm": "perfconv (gather_gemm)",
    "dense": "dense, the best",
    "dense_times_mask": "dense x mask, compiled",
    "unfold_gemm": "unfold + GEMM",
    "im2col_gemm": "masked im2col + GEMM",
    "gather_per_tap": "gather + GEMM per tap",
    "spconv": "spconv (another function)",
    "spconv_triton": "spconv-triton (another function)",
    "matmul": "mm of equal M, N, K",
}


def x_of(density: float) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * density


def y_of(share: float) -> float:
    """The y of a share of dense."""
    return TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(share, TOP_SHARE) / TOP_SHARE)


@dataclass(frozen=True)
class Point:
    """One measurement, as shares of dense."""

    density: float
    time: float  # candidate / dense, median
    fastest: float  # quartiles of the same
    slowest: float
    gflops: float  # executed
    flops: float = 0.0  # executed / dense
    ms: float = 0.0
    mebibytes: float | None = None  # at the height of the call

    @property
    def x(self) -> float:
        return x_of(self.density)

    @property
    def y(self) -> float:
        return y_of(self.time)

    @property
    def y_fastest(self) -> float:
        return y_of(self.fastest)

    @property
    def y_slowest(self) -> float:
        return y_of(self.slowest)

    @property
    def y_flops(self) -> float:
        return y_of(self.flops)


@dataclass(frozen=True)
class Curve:
    """A method over the densities of random masks."""

    method: str
    points: list[Point]

    @property
    def label(self) -> str:
        return METHODS.get(self.method, self.method)

    @property
    def times(self) -> str:
        return " ".join(f"{point.x:.1f},{point.y:.1f}" for point in self.points)

    @property
    def flops(self) -> str:
        return " ".join(f"{point.x:.1f},{point.y_flops:.1f}" for point in self.points)


@dataclass(frozen=True)
class Panel:
    """One shape: our curve, the peers' and the other patterns."""

    name: str
    dense_ms: float
    dense_gflops: float
    curve: Curve
    dense: list[Point]
    peers: list[Curve]
    others: dict[str, list[Point]]
    break_even: float | None  # None: faster than dense at every density that was measured

    @property
    def numbers(self) -> list[tuple[str, list[Point]]]:
        """Everything that was measured, by what it is called."""
        own = self.curve.label
        return [
            (METHODS["dense"], self.dense),
            (own, self.curve.points),
            *((f"{own}, {pattern}", points) for pattern, points in self.others.items()),
            *((peer.label, peer.points) for peer in self.peers),
        ]

    @property
    def is_curve(self) -> bool:
        """A single density makes no chart: it is among the numbers."""
        return len(self.curve.points) > 1


@dataclass(frozen=True)
class Section:
    """The panels of one pass and dtype."""

    pass_name: str
    dtype: str
    panels: list[Panel]
    threads: int | None = None  # if not the number of the file

    @property
    def title(self) -> str:
        number = "one thread" if self.threads == 1 else f"{self.threads} threads"
        threads = "" if self.threads is None else f", {number}"
        return f"{self.pass_name}, {self.dtype}{threads}"

    def has_pattern(self, name: str) -> bool:
        return any(name in panel.others for panel in self.panels if panel.is_curve)


def dense_macs(row: dict) -> int:
    taps = row["kernel"] ** 2 * row["channels"] // row["groups"]
    return row["batch"] * row["height"] * row["width"] * row["out_channels"] * taps


def dense_flops(row: dict) -> float:
    """Of the dense call: one pass, or forward and both gradients."""
    passes = 3 if row["pass"] == "training" else 1
    return 2.0 * passes * dense_macs(row)


def executed_share(row: dict) -> float:
    """Of the dense FLOPs; an older file does not say."""
    share = 1.0 if row["algorithm"] in COMPUTES_ALL else row["density"]
    return row.get("executed_share", share)


def make_point(row: dict) -> Point:
    share = executed_share(row)
    memory = row.get("peak_bytes")
    return Point(
        density=row["density"],
        time=1 / row["speed_up"],
        fastest=1 / row["speed_up_high"],
        slowest=1 / row["speed_up_low"],
        gflops=share * dense_flops(row) / row["candidate_ms"] / 1e6,
        flops=share,
        ms=row["candidate_ms"],
        mebibytes=None if memory is None else memory / 2**20,
    )


def break_even(curve: Sequence[Point]) -> float | None:
    """The density at which the line between the measured points reaches the dense time."""
    for low, high in pairwise(curve):
        if low.time < 1 <= high.time:
            return low.density + (1 - low.time) / (high.time - low.time) * (
                high.density - low.density
            )
    return curve[0].density if curve and curve[0].time >= 1 else None


def make_panel(name: str, rows: Sequence[dict], algorithm: str) -> Panel:
    curves: dict[str, list[Point]] = {}
    others: dict[str, list[Point]] = {}
    own = [row for row in rows if row["algorithm"] == algorithm]
    for row in sorted(rows, key=lambda row: row["density"]):
        if row["pattern"] == "random":
            curves.setdefault(row["algorithm"], []).append(make_point(row))
        elif row["algorithm"] == algorithm:
            others.setdefault(row["pattern"], []).append(make_point(row))
    dense_ms = sorted(row["baseline_ms"] for row in own)[len(own) // 2]
    curve = Curve(algorithm, curves.pop(algorithm, []))
    names = [method for method in METHODS if method in curves and method != "dense"]
    return Panel(
        name=name,
        dense_ms=dense_ms,
        dense_gflops=dense_flops(own[0]) / dense_ms / 1e6,
        curve=curve,
        dense=curves.get("dense", [])[-1:],  # the same at every density
        peers=[Curve(method, curves[method]) for method in names],
        others=others,
        break_even=break_even(curve.points),
    )


def sections(rows: Sequence[dict], algorithm: str) -> list[Section]:
    """Of the convolutions; shapes that ``algorithm`` was not measured on are left out."""
    grouped: dict[tuple[str, str, int], dict[str, list[dict]]] = {}
    for row in rows:
        shapes = grouped.setdefault((row["pass"], row["dtype"], row.get("threads", 0)), {})
        shapes.setdefault(shape_name(row), []).append(row)
    usual = rows[0].get("threads", 0) if rows else 0
    found = []
    for (pass_name, dtype, threads), shapes in grouped.items():
        panels = [
            make_panel(name, own, algorithm)
            for name, own in shapes.items()
            if any(row["algorithm"] == algorithm for row in own)
        ]
        if panels:
            found.append(Section(pass_name, dtype, panels, None if threads == usual else threads))
    passes, dtypes = ("forward", "graph", "training", "dgrad", "wgrad"), ("float32", "bfloat16")
    return sorted(
        found,
        key=lambda section: (
            _place(section.pass_name, passes),
            section.threads is not None,
            _place(section.dtype, dtypes),
        ),
    )


def _place(value: str, order: tuple[str, ...]) -> int:
    return order.index(value) if value in order else len(order)


# ---- one thing at a time -------------------------------------------------------------------------

# What it is called: field of a row.
FACTORS = {
    "density": "density",
    "mask": "pattern",
    "channels": "channels",
    "map": "height",
    "batch": "batch",
    "dilation": "dilation",
    "dtype": "dtype",
    "threads": "threads",
}


def one_at_a_time(rows: Sequence[dict], algorithm: str, base: dict) -> list[tuple[str, list[dict]]]:
    """The forward passes that differ from the layer ``base`` in one thing: what, and its rows."""
    own = [row for row in rows if row["algorithm"] == algorithm and row["pass"] == "forward"]
    own = [row for row in own if row["channels"] == row["out_channels"] and row["groups"] == 1]
    wanted = {**base, "threads": rows[0].get("threads") if rows else None}
    found: dict[str, list[dict]] = {}
    for row in own:
        other = [name for name, field in FACTORS.items() if not _is_same(row, wanted, field)]
        if row["kernel"] == wanted["kernel"] and len(other) < 2:
            for name in other or FACTORS:
                found.setdefault(name, []).append(row)
    return [
        (name, sorted(found[name], key=lambda row, field=field: row[field]))
        for name, field in FACTORS.items()
        if len(found.get(name, [])) > 1
    ]


def _is_same(row: dict, wanted: dict, field: str) -> bool:
    if field == "density":
        return abs(row[field] - wanted[field]) < 0.02
    if field == "height":
        return (row["height"], row["width"]) == (wanted["height"], wanted["width"])
    return row.get(field) == wanted[field]


# ---- roofline ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Roof:
    """The measured peaks of a machine for one dtype, and where calls lie under them."""

    dtype: str
    peak_gflops: float
    gb_per_s: float
    points: list[tuple[float, float, str]]  # x, y, what
    line: str
    ticks_x: list[tuple[float, str]]
    ticks_y: list[tuple[float, str]]
    best_share: float  # of the roof, the largest among the points
    product_gflops: float  # of torch.mm, which others may beat


def roofs(machine: Sequence[dict], rows: Sequence[dict], algorithm: str) -> list[Roof]:
    """One picture for each dtype whose peak was measured. Logarithmic axes."""
    bandwidth = max(
        (row["gb_per_s"] for row in machine if row.get("kind") in ("read", "copy")), default=0.0
    )
    found = []
    for row in machine:
        if row.get("kind") != "gemm" or not bandwidth:
            continue
        chosen = [
            other
            for other in rows
            if other["algorithm"] == algorithm
            and other.get("threads") == row.get("threads")
            and other["dtype"] == row["dtype"]
            and other["pass"] == "forward"
            and other.get("bytes")
        ]
        if chosen:
            found.append(_roof(row, fastest_seen(row, rows), bandwidth, chosen))
    return found


def fastest_seen(machine: dict, rows: Sequence[dict]) -> float:
    """The peak: of the matrix product, or of a convolution, dense or ours, that was even faster."""
    rates = [
        executed_share(row) * dense_flops(row) / row["candidate_ms"] / 1e6
        for row in rows
        if row["algorithm"] in ("dense", "auto", "implicit_gemm")
        and row["dtype"] == machine["dtype"]
        and row.get("threads") == machine.get("threads")
    ]
    return max([machine["gflops"], *rates])


def _roof(machine: dict, peak: float, bandwidth: float, rows: Sequence[dict]) -> Roof:
    places = []
    for row in rows:
        flops = row["density"] * dense_flops(row)
        intensity = flops / row["bytes"]
        rate = flops / row["candidate_ms"] / 1e6
        name = f"{shape_name(row)}, density {row['density']:.2f}"
        places.append((intensity, rate, f"{name}: {rate:.0f} GFLOP/s, {intensity:.0f} FLOP/byte"))
    ridge = peak / bandwidth
    low = math.floor(math.log2(min([place[0] for place in places] + [ridge / 4])))
    high = math.ceil(math.log2(max([place[0] for place in places] + [4 * ridge])))
    rates = [place[1] for place in places] + [bandwidth * 2.0**low]
    bottom = math.floor(math.log10(min(rates)))
    top = math.log10(2 * max([peak] + [place[1] for place in places]))

    def x(intensity: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log2(intensity) - low) / (high - low)

    def y(rate: float) -> float:
        share = (math.log10(max(rate, 10.0**bottom)) - bottom) / (top - bottom)
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - share)

    corners = [(2.0**low, bandwidth * 2.0**low), (ridge, peak), (2.0**high, peak)]
    shares = [rate / min(peak, bandwidth * intensity) for intensity, rate, _ in places]
    return Roof(
        dtype=machine["dtype"],
        peak_gflops=peak,
        gb_per_s=bandwidth,
        points=[(x(place[0]), y(place[1]), place[2]) for place in places],
        line=" ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in corners),
        ticks_x=[(x(2.0**e), str(2**e) if e >= 0 else f"1/{2**-e}") for e in range(low, high + 1)][
            :: max(1, math.ceil((high - low) / 6))
        ],
        ticks_y=[(y(10.0**e), str(10**e)) for e in range(max(bottom, 0), math.floor(top) + 1)],
        best_share=max(shares),
        product_gflops=machine["gflops"],
    )


# ---- where the time goes -------------------------------------------------------------------------


@dataclass(frozen=True)
class Bar:
    """The stages of one block as shares of the dense block."""

    name: str
    dense_ms: float
    block: float  # the whole fused block / dense
    stages: list[tuple[str, float, float]]  # name, share of dense, where it begins
    scatter: float | None  # alone / dense; in a block it is a part of the convolutions

    @property
    def total(self) -> float:
        return sum(share for _, share, _ in self.stages)


def block_name(row: dict) -> str:
    """A gated bottleneck by its sizes; other problems as they are called."""
    if "dilation" not in row or "channels" not in row:
        return row["problem"]
    wide, inner = row["channels"], row["channels"] // 4
    return (
        f"{wide}-{inner}-{wide}, {row['height']}x{row['width']}, dilation {row['dilation']}, "
        f"{row['dtype']}, {row['pattern']} {row['density']:.2f}"
    )


def bars(rows: Sequence[dict]) -> list[Bar]:
    grouped: dict[str, dict[str, dict]] = {}
    for row in rows:
        grouped.setdefault(row["problem"], {})[row["stage"]] = row
    found = []
    for stages in grouped.values():
        begin, parts = 0.0, []
        for stage, row in stages.items():
            # "scatter" is inside the convolutions: it is told, not added.
            if stage not in ("dense", "block", "scatter"):
                parts.append((stage, 1 / row["speed_up"], begin))
                begin += 1 / row["speed_up"]
        block = 1 / stages["block"]["speed_up"]
        scatter = 1 / stages["scatter"]["speed_up"] if "scatter" in stages else None
        label = block_name(stages["block"])
        found.append(Bar(label, stages["dense"]["candidate_ms"], block, parts, scatter))
    return found
