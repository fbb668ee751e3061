"""The benchmarks run, agree with the dense result, and continue a file. No time is judged here."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmark_runs import run

import perfconv
from perfconv._bench import (
    command,
    compaction,
    conv,
    networks,
    suite,
    table2,
    timing,
    tune,
)
from perfconv._bench.command import main
from perfconv._bench.conv_case import ConvCase
from perfconv._bench.problems import SWEPT, Problem, conv_problems, make_mask
from perfconv._bench.results_file import ResultsFile, read
from perfconv._bench.tasks import Options, Task, run_tasks
from perfconv.models.resnet import BasicBlock
from perfconv.ops import tuning

TUNED = perfconv.build_info()["cpu_isa"] != "portable"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def settings():
    """The command sets these for the process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cuda.matmul.allow_tf32 = False


# ---- problems ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["random", "blobs", "band"])
@pytest.mark.parametrize("density", [0.1, 0.5, 1.0])
def test_masks_have_about_the_wanted_density(pattern, density):
    mask = make_mask(Problem(8, 8, 30, 40, density=density, pattern=pattern, batch=2))
    assert mask.shape == (2, 1, 30, 40)
    assert mask.dtype == torch.bool
    assert abs(mask.float().mean().item() - density) < 0.06


@pytest.mark.slow
def test_real_ponder_maps_are_cut_at_the_wanted_density():
    pytest.importorskip("imgviz")
    pytest.importorskip("h5py")
    mask = make_mask(Problem(8, 8, 60, 80, density=0.25, pattern="ponder"))
    assert abs(mask.float().mean().item() - 0.25) < 0.01
    # Learned masks are clustered: most neighbours of an active pixel are active.
    both = (mask[..., 1:] & mask[..., :-1]).sum() / mask[..., :-1].sum()
    assert both > 0.5


def test_a_full_plan_sweeps_what_it_says():
    found = [problem for problem, _ in conv_problems("full")]
    assert {0.05, 0.1, 0.25, 0.5, 0.75, 1.0} <= {problem.density for problem in found}
    for name, least in (("channels", 4), ("height", 3), ("dilation", 2), ("batch", 2)):
        assert len({getattr(problem, name) for problem in found}) >= least, name
    assert {"random", "blobs", "band"} <= {problem.pattern for problem in found}
    base = SWEPT.record()
    for name in ("channels", "height", "batch", "dilation", "dtype", "density", "pattern"):
        alone = [
            problem.record()[name]
            for problem in found
            if {k for k, v in problem.record().items() if v != base[k]} - {"width", "out_channels"}
            == {name}
        ]
        assert alone, name  # one thing changed
    for layers in (
        [problem for problem in found if problem.groups == problem.channels],  # depthwise
        [problem for problem in found if problem.groups not in (1, problem.channels)],
        [problem for problem in found if problem.channels < 16],
        [problem for problem in found if problem.kernel == 1],
    ):
        assert {0.25, 0.5, 1.0} <= {problem.density for problem in layers}
    assert {mode for _, mode in conv_problems("full")} == {"forward", "training", "dgrad", "wgrad"}
    assert {"op", "block", "network", "train-step"} == set(suite.LEVELS)


# ---- the command ---------------------------------------------------------------------------------


def test_every_benchmark_has_quick_tasks_with_names_of_their_own():
    options = Options(scope="quick", with_compile=False)
    keys = [(task.problem, task.pass_name) for task in suite.plan((), options)]
    assert len(keys) == len(set(keys))
    full = Options(scope="full")
    for benchmark in suite.BENCHMARKS:
        assert benchmark.tasks(full), benchmark.name


def test_an_unknown_benchmark(capsys):
    assert main(["nothing"]) == 2
    assert "no benchmark or level called nothing. Benchmarks: machine" in capsys.readouterr().err
    assert main(["table2", "--quick"]) == 2
    assert "table2 has no such measurement in a quick run" in capsys.readouterr().err
    assert main(["conv", "--quick", "--filter", "nothing"]) == 2
    assert "has such a name. Names look like c64-64-1x30x40" in capsys.readouterr().err


def test_quick_convolutions(tmp_path, capsys):
    _, rows = run(tmp_path, "conv", "--quick", "--filter", "float32-random0.25")
    forward = [row for row in rows if row["pass"] == "forward" and row["kernel"] == 3]
    peers_here = {"dense", "auto", "unfold_gemm", "im2col_gemm", "gather_per_tap", "matmul"}
    assert peers_here <= {row["algorithm"] for row in forward}
    assert {"training", "dgrad", "wgrad"} <= {row["pass"] for row in rows}
    assert all(row["gflops"] > 0 for row in rows)
    for row in forward:
        output, patches = row["out_channels"], 9 * row["channels"] * row["density"]
        pixels = 4 * row["height"] * row["width"]
        assert row["peak_bytes"] >= 0.9 * pixels * output * (row["algorithm"] != "matmul")
        if row["algorithm"] == "im2col_gemm":
            assert row["peak_bytes"] >= 0.9 * pixels * (output + patches)
    (bar,) = {row["is_same_function"] for row in rows if row["algorithm"] == "matmul"}
    assert bar is False
    text = capsys.readouterr().out
    assert " left] " in text  # progress with the time left
    assert "are in the results file already" in text


def test_a_full_run_has_rows_of_one_thread(tmp_path, monkeypatch, capsys):
    """Their own number of threads, in the file and while they run; they are not done twice."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    alone = [task for task in conv.tasks(Options(scope="full")) if task.threads]
    assert {task.threads for task in alone} == {1}
    assert len(alone) == len(conv.ONE_THREAD_DENSITIES)
    monkeypatch.undo()
    asked: list[int] = []
    measure = lambda: (asked.append(torch.get_num_threads()), [{"algorithm": "auto"}])[1]  # noqa: E731
    tasks = [Task("a", measure, str), Task("a", measure, str, threads=3)]
    path = tmp_path / "results.jsonl"
    torch.set_num_threads(2)
    for _ in range(2):
        assert run_tasks(tasks, ResultsFile(path, timing.environment()), 2) == 0
    assert asked == [2, 3]
    assert torch.get_num_threads() == 2
    assert [row["threads"] for row in read(path)[1]] == [2, 3]
    asked.clear()
    other = tmp_path / "three.jsonl"
    assert run_tasks(tasks, ResultsFile(other, timing.environment()), 3) == 0
    assert asked == [3]  # the two are one measurement


def test_a_sweep_replaces_the_values_of_the_list(tmp_path):
    words = (
        "conv",
        "--quick",
        "--filter",
        "float32",
        "--modes",
        "wgrad",
        "--density",
        "0.1",
        "0.9",
    )
    _, rows = run(tmp_path, *words, "--size", "8x9", "--channels", "16", continues=False)
    assert {(row["channels"], row["height"], row["width"]) for row in rows} == {(16, 8, 9)}
    assert len({row["problem"] for row in rows}) == 2


def test_a_sweep_makes_only_problems_that_there_are():
    """Depthwise layers stay depthwise; groups that do not divide the channels are left out."""
    layers = [Problem(64, 64, 8, 8, groups=64), Problem(128, 128, 8, 8, groups=32)]
    found = [p for layer in layers for p in conv.swept(layer, {"channels": (64, 80)})]
    assert [(p.channels, p.groups) for p in found] == [(64, 64), (80, 80), (64, 32)]


def test_ponder_maps_that_are_not_here(capsys, monkeypatch):
    monkeypatch.setattr(command, "has_ponder_maps", lambda: False)
    assert main(["conv", "--pattern", "ponder"]) == 2
    assert "needs the weights of HED and a photo. Install them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--density 1.5", "a density is from 0 to 1, got '1.5'"),
        ("--density nan", "a density is from 0 to 1, got 'nan'"),
        ("--pattern stripes", "invalid choice: 'stripes'"),
        ("--dtype int32", "invalid choice: 'int32'"),
        ("--channels 0", "a whole number from 1, got '0'"),
        ("--size 0x5", "a map size looks like 60x80, got '0x5'"),
        ("--pairs 1", "a whole number from 2, got '1'"),
        ("--threads 0", "a whole number from 1, got '0'"),
        ("--modes sideways", "invalid choice: 'sideways'"),
        ("pool --channels 8", "--channels is for conv. Leave it out"),
        ("--before old.jsonl", "--before is for the report. Give --report"),
        ("--report page.html", "--report reads a results file. Give --output"),
        ("--output o.jsonl --report page.pdf", "--report writes FILE.html or FILE.md"),
        ("--output o.jsonl --report /proc/none/p.html", "--report cannot be written"),
        ("--output /proc/none/o.jsonl", "cannot be continued: .* Give another --output"),
        ("--output o.jsonl --report p.md --before none.jsonl", "none.jsonl is no results file"),
    ],
)
def test_what_a_user_can_put_right_is_said_before_anything_is_measured(
    words, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "run_tasks", pytest.fail)
    try:
        status = main([*words.split(), "--quick"])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    assert re.search(message, capsys.readouterr().err)


def head_of_this_machine(device: str = "cpu", **changes: object) -> str:
    settings = Options(pairs=5, with_compile=False, device=device).settings()
    return json.dumps(timing.environment() | {"settings": settings} | changes) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"processor": "another", "isa": "avx2"}\n', "processor is 'another' in the one"),
        (head_of_this_machine(settings={"pairs": 31}), "settings is {'pairs': 31} in the one"),
        (head_of_this_machine(device="cuda"), "settings is {'device': 'cuda'"),
        ('{"name": "something else"}\n', "does not name the machine"),
        ("<html>\n", "is no results file"),
    ],
)
def test_another_file_is_not_continued(text, message, tmp_path, capsys):
    output = tmp_path / "other.jsonl"
    output.write_text(text)
    assert main(["compaction", "--quick", "--output", str(output)]) == 2
    assert message in capsys.readouterr().err
    assert output.read_text() == text


def test_a_run_that_was_killed_while_it_wrote_goes_on(tmp_path):
    """The measurement that was being written is done again, those before it are not."""
    words = ["compaction", "--quick"]
    output = tmp_path / "results.jsonl"
    run(tmp_path, *words, continues=False)
    whole = output.read_text()
    for torn in (whole[:-40], whole[:-1], head_of_this_machine()[:-20]):
        output.write_text(torn)
        _, rows = run(tmp_path, *words)
        keys = [(row["problem"], row["algorithm"]) for row in rows]
        assert len(keys) == len(set(keys)) == 6
    output.write_text(whole[:-40])
    run(tmp_path, *words, continues=False)
    kept = whole.splitlines()[:-2]
    assert output.read_text().splitlines()[: len(kept)] == kept


def test_a_measurement_that_fails_is_tried_again_and_the_others_run(tmp_path, capsys, monkeypatch):
    def fails(call: object) -> int:
        raise RuntimeError("too little memory")

    only = "c64-64-1x30x40-k1-dil1-float32-random0.25"
    with monkeypatch.context() as patched:
        patched.setattr(timing.CpuClock, "peak_bytes", lambda self, call: fails(call))
        chosen = ["conv", "--quick", "--filter", only, "--threads", "1", "--pairs", "5"]
        output = tmp_path / "results.jsonl"
        assert main([*chosen, "--output", str(output)]) == 1
    text = capsys.readouterr().err
    assert f"FAILED {only} forward: RuntimeError: too little memory" in text
    assert "1 of 1 failed" in text
    assert read(output)[1] == []
    assert main([*chosen, "--output", str(output)]) == 0
    assert {row["problem"] for row in read(output)[1]} == {only}


def test_a_run_that_is_stopped_keeps_what_it_has(tmp_path, capsys, monkeypatch):
    def stop(row: dict) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(compaction, "describe", stop)
    output = tmp_path / "results.jsonl"
    assert main(["compaction", "--quick", "--threads", "1", "--output", str(output)]) == 130
    assert f"{output} has what was done; the same command goes on" in capsys.readouterr().err
    assert len(read(output)[1]) == 2


def test_a_dry_run_of_the_gpu_benchmark(tmp_path):
    modes = ("graph", "forward")
    only = "c64-64-1x30x40-k3-dil1-bfloat16-random0.25"
    head, rows = run(
        tmp_path, "conv", "--device", "cuda", "--dry-run", "--filter", only, "--modes", *modes
    )
    assert {"device", "driver", "cuda", "torch", "commit"} <= head.keys()
    compared = {"dense", "auto", "im2col_gemm", "matmul"}
    for mode, wanted in (("graph", compared | {"gather_gemm"}), ("forward", compared)):
        assert wanted <= {row["algorithm"] for row in rows if row["pass"] == mode}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_needs_a_gpu(capsys):
    assert main(["conv", "--device", "cuda"]) == 2
    assert "no GPU to measure on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "problems"),
    [
        (
            "machine",
            {"peak-float32", "peak-bfloat16", "peak-memory", "peers", "overhead-c16-4x4"},
        ),
        ("compaction", {f"compaction-1x60x80-{density}" for density in (0.0, 0.25, 1.0)}),
        ("pool", {"pool-c64-20x30-float32-random", "pool-c64-20x30-float32-random-tied"}),
        ("breakdown", {"breakdown-c64-16-64-12x14-dil1-float32-blobs0.5"}),
        ("train-step", {"train-step-c16-24x24-0.5"}),
    ],
)
def test_other_quick_runs(name, problems, tmp_path):
    _, rows = run(tmp_path, name, "--quick", continues=False)
    assert {row["problem"] for row in rows} == problems


@pytest.mark.parametrize(
    ("name", "count"),
    [("bottleneck", 2), ("resnet50", 1), pytest.param("parser", 2, marks=pytest.mark.slow)],
)
def test_a_quick_run_of_gated_models(name, count, tmp_path, capsys):
    _, rows = run(tmp_path, name, "--quick")
    assert len(rows) == count
    for row in rows:
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert 0 < row["flops_ratio"] < 1 or row["density"] == 1
        assert isinstance(row["holds"], bool)
    assert "FLOPs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "problems"),
    [
        ("bottleneck", 2),
        pytest.param("resnet50", 1, marks=pytest.mark.slow),
        pytest.param("parser", 2, marks=pytest.mark.slow),
    ],
)
def test_gated_models_as_graphs(name, problems, tmp_path):
    """Without a GPU the calls themselves; dense in both layouts, a block's gate apart."""
    arguments = ("--device", "cuda", "--dry-run", "--no-compile")
    _, rows = run(tmp_path, name, *arguments, continues=False)
    assert [row.get("pass") for row in rows] == ["graph", None] * problems
    assert {row["dense"] for row in rows} <= {"nchw", "channels_last"}
    if name == "bottleneck":
        assert all(row["gate_ms"] > 0 and row["read_gb_per_s"] > 0 for row in rows)


@pytest.mark.slow
def test_the_scripts_are_the_command():
    script = ROOT / "benchmarks" / "bench_pool.py"
    result = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert result.returncode == 0
    assert "perfconv bench" in result.stdout


@pytest.mark.slow
def test_pytest_benchmark_writes_its_json(tmp_path):
    pytest.importorskip("pytest_benchmark")
    path = tmp_path / "speed.json"
    command = [sys.executable, "-m", "pytest", "-q", str(ROOT / "benchmarks"), "--benchmark-only"]
    command += [f"--benchmark-json={path}", "-k", "c64-64 and float32 and random0.25"]
    # Under pytest-xdist it would take itself for a worker, which measures nothing.
    alone = {key: value for key, value in os.environ.items() if "PYTEST_XDIST" not in key}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=alone)
    assert result.returncode == 0, result.stdout
    found = json.loads(path.read_text())["benchmarks"]
    assert {entry["extra_info"]["method"] for entry in found} >= {"dense", "auto", "matmul"}
    assert all(entry["extra_info"]["density"] == 0.25 for entry in found)


def test_the_five_lines_of_the_page_run_as_they_stand(capsys):
    text = (ROOT / "docs" / "benchmarking.md").read_text()
    code = re.search(r"## Five lines\n```python\n(.*?)```", text, re.DOTALL)[1]
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), BasicBlock(8, 8))
    exec(code, {"network": network, "image": torch.rand(1, 3, 12, 12)})
    printed = capsys.readouterr().out
    assert printed.count("Median: ") == 2
    assert "MAC" in printed


# ---- tuning --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.0, 0.04, 0.3, 0.72, 1.0])
def test_break_even_is_the_highest_density_that_was_faster(limit):
    asked = []

    def is_faster(density: float) -> bool:
        asked.append(density)
        return density <= limit

    found = tune.break_even(is_faster)
    assert found <= limit
    assert found == 0 if limit < tune.LOWEST else limit - found < 0.04
    assert len(asked) <= 2 + tune.STEPS


@pytest.mark.skipif(not TUNED, reason="no tuned kernel on this instruction set")
@pytest.mark.parametrize("name", tuning.shape_classes())
def test_the_layers_of_a_class_are_in_it(name):
    """explain names the class that a layer's density is read from."""
    torch.use_deterministic_algorithms(False)
    tuning.use_table({other: {"float32": {"forward": 0.5}} for other in tune.LAYERS}, "a test")
    try:
        for layer in tune.LAYERS[name]:
            case = ConvCase(layer)
            options = case.options
            reason = perfconv.explain(case.input, case.weight, case.mask, **options)[0][2]
            assert f"({name}), a test" in reason
    finally:
        tuning.use_shipped_table()


@pytest.mark.skipif(not TUNED, reason="no tuned kernel on this instruction set")
def test_tuning_is_kept_for_the_next_process(tmp_path, monkeypatch, capsys):
    torch.use_deterministic_algorithms(False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(tune, "measure", lambda problem, kind, pairs: 0.25)
    try:
        assert main(["--tune", "--quick", "--threads", "1"]) == 0
        path = tuning.cache_path()
        assert str(path) in capsys.readouterr().out
        tuning.use_shipped_table()
        tuning.read_cache(path)
        for channels, limit in ((32, "0.25"), (64, "0.5")):  # 0.5 is promised there
            image, weight = torch.zeros(1, channels, 8, 8), torch.zeros(channels, channels, 3, 3)
            mask = torch.ones(1, 1, 8, 8, dtype=torch.bool)
            mask[..., :3, :] = False
            name, _, reason = perfconv.explain(image, weight, mask, padding=1)[0]
            assert name == "dense"
            assert f"break-even density {limit} of" in reason
            assert "measured on this machine, 1 threads" in reason
    finally:
        tuning.use_shipped_table()


@pytest.mark.slow
@pytest.mark.skipif(not TUNED, reason="no tuned kernel on this instruction set")
@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_a_layer_is_measured(kind):
    assert 0 <= tune.measure(Problem(64, 64, 15, 20), kind, 5) <= 1


# ---- whole networks ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", table2.NETWORKS)
def test_a_row_of_table_2(kind):
    (row,) = table2.measure(kind, 0.5, (65, 81), Options(with_compile=False, pairs=5))
    assert row["active_macs"] < 0.75 * row["dense_macs"] or kind == "truncated"
    assert row["paper_percent"] == 67.69
    assert row["candidate_ms"] > 0


@pytest.mark.slow
def test_table_2_counts_from_the_reference():
    """Every gate open, 425x560, the authors' stride: spec 14's golden number."""
    model = table2.make_network("pag")
    counted = perfconv.flops.count(model.to("meta"), torch.empty(1, 3, *table2.SIZE, device="meta"))
    assert counted.dense_macs == table2.REFERENCE_MACS


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["pag_resnet50", "layer_skipping_resnet50", "recurrent_depth_resnet50"]
)
def test_a_network_is_measured(name):
    options = Options(with_compile=False, pairs=5)
    (row,) = networks.measure(name, networks.BUILDERS[name], (65, 81), 0.5, options)
    assert 0 < row["active_macs"] <= row["executed_macs"] <= row["dense_macs"]
    assert (row["active_macs"] < row["dense_macs"]) == (name in networks.GATED)


def test_every_builder_is_measured():
    made = {name for name in perfconv.models.__all__ if name.endswith(("resnet50", "resnet101"))}
    assert made - {"baseline_resnet50"} == set(networks.BUILDERS)


def test_a_network_takes_the_masks_of_one_density_after_another():
    model = perfconv.convert(torch.nn.Sequential(*[BasicBlock(8, 8) for _ in range(2)]).eval())
    image = torch.rand(1, 8, 10, 12).to(memory_format=torch.channels_last)
    pair = networks.Pair(model.requires_grad_(False), image)
    counted = []
    for density in (0.5, 0.9, 0.5):
        fast = pair.at(density)
        counted.append(perfconv.flops.count(fast, image).active_macs)
    assert fast is pair.at(0.9)  # fused, and compiled, once
    assert counted[0] == counted[2] < counted[1]
    with torch.no_grad():
        next(layer for layer in fast.modules() if isinstance(layer, torch.nn.Conv2d)).bias.add_(9)
    with pytest.raises(AssertionError, match="the network to be timed is off"):
        pair.at(0.5)


def test_another_network_is_not_timed():
    plain, other = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(3, 4, 1)
    with pytest.raises(AssertionError, match="the network to be timed is off"):
        networks.check_same(plain, other, networks.make_image((8, 8)))
