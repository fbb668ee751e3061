"""A whole parser, one image: ``pag_resnet50`` with gates at a density against the dense network.

Dense is the same trunk and head without gates and pool, BatchNorm folded, in the faster layout,
eager or (--no-compile leaves that out) through torch.compile; chosen at the small size. The
parser is the faster of eager and compiled. Every gate makes its own decision, which is timed, and
hands out a mask of 9-pixel blobs of one density. All densities take turns with the dense network.
On a GPU once more with all of them as CUDA graphs, then none compiled. Random weights; the pool
chooses freely.

Verdicts: latency ratio within 5 points of the FLOPs ratio, peak memory not above the dense one's.
"""

import copy
from collections.abc import Callable, Iterator
from functools import lru_cache, partial

import torch
from torch import Tensor, nn

import perfconv
from perfconv._bench.gated_models import (
    GivenGate,
    check_near,
    compiled_network,
    fastest_way,
)
from perfconv._bench.network import MARGIN
from perfconv._bench.networks import LAYOUTS, folded, make_model
from perfconv._bench.problems import mask_of_size
from perfconv._bench.tasks import Options, Task
from perfconv._bench.timing import Call, compared, fastest
from perfconv._bench.timing_cuda import make_clock
from perfconv.nn import PixelGate
from perfconv.ops import ActivePixels

SIZES = ((425, 560), (1024, 2048))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DENSITIES = (0.9, 0.7, 0.5)
ROUNDS = (9, 3)  # at the small size and at the large one, at most; one call of each warms up


class Parser:
    """The gated network, which takes the masks of a density at once."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        model = make_model("pag_resnet50").to(device, dtype, memory_format=torch.channels_last)
        self.model = perfconv.fuse(model, inplace=True)
        # On the meta device a run costs nothing, and says how large every mask is.
        self.shapes = copy.deepcopy(self.model).to("meta")
        for gate in perfconv.gates(self.model).values():
            if type(gate) is PixelGate:
                gate.__class__ = GivenGate
        self.masks: dict[float, dict[str, ActivePixels]] = {}
        self.run: Callable = self.model  # or compiled

    def make_masks(self, size: tuple[int, int], densities: tuple[float, ...]) -> None:
        image = torch.empty(1, 3, *size, device="meta", dtype=next(self.shapes.parameters()).dtype)
        with perfconv.record_gates(self.shapes) as record, torch.no_grad():
            self.shapes(image)
        device = next(self.model.parameters()).device
        for density in densities:
            self.masks[density] = {
                call.name: perfconv.compact_mask(
                    mask_of_size(*call.gate.mask.shape[2:], density, "blobs", seed).to(device)
                )
                for seed, call in enumerate(record.calls)
            }

    def give(self, density: float) -> None:
        gates = perfconv.gates(self.model)
        for name, active in self.masks[density].items():
            gates[name].take(active)  # type: ignore[operator]

    def call(self, density: float, image: Tensor) -> object:
        self.give(density)
        return self.run(image)


@lru_cache(maxsize=1)
def dense_choice(dtype: str, device: str, with_compile: bool, size: tuple[int, int]) -> str:
    """The fastest way of running the dense network."""
    ways = [(layout, False) for layout in LAYOUTS]
    ways += [(layout, True) for layout in LAYOUTS] if with_compile else []
    calls = {_name(*way): dense_call(dtype, device, *way, size) for way in ways}
    with torch.inference_mode():
        return fastest(calls, make_clock(device))


def _name(layout: str, is_compiled: bool) -> str:
    return f"{layout}, compiled" if is_compiled else layout


def dense_call(
    dtype: str, device: str, layout: str, is_compiled: bool, size: tuple[int, int]
) -> Call:
    model = _dense_model(dtype, device, layout)
    if is_compiled:
        model = compiled_network(model)
    return partial(model, _image(size, dtype, device).to(memory_format=LAYOUTS[layout]))


@lru_cache(maxsize=2)
def _dense_model(dtype: str, device: str, layout: str) -> nn.Module:
    model = folded(make_model("baseline_resnet50"))
    return model.to(device, DTYPES[dtype], memory_format=LAYOUTS[layout])


def _image(size: tuple[int, int], dtype: str, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, 3, *size, generator=generator).to(device, DTYPES[dtype])


def check(parser: Parser, image: Tensor) -> None:
    """With every gate open the fused network is the unfused one, up to rounding."""
    parser.make_masks((image.size(2), image.size(3)), (1.0,))
    with torch.inference_mode():
        found = parser.call(1.0, image)["segmentation"]  # type: ignore[index]
        wanted = make_model("pag_resnet50").to(image.device)(image)["segmentation"]
    check_near("the gated network", found, wanted)


def measure(
    size: tuple[int, int],
    small: tuple[int, int],
    dtype: str,
    densities: tuple[float, ...],
    rounds: int,
    options: Options,
    is_graph: bool,
) -> Iterator[dict]:
    clock = make_clock(options.device)
    with_compile = options.with_compile and not is_graph
    best = dense_choice(dtype, options.device, with_compile, small)
    layout, _, compiled = best.partition(", ")
    parser = Parser(DTYPES[dtype], clock.device)
    parser.make_masks(size, densities)
    image = _image(size, dtype, options.device).to(memory_format=torch.channels_last)
    dense = dense_call(dtype, options.device, layout, bool(compiled), size)
    calls: dict[str, Call] = {"dense": dense}
    calls |= {str(density): partial(parser.call, density, image) for density in densities}
    if (size, dtype) == (small, "float32"):
        check(parser, image)
    ratios = {}
    for density in densities:
        parser.give(density)
        ratios[density] = perfconv.flops.count(parser.model, image)
    with torch.inference_mode():
        own, parser.run = fastest_way(parser.model, image, clock, with_compile)
        dense()  # compiles
        peaks = {name: clock.peak_bytes(call) for name, call in calls.items()}
        if is_graph:
            calls = {name: clock.captured(call) for name, call in calls.items()}
        times = clock.measure(calls, rounds)
    found = compared(times)
    for density in densities:
        row = found[str(density)]
        ratio, flops_ratio = 1 / row["speed_up"], ratios[density].flops_ratio
        peak_bytes, dense_peak = peaks[str(density)], peaks["dense"]
        yield {
            "algorithm": "auto",
            "density": density,
            "pattern": "blobs",
            "dtype": dtype,
            "height": size[0],
            "width": size[1],
            "dense": best,
            "own": own,
            **row,
            "ratio": ratio,
            "ratio_low": 1 / row["speed_up_high"],
            "ratio_high": 1 / row["speed_up_low"],
            "flops_ratio": flops_ratio,
            "active_macs": ratios[density].active_macs,
            "dense_macs": ratios[density].dense_macs,
            "holds": ratio <= flops_ratio + MARGIN,
            "peak_bytes": peak_bytes,
            "dense_peak_bytes": dense_peak,
            "memory_holds": peak_bytes <= dense_peak,
        }


def describe(row: dict) -> str:
    peak, dense = (row[name] / 2**20 for name in ("peak_bytes", "dense_peak_bytes"))
    return (
        f"{row['problem']} at {row['density']}: dense {row['baseline_ms']:.0f} ms "
        f"({row['dense']})  gated {row['candidate_ms']:.0f} ms  ratio {row['ratio']:.3f} "
        f"({row['ratio_low']:.3f}-{row['ratio_high']:.3f})  FLOPs {row['flops_ratio']:.3f}  "
        f"{'holds' if row['holds'] else 'MISSED'}  peak {peak:.0f} of {dense:.0f} MiB"
    )


def tasks(options: Options) -> list[Task]:
    sizes = ((48, 64),) if options.is_quick else SIZES
    densities = DENSITIES[-1:] if options.is_quick else DENSITIES
    return [
        Task(
            f"pag_resnet50-{size[0]}x{size[1]}-{dtype}",
            partial(
                measure,
                size,
                sizes[0],
                dtype,
                densities,
                min(options.pairs, rounds),
                options,
                pass_name == "graph",
            ),
            describe,
            pass_name,
        )
        for dtype in DTYPES
        for size, rounds in zip(sizes, ROUNDS, strict=False)
        for pass_name in (("graph", "") if options.with_graphs else ("",))
    ]
