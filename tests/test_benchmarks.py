"""The benchmark scripts run, agree with the dense result, continue a file, and make a table.

Timings are never judged here.
"""

import json

import pytest
import torch
from benchmark_scripts import load_scripts


@pytest.fixture
def scripts():
    threads = torch.get_num_threads()
    yield load_scripts("problems", "conv", "cuda", "block", "network", "pool", "report")
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize("pattern", ["random", "blobs", "band"])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_masks_have_about_the_wanted_density(scripts, pattern, density):
    problem = scripts["problems"].Problem(8, 8, 30, 40, density=density, pattern=pattern, batch=2)
    mask = scripts["problems"].make_mask(problem)
    assert mask.shape == (2, 1, 30, 40)
    assert mask.dtype == torch.bool
    assert abs(mask.float().mean().item() - density) < 0.06


def test_quick_run_writes_continues_and_reports(scripts, tmp_path, capsys):
    output = tmp_path / "quick.jsonl"
    arguments = ["--quick", "--filter", "c64-64", "--threads", "1", "--output", str(output)]
    assert scripts["conv"].main(arguments) == 0
    head, *rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert head["isa"]
    assert head["threads"] == 1
    assert len(rows) == 4 * 2 * 2  # problems, passes, algorithms
    assert all(row["candidate_ms"] > 0 and 0 < row["density"] < 1 for row in rows)
    assert scripts["conv"].main(arguments) == 0  # continued: nothing is measured again
    assert len(output.read_text().splitlines()) == 1 + len(rows)
    capsys.readouterr()
    document = tmp_path / "page.md"
    markers = scripts["report"].BEGIN, scripts["report"].END
    document.write_text("before\n{}\nold\n{}\nafter\n".format(*markers))
    assert scripts["report"].main([str(output), "--update", str(document)]) == 0
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "64 to 64, 30x40" in text
    assert "density 0.5" in text


def test_a_wrong_kernel_is_not_timed(scripts, monkeypatch):
    module = scripts["conv"]
    case = module.Case(scripts["problems"].Problem(16, 16, 8, 8))
    monkeypatch.setattr(case, "perforated", lambda *_: torch.zeros(1, 16, 8, 8))
    with pytest.raises(AssertionError, match="is off by"):
        case.check("implicit_gemm")


def test_a_dry_run_of_the_gpu_benchmark(scripts, tmp_path, capsys):
    output = tmp_path / "gpu.jsonl"
    only = "c64-64-1x30x40-k3-dil1-bfloat16-random0.25"
    arguments = ["--dry-run", "--filter", only, "--repeats", "3", "--output", str(output)]
    assert scripts["cuda"].main(arguments) == 0
    head, *rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert {"device", "driver", "cuda", "torch", "commit", "tf32"} <= head.keys()
    compared = {"dense", "dense_nchw", "implicit_gemm", "im2col", "matmul"}
    for mode, wanted in (("graph", compared | {"gather_gemm"}), ("eager", compared)):
        found = {row["algorithm"] for row in rows if row["pass"] == mode and "dtype" in row}
        assert wanted <= found
    assert all(row["low_us"] <= row["median_us"] <= row["high_us"] for row in rows)
    assert scripts["cuda"].main(arguments) == 0  # continued: nothing is measured again
    assert len(output.read_text().splitlines()) == 1 + len(rows)


def test_the_flops_ratio_of_a_network_is_that_of_the_masks_given(scripts):
    case = scripts["network"].Case((64, 64), with_compile=False)
    with torch.inference_mode():
        case.check()
        ratios = [case.give(density, "random") for density in (0.25, 0.5, 1.0)]
    assert 0.25 < ratios[0] < ratios[1] < 0.9
    assert ratios[2] == 1


@pytest.mark.parametrize(("script", "rows"), [("block", 2), ("network", 1)])
def test_a_quick_run_of_gated_models(scripts, script, rows, tmp_path, capsys):
    output = tmp_path / "gated.jsonl"
    arguments = ["--quick", "--threads", "1", "--output", str(output)]
    assert scripts[script].main(arguments) == 0
    head, *found = [json.loads(line) for line in output.read_text().splitlines()]
    assert head["isa"]
    assert len(found) == rows
    for row in found:
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert 0 < row["flops_ratio"] < 1 or row["density"] == 1
        assert isinstance(row["holds"], bool)
    assert scripts[script].main(arguments) == 0  # continued: nothing is measured again
    assert len(output.read_text().splitlines()) == 1 + rows
    assert "FLOPs" in capsys.readouterr().out


def test_a_wrong_block_is_not_timed(scripts):
    module = scripts["block"]
    case = module.Case(scripts["problems"].quick_block_problems()[0], with_compile=False)
    with torch.no_grad():
        case.check()
        case.block.conv2.bias.add_(3)
        case.block.conv3.weight.mul_(100)
        with pytest.raises(AssertionError, match="the gated block is off by"):
            case.check()


def test_the_gates_of_a_benchmark_cost_and_open_what_they_are_told_to(scripts):
    module = scripts["block"]
    case = module.Case(scripts["problems"].quick_block_problems()[0], with_compile=False)
    with torch.no_grad(), torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        active = case.gate()
    assert torch.equal(active.mask, case.mask)
    assert counter.get_total_flops() == 2 * 2 * case.inputs["nchw"].numel()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_needs_a_gpu(scripts, capsys):
    assert scripts["cuda"].main([]) == 1
    assert "no GPU to measure on" in capsys.readouterr().err


def test_a_wrong_result_is_not_timed_on_a_gpu(scripts, monkeypatch):
    module = scripts["cuda"]
    problem = scripts["problems"].Problem(16, 16, 8, 8)
    case = module.Case(problem, torch.device("cpu"))
    case.check()
    monkeypatch.setattr(case, "perforated", lambda *_: torch.full((1, 16, 8, 8), torch.nan))
    with pytest.raises(AssertionError, match="is off by nan"):
        case.check()


def test_pool_quick_run(scripts, tmp_path):
    output = tmp_path / "pool.jsonl"
    arguments = ["--quick", "--threads", "1", "--output", str(output)]
    assert scripts["pool"].main(arguments) == 0
    head, *rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert head["threads"] == 1
    assert [row["tied"] for row in rows] == [False, True]
    assert all(row["ratio_to_one_dense"] > 0 and row["gate_ms"] > 0 for row in rows)
