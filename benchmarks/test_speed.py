"""The quick convolutions under pytest-benchmark: pytest benchmarks/ --benchmark-only.

With --benchmark-json=FILE for other tools; the suite itself is ``perfconv bench``.
"""

import pytest
import torch

from perfconv._bench.conv import flops_of
from perfconv._bench.conv_case import ConvCase
from perfconv._bench.peers import peers_of
from perfconv._bench.problems import quick_problems

METHODS = ("dense", "auto", "im2col_gemm", "matmul")
DEVICES = ("cpu", *(["cuda"] if torch.cuda.is_available() else []))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("problem", quick_problems(), ids=lambda problem: problem.name)
def test_conv(benchmark, problem, method, device):
    case = ConvCase(problem, device)
    with torch.inference_mode():
        calls = peers_of(case, with_compile=False, is_captured=False)
        calls["dense"] = lambda: case.dense("channels_last")
        calls["auto"] = lambda: case.perforated("auto", case.packed)
        case.check("auto", calls["auto"]())

        def waited() -> None:  # pytest-benchmark does not wait for a GPU
            calls[method]()
            if device == "cuda":
                torch.cuda.synchronize()

        benchmark.group = problem.name
        benchmark.extra_info.update(
            problem.record(),
            method=method,
            device=device,
            density=case.density,
            threads=torch.get_num_threads(),
            dense_gflop=flops_of(problem, "forward") / 1e9,
        )
        benchmark.pedantic(waited, rounds=31, warmup_rounds=3)
