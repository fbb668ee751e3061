"""Times perforated_conv2d against the best dense convolution: forward, and forward + backward.

    python benchmarks/bench_conv.py --quick
    python benchmarks/bench_conv.py --list standard --output benchmarks/results/NAME.jsonl

A results file is one JSON object a line: the environment, then a measurement a line, written as
they come, so an interrupted run continues where it stopped. The dense baseline of a problem is
the faster of its two memory formats, with the same bias and number of threads. For the forward
pass the weight is packed beforehand, as perfconv.prepack does for inference; for training it is
packed in every call, within the time. Compaction of the bool mask is always within the time.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F

import perfconv
from perfconv._bench.problems import LISTS, Problem, make_mask
from perfconv._bench.timing import commit, compare, environment, fastest


class Case:
    """The tensors of a problem and the calls to time."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        generator = torch.Generator().manual_seed(problem.seed)
        dtype = getattr(torch, problem.dtype)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        size = (problem.batch, problem.channels, problem.height, problem.width)
        weight = (problem.out_channels, problem.channels // problem.groups, *[problem.kernel] * 2)
        self.mask = make_mask(problem)
        self.density = self.mask.float().mean().item()
        self.inputs = self.both_layouts(normal(*size))
        self.weights = self.both_layouts(normal(*weight) * 0.05)
        self.bias = normal(problem.out_channels)
        self.grads = self.both_layouts(normal(problem.batch, problem.out_channels, *size[2:]))
        self.packed = perfconv.pack_weight(self.weights["nchw"], groups=problem.groups)
        self.options = {
            "padding": problem.padding,
            "dilation": problem.dilation,
            "groups": problem.groups,
        }

    @staticmethod
    def both_layouts(value: torch.Tensor) -> dict[str, torch.Tensor]:
        last = value.contiguous(memory_format=torch.channels_last)
        return {"nchw": value, "channels_last": last}

    def dense(self, layout: str) -> torch.Tensor:
        return F.conv2d(self.inputs[layout], self.weights[layout], self.bias, **self.options)

    def perforated(self, algorithm: str, packed: torch.Tensor | None) -> torch.Tensor:
        return perfconv.perforated_conv2d(
            self.inputs["channels_last"],
            self.weights["channels_last"],
            self.mask,
            self.bias,
            algorithm=algorithm,
            packed_weight=packed,
            **self.options,
        )

    def check(self, algorithm: str) -> None:
        """Active pixels equal the dense result, up to the rounding of the dtype."""
        expected = torch.where(self.mask, self.dense("nchw").float(), 0)
        found = self.perforated(algorithm, self.packed).float()
        bound = 0.05 if self.problem.dtype == "bfloat16" else 1e-3
        error = (found - expected).abs().max().item()
        if error > bound * max(1.0, expected.abs().max().item()):
            raise AssertionError(f"{self.problem.name}: {algorithm} is off by {error}")

    def measure_forward(self, algorithm: str, pairs: int) -> dict:
        with torch.inference_mode():
            self.check(algorithm)
            layout = fastest({name: lambda n=name: self.dense(n) for name in self.inputs})
            result = compare(
                lambda: self.dense(layout),
                lambda: self.perforated(algorithm, self.packed),
                pairs=pairs,
            )
        return {"dense_layout": layout, **asdict(result)}

    def measure_training(self, algorithm: str, pairs: int) -> dict:
        for value in (*self.inputs.values(), *self.weights.values(), self.bias):
            value.requires_grad_()

        def step(output: torch.Tensor, layout: str, weight: str) -> None:
            wanted = (self.inputs[layout], self.weights[weight], self.bias)
            torch.autograd.grad(output, wanted, self.grads[layout])

        layout = fastest({name: lambda n=name: step(self.dense(n), n, n) for name in self.inputs})
        result = compare(
            lambda: step(self.dense(layout), layout, layout),
            lambda: step(self.perforated(algorithm, None), "channels_last", "channels_last"),
            pairs=pairs,
        )
        return {"dense_layout": layout, **asdict(result)}


def measurements(problem: Problem, algorithms: list[str], pairs: int, done: set) -> list[dict]:
    records = []
    case = Case(problem)
    for pass_name in ("forward", "training"):
        for algorithm in algorithms:
            key = (problem.name, pass_name, algorithm)
            if key in done:
                continue
            run = case.measure_forward if pass_name == "forward" else case.measure_training
            timed = run(algorithm, pairs)
            records.append(
                {
                    "problem": problem.name,
                    "commit": commit(),
                    "pass": pass_name,
                    "algorithm": algorithm,
                    **problem.record(),
                    "density": case.density,
                    **timed,
                    "efficiency": timed["speed_up"] * case.density,
                }
            )
    return records


def read_done(path: Path) -> set:
    if not path.exists():
        return set()
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    return {(row["problem"], row["pass"], row["algorithm"]) for row in rows if "problem" in row}


def describe(record: dict) -> str:
    return (
        f"{record['problem']:52s} {record['pass']:8s} {record['algorithm']:13s} "
        f"dense {record['baseline_ms']:7.2f} ms  ours {record['candidate_ms']:7.2f} ms  "
        f"x{record['speed_up']:5.2f}  x density {record['efficiency']:.2f}"
    )


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", choices=sorted(LISTS), default="standard")
    parser.add_argument("--quick", action="store_true", help="the quick list, 5 pairs")
    parser.add_argument("--algorithm", nargs="+", default=["implicit_gemm", "auto"])
    parser.add_argument("--pairs", type=int, default=31)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--filter", default="", help="only problems whose name contains this")
    parser.add_argument("--output", type=Path, help="results file (JSON lines), continued")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    name, pairs = ("quick", 5) if arguments.quick else (arguments.list, arguments.pairs)
    problems = [problem for problem in LISTS[name]() if arguments.filter in problem.name]
    done = read_done(arguments.output) if arguments.output else set()
    head = environment()
    print(json.dumps(head))
    stream = None
    if arguments.output:
        is_new = not arguments.output.exists()
        stream = arguments.output.open("a")
        if is_new:
            print(json.dumps(head), file=stream, flush=True)
    for index, problem in enumerate(problems, 1):
        for record in measurements(problem, arguments.algorithm, pairs, done):
            print(f"[{index}/{len(problems)}] {describe(record)}", flush=True)
            if stream:
                print(json.dumps(record), file=stream, flush=True)
                os.fsync(stream.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
