"""What the machine can do at best, and what a call costs before it multiplies anything.

"peak": the rate of a large matrix product in each dtype, and the rate at which memory is read and
copied. They are the lines of the roofline; nothing here is a data sheet's number. "overhead": the
time of a call on a problem of 4x4 pixels and 16 channels, where Python, dispatch, planning and
memory are all there is. "peers": what is compared with, and why something is not.
"""

from collections.abc import Iterator
from functools import partial

import torch

import perfconv
from perfconv._bench.conv import own_calls
from perfconv._bench.conv_case import ConvCase
from perfconv._bench.peers import PEERS, peers_of, presence, version
from perfconv._bench.problems import Problem
from perfconv._bench.tasks import Options, Task
from perfconv._bench.timing import compared
from perfconv._bench.timing_cuda import make_clock

DTYPES = ("float32", "bfloat16")


def gemm_rate(dtype: str, options: Options) -> Iterator[dict]:
    """The fastest of a few square products, the second factor as it lies or transposed."""
    clock = make_clock(options.device)
    sides = (4096, 8192) if options.device == "cuda" else (512, 1024, 2048)
    rates = {}
    for side in sides[: 1 if options.is_quick else None]:
        left, right = (
            torch.randn(side, side, device=clock.device).to(getattr(torch, dtype)) for _ in range(2)
        )
        calls = {"mm": partial(torch.mm, left, right), "linear": partial(torch.mm, left, right.T)}
        for name, times in clock.measure(calls, 5 if options.is_quick else 11).items():
            best = min(time for time in times if time is not None)
            rates[2 * side**3 / best / 1e6] = f"{name} {side}"
    fastest = max(rates)
    yield {"dtype": dtype, "kind": "gemm", "product": rates[fastest], "gflops": fastest}


def memory_rate(options: Options) -> Iterator[dict]:
    clock = make_clock(options.device)
    mebibytes = 1024 if options.device == "cuda" else 32 if options.is_quick else 256
    values = torch.ones(mebibytes << 18, device=clock.device)
    target = torch.empty_like(values)
    calls = {"read": values.sum, "copy": lambda: target.copy_(values)}
    times = clock.measure(calls, 5 if options.is_quick else 15)
    for name, factor in (("read", 1), ("copy", 2)):
        best = min(time for time in times[name] if time is not None)
        yield {"kind": name, "gb_per_s": factor * values.nbytes / best / 1e6}


def describe_peak(row: dict) -> str:
    rate = f"{row['gflops']:.0f} GFLOP/s" if "gflops" in row else f"{row['gb_per_s']:.1f} GB/s"
    return f"{row['problem']:52s} {row['kind']:8s} {rate}"


def overhead(options: Options) -> Iterator[dict]:
    clock = make_clock(options.device)
    case = ConvCase(Problem(16, 16, 4, 4, density=0.5), clock.device)
    active = perfconv.compact_mask(case.mask)
    with torch.inference_mode():
        calls = {"dense": lambda: case.dense("channels_last")}
        calls |= own_calls(case, "forward", ("auto", "implicit_gemm"))
        calls["compact_mask"] = lambda: perfconv.compact_mask(case.mask)
        calls["given ActivePixels"] = lambda: perfconv.perforated_conv2d(
            case.input, case.weight, active, case.bias, packed_weight=case.packed, **case.options
        )
        if options.with_peers:
            peers = peers_of(case, with_compile=options.with_compile, is_captured=False)
            calls |= {name: call for name, call in peers.items() if name != "matmul"}
        for call in calls.values():  # first calls choose kernels and take memory
            for _ in range(50):
                call()
        times = clock.measure(calls, 51 if options.is_quick else 301)
    for name, found in compared(times).items():
        yield {"algorithm": name, "overhead_us": 1e3 * found["candidate_ms"], **found}


def describe_overhead(row: dict) -> str:
    return f"{row['problem']:52s} {row['algorithm']:20s} {row['overhead_us']:8.1f} us a call"


def peers(options: Options) -> Iterator[dict]:
    reasons = presence(options.device, with_compile=options.with_compile)
    for name, peer in PEERS.items():
        reason = reasons[name] if options.with_peers else "this run is without peers"
        yield {
            "kind": "peer",
            "algorithm": name,
            "what": peer.summary,
            "version": version(peer),
            "is_same_function": peer.is_same_function,
            "why_not": reason,
        }


def describe_presence(row: dict) -> str:
    verdict = "runs here" if row["why_not"] is None else f"not here: {row['why_not']}"
    return f"{row['problem']:52s} {row['algorithm']:20s} {verdict}"


def tasks(options: Options) -> list[Task]:
    rates = [
        Task(f"peak-{dtype}", partial(gemm_rate, dtype, options), describe_peak) for dtype in DTYPES
    ]
    rates.append(Task("peak-memory", partial(memory_rate, options), describe_peak))
    rates.append(Task("peers", partial(peers, options), describe_presence))
    return [*rates, Task("overhead-c16-4x4", partial(overhead, options), describe_overhead)]
