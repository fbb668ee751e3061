"""What is made of results files: which cells changed, and the page. No timing happens here."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from perfconv._bench import charts, regression, report, summary
from perfconv._bench import page as page_module
from perfconv._bench.problems import Problem

# Two runs of one build on one machine, which had other work: most cells are disturbed.
ROOT = Path(__file__).resolve().parents[1]
RECORDED = ROOT / "tests" / "recorded"


def recorded(number: int) -> list[dict]:
    lines = (RECORDED / f"quick-run-{number}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def slowed(row: dict, factor: float) -> dict:
    """The same measurement, had every perforated call taken ``factor`` times as long."""
    changed = {name: row[name] / factor for name in ("speed_up", "speed_up_low", "speed_up_high")}
    return {**row, **changed, "candidate_ms": row["candidate_ms"] * factor}


def test_a_second_run_of_the_same_build_is_no_regression(tmp_path, capsys):
    paths = [write(tmp_path / f"{n}.jsonl", recorded(n)) for n in (1, 2)]
    assert regression.main([str(path) for path in paths]) == 0
    cells = len(recorded(1)) - 1
    assert f"{cells} cells: 0 slower" in capsys.readouterr().out


def test_quiet_runs_of_one_build_and_one_that_waited_a_fifth_longer(capsys):
    """Three live runs of one machine: twice the same, once each call followed by a wait."""
    first, second, slowed_run = (
        str(RECORDED / f"quiet-run-{name}.jsonl") for name in ("1", "2", "slowed")
    )
    for pair in ((first, second), (second, first)):
        assert regression.main(list(pair)) == 0
        assert "32 cells: 0 slower, 0 faster" in capsys.readouterr().out
    for old in (first, second):
        assert regression.main([old, slowed_run]) == 1
        found = re.search(r"16 cells: ([0-9]+) slower, 0 faster", capsys.readouterr().out)
        assert int(found[1]) >= 10  # the others are within their quartiles


def test_runs_of_one_build_and_of_one_that_multiplies_a_quarter_more(capsys):
    """Three live runs, one thread: a build twice, then one that repeats every fourth tile."""
    first, second, slowed_build = (
        str(RECORDED / f"build-run-{name}.jsonl") for name in ("1", "2", "slowed")
    )
    for pair in ((first, second), (second, first)):
        assert regression.main(list(pair)) == 0
        assert "16 cells: 0 slower, 0 faster, 0 disturbed" in capsys.readouterr().out
    for old, least in ((first, 10), (second, 11)):
        assert regression.main([old, slowed_build]) == 1
        text = capsys.readouterr().out
        assert f"16 cells: {least} slower, 0 faster, 0 disturbed" in text
        assert "random1.0" not in text  # dense is chosen there, which is the same in both


def test_a_slow_down_of_a_fifth_is_flagged(tmp_path, capsys):
    head, *rows = recorded(2)
    chosen = rows[9]  # undisturbed, with quartiles closer than the slow-down
    rows[9] = slowed(chosen, 1.2)
    old = write(tmp_path / "old.jsonl", recorded(1))
    new = write(tmp_path / "new.jsonl", [head, *rows])
    assert regression.main([str(old), str(new)]) == 1
    text = capsys.readouterr().out
    assert f"slower: {chosen['problem']} {chosen['pass']}" in text
    assert "1 slower, 0 faster" in text
    assert regression.main([str(new), str(old)]) == 0
    assert "0 slower, 1 faster" in capsys.readouterr().out


def test_a_disturbed_cell_says_nothing():
    row = recorded(1)[1]
    disturbed = {**slowed(row, 2), "baseline_ms": row["baseline_ms"] * 1.5}
    assert regression.verdict(row, disturbed) == "disturbed"


def test_other_machines_are_not_compared(tmp_path, capsys):
    head, *rows = recorded(1)
    old = write(tmp_path / "old.jsonl", [head, *rows])
    new = write(tmp_path / "new.jsonl", [{**head, "threads": 64}, *rows])
    assert regression.main([str(old), str(new)]) == 2
    assert "threads is 2 in the one and 64 in the other" in capsys.readouterr().err
    new = write(tmp_path / "new.jsonl", [{**head, "device": "a GPU"}, *rows])
    assert regression.main([str(old), str(new)]) == 2
    assert "device is None in the one and 'a GPU' in the other" in capsys.readouterr().err
    new = write(tmp_path / "new.jsonl", [head])
    assert regression.main([str(old), str(new)]) == 2
    assert "no cell in common" in capsys.readouterr().err


def point(density: float, time: float) -> charts.Point:
    return charts.Point(density, time, time, time, 1.0)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([(0.25, 0.3), (0.5, 0.6), (1.0, 0.9)], None),
        ([(0.25, 0.3), (0.5, 0.8), (1.0, 1.2)], 0.75),
        ([(0.25, 1.1), (0.5, 1.2)], 0.25),
    ],
)
def test_break_even(times, expected):
    found = charts.break_even([point(*pair) for pair in times])
    assert found == (expected if expected is None else pytest.approx(expected))


def test_the_roof_is_the_smaller_of_both_peaks():
    row = {"algorithm": "auto", "dtype": "float32", "pass": "forward", "kernel": 3, "groups": 1}
    row |= {"channels": 8, "out_channels": 8, "batch": 1, "height": 10, "width": 10, "dilation": 1}
    row |= {"density": 1.0, "bytes": 2 * 8 * 8 * 9 * 100 // 4, "candidate_ms": 1.152e-3}
    machine = [
        {"kind": "gemm", "dtype": "float32", "gflops": 200.0},
        {"kind": "read", "gb_per_s": 25.0},
    ]
    (roof,) = charts.roofs(machine, [row], "auto")
    # 4 FLOP a byte at 25 GB/s: at most 100 GFLOP/s, which the call has.
    assert roof.best_share == pytest.approx(1.0)
    assert roof.points[0][1] > charts.TOP
    assert charts.roofs(machine[:1], [row], "auto") == []


class Tags(HTMLParser):
    """Counts tags, and finds what a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_shows_every_shape_and_loads_nothing(tmp_path, capsys):
    old = write(tmp_path / "old.jsonl", recorded(1))
    head, *rows = recorded(2)
    new = write(tmp_path / "new.jsonl", [head, slowed(rows[0], 1.5), *rows[1:]])
    page = tmp_path / "page.html"
    arguments = [str(new), "--before", str(old), "--output", str(page)]
    assert page_module.main(arguments) == 0
    assert str(page) in capsys.readouterr().out
    text = page.read_text()
    tags = Tags()
    tags.feed(text)
    shapes = {(row["pass"], row["dtype"], report.shape_name(row)) for row in rows}
    assert tags.counts["figure"] == len(shapes)
    assert text.count('aria-label="executed FLOPs') == text.count('aria-label="time') == len(shapes)
    assert [place for place in tags.loaded if not place.startswith("#")] == []
    assert {place[1:] for place in tags.loaded} <= set(re.findall(r'id="([\w-]+)"', text))
    assert head["processor"] in text
    assert 'class="slower">slower<' in text


def layer(**changes: object) -> dict:
    """A row of a convolution twice as fast as dense."""
    fields = Problem(256, 256, 60, 80).record()
    times = {"baseline_ms": 2.0, "candidate_ms": 1.0, "speed_up": 2.0}
    times |= {"speed_up_low": 1.9, "speed_up_high": 2.1, "efficiency": 0.5, "peak_bytes": 2**20}
    row = {"benchmark": "conv", "pass": "forward", "algorithm": "auto", "dense_layout": "nchw"}
    row |= {"threads": 2, "commit": "abc", **fields, **times, **changes}
    name = Problem(**{key: row[key] for key in fields}).name
    return {**row, "problem": name}


def test_the_answer_is_made_from_the_rows():
    peer = {"algorithm": "im2col_gemm", "is_same_function": True, "candidate_ms": 3.0}
    voxels = {"algorithm": "spconv", "is_same_function": False, "candidate_ms": 0.5}
    voxels |= {"executed_share": 0.1, "own_threads": 1}
    slower = {"speed_up": 0.8, "speed_up_low": 0.7, "speed_up_high": 0.9}
    rows = [
        layer(),
        layer(**peer),
        layer(**voxels),
        layer(density=1.0, dtype="bfloat16", baseline_ms=5.0),
        layer(**voxels | {"density": 1.0, "dtype": "bfloat16", "candidate_ms": 4.0}),
        layer(channels=512, out_channels=512, speed_up=3.0),
        layer(density=0.5, speed_up=1.5),
        layer(density=0.05, speed_up=9.0),  # not in the table, and no line of it is 0.1
        layer(dtype="bfloat16", baseline_ms=5.0),
        layer(channels=32, out_channels=32, groups=32, **slower),
        layer(channels=32, out_channels=32, groups=32, density=1.0, **slower),
        layer(threads=1, speed_up=99.0),
        {**layer(), "benchmark": "bottleneck", "density": 0.3, "flops_ratio": 0.4},
        {**layer(), "benchmark": "networks", "flops_ratio": 0.5, **slower, "problem": "a net"},
    ]
    for row in rows[-2:]:
        del row["kernel"], row["dense_layout"]
    found = summary.answer(rows, "auto")
    assert found.densities == [0.25, 0.5]
    assert found.speed_ups == [("forward float32, 2 shapes", ["2.00-3.00x", "1.50x"])]
    text = "\n".join(found.lines)
    assert "Dense bfloat16 takes 2.5 times as long" in text
    assert "masked im2col + GEMM, 1 of 1 problems) takes 3.00 times as long" in text
    assert "spconv (another function), in one thread: 0.50 times as long as perfconv" in text
    assert "median 0.50 on 0.40 of the MACs that perfconv does (up to half the pixels)" in text
    assert "At density 1, where both compute the same: 4.00 times as long as perfconv" in text
    assert (
        "Gated blocks, gates at densities below 1 (1 rows): the share of the dense time is +10"
        in text
    )
    assert (
        "1 of 6 convolutions (forward float32: 32 to 32, 60x80, 3x3 dilation 1, 32 groups)" in text
    )
    assert "Networks with fewer FLOPs slower than dense, beyond the quartiles: a net." in text
    assert summary.answer([], "auto") == summary.Answer([], [], [])


def test_the_answer_tells_dtypes_of_gated_rows_apart():
    """Dense bfloat16 may be slow, and time then less than its FLOPs."""
    gated = {**layer(), "benchmark": "parser", "flops_ratio": 0.4}
    rows = [gated, {**gated, "dtype": "bfloat16", "speed_up": 4.0, "density": 0.5}]
    first, second = summary.of_gated(rows, "Whole networks")
    assert first.startswith("Whole networks in float32, gates at densities below 1 (1 rows)")
    assert "is +10 points" in first
    assert second.startswith("Whole networks in bfloat16, ")
    assert "is -15 points" in second


def test_one_thing_changed_in_every_line():
    rows = [
        layer(),
        layer(density=0.5),
        layer(batch=2),
        layer(height=30, width=40),
        layer(dilation=2, batch=2),  # two things
        layer(kernel=1),
        layer(threads=1),
        layer(algorithm="dense"),
    ]
    found = page_module.factors(rows, "auto")
    assert [(name, value) for name, value, _ in found] == [
        ("density", "0.25"),
        ("density", "0.50"),
        ("map", "30x40"),
        ("map", "60x80"),
        ("batch", "1"),
        ("batch", "2"),
        ("threads", "1"),
        ("threads", "2"),
    ]


@pytest.mark.parametrize("name", ["page.html", "page.md"])
def test_rows_of_several_commits_are_plain_to_see(name, tmp_path):
    head = recorded(1)[0]
    several = [layer(), layer(density=0.5, commit="def")]
    page_module.write(write(tmp_path / "run.jsonl", [head, *several]), tmp_path / name)
    text = (tmp_path / name).read_text()
    assert "These rows come from 2 commits" in text
    assert "abc (conv; 1 rows); def (conv; 1 rows)." in text
    page_module.write(write(tmp_path / "run.jsonl", [head, several[0]]), tmp_path / name)
    assert "These rows come from" not in (tmp_path / name).read_text()


def test_a_file_of_two_machines_is_no_results_file(tmp_path, capsys):
    head, *rows = recorded(1)
    path = write(tmp_path / "run.jsonl", [head, *rows, {**head, "isa": "avx2"}, *rows])
    assert page_module.main([str(path), "--output", str(tmp_path / "page.html")]) == 2
    assert "has runs of two machines: isa is 'avx512' and 'avx2'" in capsys.readouterr().err


def test_the_methods_with_what_they_take():
    machine = [
        {"algorithm": "spconv", "kind": "peer", "what": "voxels", "is_same_function": False}
        | {"why_not": None, "version": "2.3.8"},
        {"algorithm": "spconv_triton", "kind": "peer", "what": "more", "is_same_function": False}
        | {"why_not": "not installed"},
        {"algorithm": "auto", "overhead_us": 12.3},
    ]
    rows = [layer(), layer(algorithm="dense", left_out={"spconv": "ValueError: no"})]
    rows.append(layer(threads=1, candidate_ms=9.0))
    del rows[1]["peak_bytes"]  # of an older file
    auto, dense, spconv, triton = page_module.methods(machine, rows, "auto")
    assert (auto["ms"], auto["speed_up"], auto["mebibytes"]) == ("1.00", "2.00x", "1.0")
    assert auto["overhead_us"] == "12.3"
    assert (dense["ms"], dense["mebibytes"]) == ("1.00", "")
    assert spconv["same"] == "no"
    assert spconv["state"] == "yes; 2.3.8; left out of 1 problems: ValueError: no"
    assert triton["state"] == "no: not installed"


def test_an_algorithm_that_was_not_measured(tmp_path, capsys):
    path = write(tmp_path / "run.jsonl", recorded(1))
    assert page_module.main([str(path), "--algorithm", "direct"]) == 2
    assert "no measurement of algorithm 'direct'; it has: auto" in capsys.readouterr().err
    assert report.main([str(path), "--algorithm", "direct"]) == 2
    assert "no convolution of algorithm 'direct'" in capsys.readouterr().err


@pytest.mark.parametrize("text", [None, "", "[1]\n", "no json\n", '{"a": 1}\n'])
def test_what_is_no_results_file(text, tmp_path, capsys):
    path, good = tmp_path / "other", str(write(tmp_path / "run.jsonl", recorded(1)))
    if text is not None:
        path.write_text(text)
    for main, words in (
        (regression.main, [good, str(path)]),
        (page_module.main, [str(path), "--output", str(tmp_path / "page.html")]),
        (page_module.main, [good, "--before", str(path), "--output", str(tmp_path / "page.html")]),
        (report.main, [str(path)]),
    ):
        assert main(words) == 2
        assert f"{path} is no results file" in capsys.readouterr().err


def test_a_document_without_marks_is_left_alone(tmp_path, capsys):
    path, document = write(tmp_path / "run.jsonl", recorded(1)), tmp_path / "page.md"
    document.write_text("words\n")
    assert report.main([str(path), "--update", str(document)]) == 2
    assert "has no lines" in capsys.readouterr().err
    assert document.read_text() == "words\n"


def test_the_document_is_replaced_between_its_marks(tmp_path):
    path = write(tmp_path / "run.jsonl", recorded(1))
    document = tmp_path / "page.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert report.main([str(path), "--update", str(document)]) == 0
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "64 to 64, 30x40" in text
    assert "| 0.5 |" in text


def test_the_figures_of_the_readme_are_those_of_their_file(tmp_path):
    """Written by report.py, with the shapes that stand in its tables, and never typed."""
    readme = ROOT / "README.md"
    table = readme.read_text().split(report.BEGIN)[1].split(report.END)[0]
    source = ROOT / re.search(r"`(benchmarks/results/[^`]+[.]jsonl)`", table)[1]
    cases = re.findall(r"^[|] (\w+), (\w+) [|] ([0-9]+ to [^|]+?) [|]", table, re.MULTILINE)
    passes, dtypes, shapes = (list(dict.fromkeys(column)) for column in zip(*cases, strict=True))
    again = tmp_path / "README.md"
    again.write_text(readme.read_text())
    arguments = ["--shapes", *shapes, "--pass", *passes, "--dtype", *dtypes]
    assert report.main([str(source), *arguments, "--update", str(again)]) == 0
    assert again.read_text() == readme.read_text()


def test_a_whole_name_of_a_shape_is_no_part_of_another():
    names = {"64 to 64, 8x8, 3x3 dilation 1", "64 to 64, 8x8, 3x3 dilation 1, 64 groups"}
    assert report.chosen_shapes(names, ["64 to 64, 8x8, 3x3 dilation 1"]) == {min(names)}
    assert report.chosen_shapes(names, ["8x8", "groups"]) == names
    assert report.chosen_shapes(names, ["512"]) == set()


COMMITTED = [
    path
    for path in (ROOT / "benchmarks" / "results").iterdir()
    if path.suffix in (".md", ".html") and path.with_suffix(".jsonl").exists()
]


@pytest.mark.parametrize("committed", COMMITTED, ids=lambda path: path.name)
def test_a_committed_report_is_that_of_its_file(committed, tmp_path):
    """After a change of the page: python benchmarks/page.py FILE.jsonl --output FILE.html."""
    again = tmp_path / committed.name
    page_module.write(committed.with_suffix(".jsonl"), again)
    assert again.read_text() == committed.read_text()


def test_batches_are_shapes_of_their_own():
    row = next(row for row in recorded(1)[1:] if "kernel" in row)
    names = {report.shape_name({**row, "batch": batch}) for batch in (1, 4)}
    assert len(names) == 2


def test_markdown_has_the_same_numbers(tmp_path):
    path = write(tmp_path / "run.jsonl", recorded(1))
    target = tmp_path / "report.md"
    assert page_module.main([str(path), "--output", str(target)]) == 0
    text = target.read_text()
    row = next(row for row in recorded(1)[1:] if row["algorithm"] == "auto")
    assert f"{row['speed_up']:.2f}x" in text
    assert "&" not in text


def test_runs_with_several_numbers_of_threads_stay_apart(tmp_path):
    _head, *rows = recorded(1)
    several = [{**row, "threads": threads} for threads in (1, 2) for row in rows]
    found = charts.sections(several, "auto")
    assert [section.threads for section in found[:2]] == [None, None]  # those of the first row
    assert {section.threads for section in found} == {None, 2}
    assert len(found) == 2 * len(charts.sections(rows, "auto"))
    assert sum("2 threads" in section.title for section in found) * 2 == len(found)
    assert len(regression.changes(several, several)) == 2 * len(rows)
