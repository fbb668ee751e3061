"""tools/experiments.py and its report: rows are kept, bases shared, intervals right."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import recipe_table
import train_runs

pytest.importorskip("scipy", reason="SciPy is not installed")
pytest.importorskip("matplotlib", reason="matplotlib is not installed")

import experiments
import experiments_latency
import experiments_report

from perfconv.train.recipes import RECIPES
from perfconv.train.shipped import RECIPE as SHIPPED_RECIPE


def small(name: str, network: str, **arguments: object) -> dict:
    base = {"name": "base", "model": train_runs.network("baseline_resnet50"), "steps": 2}
    later = {"name": name, "model": train_runs.network(network, train_runs.FROZEN, **arguments)}
    recipe = train_runs.recipe(base, {**later, "steps": 2})
    return {f"scenes-{name}": replace(recipe, name=f"scenes-{name}")}


@pytest.fixture
def two_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = small("segmentation-baseline", "baseline_resnet50")
    recipes |= small("segmentation-pag", "multi_pool_resnet50", weighting="pag")
    monkeypatch.setattr(experiments, "RECIPES", recipes)
    monkeypatch.setitem(experiments.GROUPS, "d", [name.removeprefix("scenes-") for name in recipes])


def test_every_name_is_a_recipe() -> None:
    names = {name for group in experiments.GROUPS.values() for name in group}
    of_experiments = {name for name in RECIPES if name.startswith("scenes-")} - {SHIPPED_RECIPE}
    assert {f"scenes-{name}" for name in names} == of_experiments


def test_rows_are_kept_and_finished_ones_skipped(
    two_recipes: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, folder = tmp_path / "rows.jsonl", tmp_path / "runs"
    where = ["--rows", str(rows), "--folder", str(folder), "--groups", "d"]
    assert experiments.main([*where, "--seeds", "1"]) == 0
    first = rows.read_text()
    assert experiments.main([*where, "--seeds", "2"]) == 0
    assert rows.read_text().startswith(first)
    found = experiments.read_rows(rows)
    assert [(row["recipe"], row["seed"]) for row in found] == [
        (f"segmentation-{kind}", seed) for seed in (1, 2) for kind in ("baseline", "pag")
    ]
    before = rows.read_bytes()
    assert experiments.main([*where, "--seeds", "2"]) == 0
    assert rows.read_bytes() == before
    capsys.readouterr()
    assert experiments.main([*where, "--seeds", "3", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == ["done"] * 4 + ["open"] * 2

    models = ["--models", str(folder / "models"), "--rounds", "5"]
    assert experiments_latency.main([*models, "--output", str(tmp_path / "latency.json")]) == 0
    assert experiments_report.main(["--rows", str(rows)]) == 0
    report = (tmp_path / "report.md").read_text()
    assert "4 finished runs" in report
    assert "| segmentation-pag | 2 |" in report
    assert "Not run yet." in report
    assert (tmp_path / "group-d.svg").exists()
    assert {
        table["task"] for table in json.loads((tmp_path / "latency.json").read_text())["tables"]
    } == {"segmentation"}


def test_a_shared_base_changes_nothing(two_recipes: None, tmp_path: Path) -> None:
    shared = experiments.run("segmentation-pag", 1, tmp_path / "runs")
    recipe = experiments.seeded("segmentation-pag", 1)
    alone = train_runs.run(recipe, tmp_path / "alone")
    assert shared["results"] == {k: v for k, v in alone.results.items() if k != "images"}
    assert sorted(path.name[:4] for path in (tmp_path / "runs").iterdir()) == ["base", "segm"]


def test_a_changed_recipe_is_run_again(two_recipes: None) -> None:
    row = {"digest": experiments.digest(experiments.seeded("segmentation-pag", 1))}
    assert experiments.finished([row], "segmentation-pag", 1) is row
    assert experiments.finished([row], "segmentation-pag", 2) is None
    assert experiments.finished([{"digest": "other"}], "segmentation-pag", 1) is None


def test_intervals() -> None:
    ours, theirs = {1: 3.0, 2: 5.0, 3: 4.0, 9: 100.0}, {1: 2.0, 2: 3.0, 3: 1.0}
    found = experiments_report.paired(ours, theirs)  # differences 1, 2, 3
    assert found.seeds == 3
    assert found.mean == 2.0
    half = 4.302653 / math.sqrt(3)  # Student's t, two degrees of freedom
    assert found.low == pytest.approx(2 - half, abs=1e-6)
    assert found.high == pytest.approx(2 + half, abs=1e-6)
    assert found.verdict == "undecided"
    shifted = {seed: value + 3 for seed, value in ours.items()}
    assert experiments_report.paired(shifted, theirs).verdict == "better"
    assert experiments_report.paired(theirs, shifted).verdict == "worse"
    assert experiments_report.paired({1: 1.0}, theirs).verdict == "too few seeds"
    assert str(experiments_report.paired({}, theirs)) == "-"


def test_rivals_at_equal_cost() -> None:
    """PAG's curve is interpolated by seed; what PAG never costs is counted, not compared."""

    def row(name: str, seed: int, macs: float, score: float) -> dict:
        results = {"segmentation": {"mean_iou": score / 100}, "macs": {"executed": macs}}
        digest = experiments.digest(experiments.seeded(name, seed))
        return {"recipe": name, "seed": seed, "digest": digest, "results": results}

    made = []
    for seed in (1, 2, 3):
        made += [row("segmentation-pag-0.5", seed, 40, 20), row("segmentation-pag", seed, 50, 30)]
        made += [row("segmentation-truncated-0.5", seed, 39 if seed == 3 else 44, 26 + seed)]
    rows = experiments_report.Rows(made)
    found, below = experiments_report.at_equal_cost("segmentation", "truncated", 0.5, rows)
    assert (found.seeds, below) == (2, 1)
    assert found.mean == pytest.approx(3.5)  # 27 and 28 against 24
    table = experiments_report.equal_cost_table("segmentation", rows)
    assert table[-1].startswith("| segmentation-truncated-0.5 | 0.0 | 2 | +3.50 (")
    assert not experiments_report.equal_cost_table("boundary", rows)


def test_scores_point_upwards() -> None:
    assert experiments_report.score({"results": {"normals": {"mean_deg": 20.0}}}) == -20
    assert experiments_report.score({"results": {"log_depth": {"delta": [0.5, 0.8, 1]}}}) == 50
    assert experiments_report.score({"results": {"boundary": {"ods": 0.25}}}) == 25


def test_the_committed_report_is_that_of_its_rows(tmp_path: Path) -> None:
    if not experiments.ROWS.exists():
        pytest.skip("no rows in this tree")
    rows = experiments_report.Rows(experiments.read_rows())
    latency = experiments.ROWS.with_name(experiments_report.LATENCY)
    text = experiments_report.report(rows, tmp_path, latency)
    assert (experiments.ROWS.parent / "report.md").read_text() == text
    for row in experiments.read_rows():
        json.dumps(row, allow_nan=False)


def test_the_table_of_recipes_is_up_to_date() -> None:
    if not recipe_table.PAGE.exists():
        pytest.skip("no docs beside these tests")
    assert recipe_table.main(["--check"]) == 0
