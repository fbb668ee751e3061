"""Times the convolution: forward, training, dgrad and wgrad, against dense and the peers.

The dense baseline of a problem is the fastest of both memory formats, eager and (forward, unless
--no-compile) through torch.compile, with the same bias and threads. For the forward pass the weight
is packed beforehand, as perfconv.prepack does for inference; for training it is packed in every
call, within the time. The mask comes in as bool, and its compaction is within the time. On a GPU
forward passes are timed as plain calls and once more as CUDA graphs.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F

import perfconv
from perfconv._bench.conv_case import GRADIENTS, LAYOUTS, ConvCase
from perfconv._bench.peers import PEERS, compiled, executed_share, peers_of
from perfconv._bench.problems import LISTS, SWEPT, Problem, conv_problems
from perfconv._bench.tasks import Options, Task
from perfconv._bench.timing import Call, compared, fastest
from perfconv._bench.timing_cuda import make_clock

BUDGET_MS = 150.0  # of a peer over all rounds
COMPILED = "channels_last, compiled"
ONE_THREAD_DENSITIES = (0.1, 0.25, 0.5, 1.0)  # measured with one thread too in a full run


def flops_of(problem: Problem, pass_name: str) -> float:
    """Of the dense call."""
    return 2.0 * problem.dense_macs() * (3 if pass_name == "training" else 1)


def dense_calls(case: ConvCase, pass_name: str, with_compile: bool) -> dict[str, Call]:
    if pass_name == "training":
        return {n: lambda n=n: case.step(case.dense(n), n) for n in LAYOUTS}
    if pass_name in ("dgrad", "wgrad"):
        wanted = (pass_name == "dgrad", pass_name == "wgrad", False)
        return {n: lambda n=n: case.dense_gradient(n, wanted) for n in LAYOUTS}
    calls: dict[str, Call] = {n: lambda n=n: case.dense(n) for n in LAYOUTS}
    if with_compile:
        conv = compiled(partial(F.conv2d, **case.options))
        calls[COMPILED] = lambda: conv(case.input, case.weight, case.bias)
    return calls


def own_calls(case: ConvCase, pass_name: str, algorithms: tuple[str, ...]) -> dict[str, Call]:
    if pass_name == "training":
        return {
            n: lambda n=n: case.step(case.perforated(n, None), "channels_last") for n in algorithms
        }
    if pass_name in ("dgrad", "wgrad"):
        return {n: case.gradient(pass_name, n) for n in algorithms}
    return {n: lambda n=n: case.perforated(n, case.packed) for n in algorithms}


def check(case: ConvCase, pass_name: str, algorithms: tuple[str, ...]) -> None:
    """What is timed later is right: the outputs, and of a backward pass the gradients."""
    with torch.no_grad():
        for name in algorithms:
            case.check(name, case.perforated(name, case.packed))
    for name in algorithms:
        if pass_name == "training":
            found = case.step(case.perforated(name, None), "channels_last")
            case.check_gradients(name, dict(zip(GRADIENTS, found, strict=True)))
        elif pass_name in ("dgrad", "wgrad"):
            (value,) = case.gradient(pass_name, name)()
            case.check_gradients(name, {"input" if pass_name == "dgrad" else "weight": value})


def least_bytes(case: ConvCase) -> int:
    """What the active pixels make a forward pass read and write at least, once each."""
    p = case.problem
    options = {"padding": p.padding, "dilation": p.dilation}
    touched = int(perfconv.expand_mask(case.mask, p.kernel, **options).sum())
    values = touched * p.channels + case.weight.numel() + int(case.mask.sum()) * p.out_channels
    return values * case.input.element_size()


def measure(problem: Problem, pass_name: str, options: Options) -> Iterator[dict]:
    """A row for everything that is compared: dense, ours by algorithm, peers."""
    clock = make_clock(options.device)
    case = ConvCase(problem, clock.device)
    algorithms = options.algorithms
    if pass_name == "graph" and "gather_gemm" not in algorithms:
        algorithms = (*algorithms, "gather_gemm")  # the textbook path; as plain calls it is slow
    is_forward = pass_name in ("forward", "graph")
    if pass_name == "training":
        case.learns()
    check(case, pass_name, algorithms)
    left_out: dict[str, str] = {}
    with torch.set_grad_enabled(not is_forward):
        dense = dense_calls(case, pass_name, options.with_compile and pass_name == "forward")
        best = fastest(dense, clock)
        calls = {"dense": dense[best], **own_calls(case, pass_name, algorithms)}
        if is_forward and options.with_peers:
            calls |= peers_of(
                case,
                with_compile=options.with_compile,
                is_captured=pass_name == "graph",
                left_out=left_out,
            )
        if pass_name == "graph":
            calls = {name: clock.captured(call) for name, call in calls.items()}
        budgets = {name: BUDGET_MS for name in calls if name in PEERS}
        times = clock.measure(calls, options.pairs, budgets)
        memory = {name: clock.peak_bytes(call) for name, call in calls.items()}
    flops = flops_of(problem, pass_name)
    bytes_moved = least_bytes(case)
    for name, found in compared(times).items():
        peer = PEERS.get(name)
        share = executed_share(name, case)
        yield {
            "algorithm": name,
            **problem.record(),
            "density": case.density,
            "dense_layout": best,
            **found,
            "efficiency": found["speed_up"] * case.density,
            "executed_share": share,
            "gflops": share * flops / found["candidate_ms"] / 1e6,
            "bytes": bytes_moved,
            "peak_bytes": memory[name],
            **({"is_same_function": peer.is_same_function, "what": peer.summary} if peer else {}),
            **({"own_threads": 1} if name == "spconv" and case.device.type == "cpu" else {}),
            **({"left_out": left_out} if left_out and name == "dense" else {}),
        }


def describe(row: dict) -> str:
    memory = row["peak_bytes"]
    return (
        f"{row['problem']:52s} {row['pass']:8s} {row['algorithm']:16s} "
        f"dense {row['baseline_ms']:7.2f} ms  this {row['candidate_ms']:7.2f} ms  "
        f"x{row['speed_up']:5.2f} ({row['speed_up_low']:.2f}-{row['speed_up_high']:.2f})  "
        f"x density {row['efficiency']:.2f}"
        + ("" if memory is None else f"  {memory / 2**20:.1f} MiB")
    )


def swept(problem: Problem, sweep: dict[str, tuple]) -> list[Problem]:
    """The problem with every combination of the values asked for that there can be."""
    changed = [
        replace(problem, **_fields(problem, dict(zip(sweep, values, strict=True))))
        for values in product(*sweep.values())
    ]
    return [made for made in dict.fromkeys(changed) if made.channels % made.groups == 0]


def _fields(problem: Problem, values: dict) -> dict:
    """ "size" is (height, width); "channels" both numbers, depthwise layers stay depthwise."""
    fields = {name: value for name, value in values.items() if name not in ("size", "channels")}
    if "size" in values:
        fields["height"], fields["width"] = values["size"]
    if "channels" in values:
        fields["channels"] = fields["out_channels"] = values["channels"]
        if problem.groups == problem.channels:
            fields["groups"] = values["channels"]
    return fields


def tasks(options: Options) -> list[Task]:
    if options.problems:
        graph = ("graph",) if options.with_graphs else ()
        modes = options.modes or (*graph, "forward", "training")
        cases = [(problem, mode) for problem in LISTS[options.problems]() for mode in modes]
    else:
        cases = conv_problems(options.scope)
        if options.with_graphs:
            cases += [(problem, "graph") for problem, mode in cases if mode == "forward"]
        if options.modes:
            cases = [(p, mode) for p, mode in cases if mode in options.modes]
    pairs = [(new, mode) for p, mode in cases for new in swept(p, options.sweep)]
    found = [
        Task(problem.name, partial(measure, problem, mode, options), describe, pass_name=mode)
        for problem, mode in dict.fromkeys(pairs)
    ]
    if options.scope != "full" or options.device != "cpu" or torch.get_num_threads() == 1:
        return found
    one_thread = {replace(SWEPT, density=density).name for density in ONE_THREAD_DENSITIES}
    alone = [task for task in found if task.problem in one_thread and task.pass_name == "forward"]
    return [*found, *(replace(task, threads=1) for task in alone)]
