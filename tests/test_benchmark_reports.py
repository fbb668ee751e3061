"""What is made of results files: which cells changed, and the page. No timing happens here."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from benchmark_scripts import load_scripts

# Two runs of one build on one machine, which had other work: most cells are disturbed.
RECORDED = Path(__file__).parent / "recorded"


@pytest.fixture
def scripts():
    return load_scripts("report", "regression", "page")


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


def test_a_second_run_of_the_same_build_is_no_regression(scripts, tmp_path, capsys):
    paths = [write(tmp_path / f"{n}.jsonl", recorded(n)) for n in (1, 2)]
    assert scripts["regression"].main([str(path) for path in paths]) == 0
    cells = len(recorded(1)) - 1
    assert f"{cells} cells: 0 slower" in capsys.readouterr().out


def test_a_slow_down_of_a_fifth_is_flagged(scripts, tmp_path, capsys):
    head, *rows = recorded(2)
    chosen = rows[9]  # undisturbed, with quartiles closer than the slow-down
    rows[9] = slowed(chosen, 1.2)
    old = write(tmp_path / "old.jsonl", recorded(1))
    new = write(tmp_path / "new.jsonl", [head, *rows])
    assert scripts["regression"].main([str(old), str(new)]) == 1
    text = capsys.readouterr().out
    assert f"slower: {chosen['problem']} {chosen['pass']}" in text
    assert "1 slower, 0 faster" in text
    assert scripts["regression"].main([str(new), str(old)]) == 0
    assert "0 slower, 1 faster" in capsys.readouterr().out


def test_a_disturbed_cell_says_nothing(scripts):
    row = recorded(1)[1]
    disturbed = {**slowed(row, 2), "baseline_ms": row["baseline_ms"] * 1.5}
    assert scripts["regression"].verdict(row, disturbed) == "disturbed"


def test_other_machines_are_not_compared(scripts, tmp_path, capsys):
    head, *rows = recorded(1)
    old = write(tmp_path / "old.jsonl", [head, *rows])
    new = write(tmp_path / "new.jsonl", [{**head, "threads": 64}, *rows])
    assert scripts["regression"].main([str(old), str(new)]) == 2
    assert "threads is 2 in the one and 64 in the other" in capsys.readouterr().err
    new = write(tmp_path / "new.jsonl", [head])
    assert scripts["regression"].main([str(old), str(new)]) == 2
    assert "no cell in common" in capsys.readouterr().err


def point(scripts, density: float, time: float):
    return scripts["page"].Point(density, time, time, time, 1.0)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([(0.25, 0.3), (0.5, 0.6), (1.0, 0.9)], None),
        ([(0.25, 0.3), (0.5, 0.8), (1.0, 1.2)], 0.75),
        ([(0.25, 1.1), (0.5, 1.2)], 0.25),
    ],
)
def test_break_even(scripts, times, expected):
    found = scripts["page"].break_even([point(scripts, *pair) for pair in times])
    assert found == (expected if expected is None else pytest.approx(expected))


class Tags(HTMLParser):
    """Counts tags, and finds what a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_shows_every_shape_and_loads_nothing(scripts, tmp_path, capsys):
    old = write(tmp_path / "old.jsonl", recorded(1))
    head, *rows = recorded(2)
    new = write(tmp_path / "new.jsonl", [head, slowed(rows[0], 1.5), *rows[1:]])
    page = tmp_path / "page.html"
    arguments = [str(new), "--before", str(old), "--output", str(page)]
    assert scripts["page"].main(arguments) == 0
    assert str(page) in capsys.readouterr().out
    text = page.read_text()
    tags = Tags()
    tags.feed(text)
    shapes = {(row["pass"], row["dtype"], scripts["report"].shape_name(row)) for row in rows}
    assert tags.counts["svg"] == len(shapes)
    assert tags.loaded == []
    assert head["processor"] in text
    assert 'class="slower">slower<' in text


def test_an_algorithm_that_was_not_measured(scripts, tmp_path):
    path = write(tmp_path / "run.jsonl", recorded(1))
    with pytest.raises(SystemExit, match="no measurement of algorithm 'direct'; it has: auto"):
        scripts["page"].main([str(path), "--algorithm", "direct"])
