"""Pictures of tasks and loops: panels, colours, legend, colour bars, refusals, files."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

from matplotlib.figure import Figure

from perfconv import force_gates, viz
from perfconv.nn import PixelGate
from perfconv.viz import Classes, LoopPictures
from perfconv.viz.tasks import coloured_labels, coloured_normals

SIZE = (6, 8)
CLASSES = Classes(("wall", "floor", "lamp"), torch.eye(3))


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def maps(task: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if task == "segmentation":
        return torch.randint(0, 3, SIZE, generator=generator)
    if task == "normals":
        return F.normalize(torch.randn(3, *SIZE, generator=generator), dim=0)
    return torch.rand(1, *SIZE, generator=generator) + (1.0 if task == "log_depth" else 0.0)


def decisions() -> viz.Decisions:
    gate = PixelGate(3).eval()
    force_gates(gate, 1.0)
    return viz.decisions(gate, torch.rand(1, 3, *SIZE))


@pytest.mark.parametrize("task", ["segmentation", "log_depth", "normals", "boundary"])
def test_panels(task: str, tmp_path: Path) -> None:
    """Image, prediction, truth, ponder map; the key of the colours; a file."""
    figure = viz.task_figure(
        task, maps(task), image=torch.rand(3, *SIZE), truth=maps(task).flip(-1), classes=CLASSES,
        found=decisions(), title="a sample",
    )  # fmt: skip
    found = titles(figure)
    assert found[0] == "image"
    assert [title.rpartition(": ")[2] for title in found[1:3]] == ["prediction", "ground truth"]
    assert found[-1] == "ponder map  (mean 1.0 of 1)"
    assert ("key: a ball" in found) == (task == "normals")
    bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert len(bars) == 1 + (task in ("log_depth", "boundary"))
    viz.save(figure, tmp_path / "picture.png")
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_prediction_alone() -> None:
    assert titles(viz.task_figure("boundary", maps("boundary"))) == ["boundaries: prediction"]


def test_colours_of_labels() -> None:
    labels = torch.tensor([[0, 2], [255, -1]])
    red, blue, black = [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]
    found = coloured_labels(labels, CLASSES).permute(1, 2, 0).tolist()
    assert found == [[red, blue], [black, black]]


def test_legend_names_what_is_there_largest_first() -> None:
    labels = torch.tensor([[2, 2, 2, 0]])
    assert legend(viz.task_figure("segmentation", labels, classes=CLASSES)) == ["lamp", "wall"]
    unknown = torch.tensor([[2, 2, 255, 255]])
    figure = viz.task_figure("segmentation", labels, truth=unknown, classes=CLASSES)
    assert legend(figure) == ["lamp", "wall", "unknown"]


def test_a_long_legend_is_cut() -> None:
    classes = Classes([f"class {number}" for number in range(30)], torch.rand(30, 3))
    labels = torch.arange(30).reshape(5, 6)
    names = legend(viz.task_figure("segmentation", labels, classes=classes))
    assert names[:2] == ["class 0", "class 1"]
    assert names[-1] == "and 12 smaller ones"


def test_colours_of_depth_are_the_truths() -> None:
    """Near is warm; both panels share limits, those of the truth; what is unknown is black."""
    truth = torch.linspace(1, 10, 48).reshape(1, *SIZE)
    prediction = 3 * truth
    prediction[0, 0, 0], prediction[0, 0, 1] = 0, torch.nan
    figure = viz.task_figure("log_depth", prediction, truth=truth)
    first, second = (axes.get_images()[0] for axes in figure.axes[:2])
    assert first.norm.vmin == second.norm.vmin == pytest.approx(1, rel=0.05)
    assert first.norm.vmax == second.norm.vmax == pytest.approx(10, rel=0.05)
    colours = first.cmap(first.norm(first.get_array()))
    assert colours[0, :2, :3].tolist() == [[0, 0, 0]] * 2
    near, far = (second.cmap(second.norm(value))[:3] for value in (1.0, 10.0))
    assert near[0] > near[2]
    assert far[2] > far[0]


@pytest.mark.parametrize("depth_m", [torch.zeros(1, *SIZE), torch.full((1, *SIZE), 2.0)])
def test_depth_without_a_range(depth_m: Tensor, tmp_path: Path) -> None:
    viz.save(viz.task_figure("log_depth", depth_m), tmp_path / "depth.png")


def test_colours_of_normals() -> None:
    normals = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]).T[:, None]
    found = coloured_normals(normals)[:, 0].T.tolist()
    assert found == [[0.5, 0.5, 1.0], [0.5, 1.0, 0.5], [0.0, 0.0, 0.0]]


def test_refusals() -> None:
    depth = torch.rand(1, *SIZE)
    with pytest.raises(ValueError, match="task must be one of 'segmentation', .* got 'edges'"):
        viz.task_figure("edges", depth)
    with pytest.raises(ValueError, match=r"prediction of normals must be \(3, H, W\)"):
        viz.task_figure("normals", depth)
    with pytest.raises(ValueError, match=r"truth of log_depth must be .* got \(1, 3, 8\)"):
        viz.task_figure("log_depth", depth, truth=depth[:, :3])
    with pytest.raises(ValueError, match="segmentation must have classes"):
        viz.task_figure("segmentation", depth[0].long())
    with pytest.raises(ValueError, match="must hold at least one stage"):
        viz.loop_figure([], image=torch.rand(3, *SIZE), dilations=(1, 2), classes=CLASSES)


def test_a_failed_file_leaves_nothing(tmp_path: Path) -> None:
    class Broken:
        def savefig(self, path: Path, **options: object) -> None:
            path.write_bytes(b"half")
            raise OSError("the disk is full")

    target = tmp_path / "picture.png"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="the disk is full"):
        viz.save(Broken(), target)
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]
    assert target.read_bytes() == b"old"


# ---- loops ---------------------------------------------------------------------------------------


def test_rows_of_loops(tmp_path: Path) -> None:
    """Truth, feed-forward and loops; what is not known stays empty; one range of depth."""
    choice = torch.tensor([[0, 1], [-1, 1]])
    depth, labels = maps("log_depth"), maps("segmentation")
    stages = [
        LoopPictures("ground truth", None, depth, labels),
        LoopPictures("feed-forward", choice, None, labels),
        LoopPictures("loop 1", choice, 2 * depth, labels),
    ]
    figure = viz.loop_figure(
        stages, image=torch.rand(3, *SIZE), dilations=(1, 4), classes=CLASSES, title="a sample"
    )
    assert titles(figure) == [
        "image", "depth: ground truth", "classes: ground truth",
        "dilation: feed-forward", "classes: feed-forward",
        "dilation: loop 1", "depth: loop 1", "classes: loop 1",
    ]  # fmt: skip
    drawn = [a.get_images()[0] for a in figure.axes if a.get_title().startswith("depth")]
    assert drawn[0].norm is drawn[1].norm
    bar = next(axes for axes in figure.axes if axes.get_label() == "<colorbar>")
    assert [text.get_text() for text in bar.get_yticklabels()] == ["1", "4"]
    viz.save(figure, tmp_path / "loops.png")
