"""What a results file says in a few sentences: does skipped work become saved time, and where not.

Every sentence is made from rows; what was not measured is not mentioned.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from perfconv._bench.charts import METHODS
from perfconv._bench.report import nearest_density, shape_name

NETWORKS = ("resnet50", "networks", "parser")
HALF = 0.51  # of the pixels, and what a mask of blobs has more
LARGE = 64  # channels, from which on a 3x3 layer is one that the multiplications limit


@dataclass(frozen=True)
class Answer:
    """A small table of speed-ups over dense, and sentences."""

    densities: list[float]
    speed_ups: list[tuple[str, list[str]]]  # pass, dtype and number of shapes; a range a density
    lines: list[str]


def answer(rows: Sequence[dict], algorithm: str) -> Answer:
    """The answer first, its limits last."""
    layers = [row for row in rows if "kernel" in row and "dense_layout" in row]
    usual = rows[0].get("threads") if rows else None
    layers = [row for row in layers if row.get("threads") == usual]
    own = [row for row in layers if row["algorithm"] == algorithm]
    large = [row for row in own if is_large(row)]
    networks = [row for row in rows if row.get("benchmark") in NETWORKS]
    sentences = [
        *slow_dense(large),
        *against_peers(layers, algorithm),
        *of_gated([row for row in rows if row.get("benchmark") == "bottleneck"], "Gated blocks"),
        *of_gated(networks, "Whole networks"),
        *without_gain(own, networks),
    ]
    speed_ups, densities = passes(large)
    return Answer(densities, speed_ups, sentences)


def is_large(row: dict) -> bool:
    smallest = min(row["channels"], row["out_channels"])
    return row["kernel"] == 3 and row["groups"] == 1 and smallest >= LARGE


def span(values: Iterable[float], form: str = "{:.2f}", between: str = " to ") -> str:
    ordered = sorted(values)
    low, high = form.format(ordered[0]), form.format(ordered[-1])
    return low if low == high else f"{low}{between}{high}"


def grouped(rows: Iterable[dict], key: Callable[[dict], object]) -> dict:
    found: dict = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def passes(own: Sequence[dict]) -> tuple[list[tuple[str, list[str]]], list[float]]:
    """The range over the shapes, by density, of each pass and dtype that was swept."""
    random = [
        row
        for row in own
        if row["pattern"] == "random" and abs(nearest_density(row) - row["density"]) < 0.02
    ]
    fewest = min(2, len({shape_name(row) for row in random}))  # what one shape alone has is below
    cells: dict[str, dict[float, str]] = {}
    for (name, dtype), rows in grouped(random, lambda row: (row["pass"], row["dtype"])).items():
        by_density = grouped(rows, nearest_density)
        count = len({shape_name(row) for row in rows})
        if len(by_density) > 1 and count >= fewest:
            cells[f"{name} {dtype}, {count} shape{'s' * (count > 1)}"] = {
                density: span((row["speed_up"] for row in found), between="-") + "x"
                for density, found in by_density.items()
            }
    densities = sorted({density for found in cells.values() for density in found})
    return [
        (name, [found.get(d, "") for d in densities]) for name, found in cells.items()
    ], densities


def slow_dense(own: Sequence[dict]) -> Iterable[str]:
    """Where dense bfloat16 takes longer than dense float32, a gain over it is partly that."""
    forward = [row for row in own if row["pass"] == "forward"]
    times = grouped(forward, shape_name)
    ratios = []
    for rows in times.values():
        by_dtype = grouped(rows, lambda row: row["dtype"])
        if {"float32", "bfloat16"} <= by_dtype.keys():
            slow, fast = (
                median(row["baseline_ms"] for row in by_dtype[dtype])
                for dtype in ("bfloat16", "float32")
            )
            ratios.append(slow / fast)
    if ratios and median(ratios) > 1.1:
        yield (
            f"Dense bfloat16 takes {median(ratios):.1f} times as long as dense float32 on this "
            "machine, and the bfloat16 speed-ups are over that."
        )


def against_peers(layers: Sequence[dict], algorithm: str) -> Iterable[str]:
    """Every forward problem at a density up to a half: ours against the others of its rounds."""
    ratios: list[float] = []
    best: Counter[str] = Counter()
    others: dict[str, list[tuple[dict, dict]]] = {}
    forward = [row for row in layers if row["pass"] == "forward"]
    for rows in grouped(forward, lambda row: row["problem"]).values():
        own = next((row for row in rows if row["algorithm"] == algorithm), None)
        if own is None:
            continue
        same = {
            row["algorithm"]: row["candidate_ms"] for row in rows if row.get("is_same_function")
        }
        if same and own["density"] < HALF:
            name = min(same, key=lambda name: same[name])
            best[name] += 1
            ratios.append(same[name] / own["candidate_ms"])
        for row in rows:
            if row.get("is_same_function") is False:
                others.setdefault(row["algorithm"], []).append((row, own))
    if ratios:
        name, count = best.most_common(1)[0]
        yield (
            f"Other ways to the same result, up to half of the pixels: the fastest of them (most "
            f"often {METHODS[name]}, {count} of {len(ratios)} problems) takes {span(ratios)} times "
            f"as long as perfconv, median {median(ratios):.2f}."
        )
    for name, pairs in others.items():
        yield from against_another_function(name, pairs)


def against_another_function(name: str, pairs: Sequence[tuple[dict, dict]]) -> Iterable[str]:
    def times(chosen: Sequence[tuple[dict, dict]]) -> str:
        found = [row["candidate_ms"] / own["candidate_ms"] for row, own in chosen]
        return f"{span(found)} times as long as perfconv, median {median(found):.2f}"

    half = [pair for pair in pairs if pair[1]["density"] < HALF]
    if not half:
        return
    if name == "matmul":
        yield f"A bare matrix product of equal M, N, K takes {times(half)} (up to half the pixels)."
        return
    shares = [
        row["executed_share"] / row["density"] for row, _ in half if row.get("executed_share")
    ]
    work = f" on {span(shares)} of the MACs that perfconv does" if shares else ""
    threads = ", in one thread" if half[0][0].get("own_threads") == 1 else ""
    text = f"{METHODS[name]}{threads}: {times(half)}{work} (up to half the pixels)."
    everything = [pair for pair in pairs if pair[1]["density"] > 0.99]
    if everything:
        text += f" At density 1, where both compute the same: {times(everything)}."
    yield text


def of_gated(rows: Sequence[dict], what: str) -> Iterable[str]:
    """A sentence for each dtype: one whose dense layers are slow gains more than its FLOPs."""
    rows = [row for row in rows if row["density"] < 1 and row.get("pass") != "graph"]
    by_dtype = grouped(rows, lambda row: row.get("dtype", "float32"))
    for dtype, found in by_dtype.items():
        points = [100 * (1 / row["speed_up"] - row["flops_ratio"]) for row in found]
        slower = sum(row["speed_up"] < 1 for row in found)
        yield (
            f"{what}{f' in {dtype}' * (len(by_dtype) > 1)}, gates at densities below 1 "
            f"({len(found)} rows): the share of the dense time is {span(points, '{:+.0f}')} points "
            f"from the share of its FLOPs, median {median(points):+.0f}; {slower or 'none'} of "
            "them slower than dense."
        )


def without_gain(own: Sequence[dict], networks: Sequence[dict]) -> Iterable[str]:
    """Convolutions and networks that skip half of their pixels or more, and gain nothing."""
    half = [row for row in own if row["density"] < HALF]
    slower = [row for row in half if row["speed_up_high"] < 1]
    if half:
        count = len({row["problem"] + row["pass"] for row in half})
        shapes = grouped(slower, lambda row: f"{row['pass']} {row['dtype']}")
        listed = "; ".join(
            f"{name}: {' / '.join(dict.fromkeys(map(shape_name, rows)))}"
            for name, rows in shapes.items()
        )
        yield (
            f"Slower than dense, beyond the quartiles, at half of the pixels or less: "
            f"{len(slower) or 'none'} of {count} convolutions{f' ({listed})' * bool(listed)}."
        )
    lost = [row for row in networks if row["speed_up_high"] < 1 and row["flops_ratio"] < 0.99]
    if lost:
        listed = ", ".join(dict.fromkeys(row["problem"] for row in lost))
        yield f"Networks with fewer FLOPs slower than dense, beyond the quartiles: {listed}."
