"""Ponder maps against masks counted by hand; figures: panels, colours, colour bars, legend."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import perfconv
from perfconv import force_gates, viz
from perfconv.nn import CellGate, GatedConv2d, MultiDilationPool, SharedGate, gates

pytest.importorskip("matplotlib", reason="matplotlib is not installed")

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure


class HalfGate(perfconv.nn.PixelGate):
    """Open in the left half."""

    def forward(self, input: Tensor) -> perfconv.nn.Gate:
        logits = self.conv(input).zero_()
        logits[:, 1, :, : logits.size(3) // 2] = 1
        return self.decide(logits, logits.shape[2:])


def network() -> nn.Module:
    """Layers on two grids: open, half open twice by a shared gate, closed, and a pool."""
    torch.manual_seed(0)
    half = HalfGate(4, stride=2)
    model = nn.Sequential(
        GatedConv2d(nn.Conv2d(3, 4, 3, padding=1)),
        GatedConv2d(nn.Conv2d(4, 4, 3, stride=2, padding=1), gate=half),
        GatedConv2d(nn.Conv2d(4, 4, 3, padding=1), gate=SharedGate(half)),
        GatedConv2d(nn.Conv2d(4, 4, 3, padding=1)),
        MultiDilationPool(4, (0, 1, 4)),
    )
    force_gates(model[0], 1.0)
    force_gates(model[3], 0.0)
    return model.eval()


def images() -> Tensor:
    return torch.rand(2, 3, 12, 16, generator=torch.Generator().manual_seed(0))


def test_ponder_map_counts_layers() -> None:
    ponder = viz.ponder_map(network(), images())
    assert ponder.shape == (2, 1, 12, 16)
    assert ponder.dtype == torch.float32
    expected = torch.ones(12, 16)
    expected[:, :8] = 3
    assert torch.equal(ponder, expected.expand(2, 1, 12, 16))


def test_ponder_map_of_odd_sizes() -> None:
    """A pixel belongs to the cell that covers it, whatever the size leaves over."""
    layer = GatedConv2d(nn.Conv2d(3, 4, 3, stride=4, padding=1), gate=CellGate(3, cell=1, stride=4))
    with torch.no_grad():
        mask = torch.tensor([[1, 0], [0, 1]], dtype=torch.bool)[None, None]
    expanded = viz.at_size(mask, (7, 7))[0, 0]
    assert expanded[:4, :4].all()
    assert expanded[4:, 4:].all()
    assert expanded.sum() == 16 + 9
    assert viz.ponder_map(layer.eval(), torch.rand(1, 3, 7, 7)).shape == (1, 1, 7, 7)


def test_gate_figure_shows_everything() -> None:
    model = network()
    found = viz.decisions(model, images())
    figure = viz.gate_figure(found, image=images(), index=1, title="a toy")
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [
        "image", "4: dilation", "0  (1.00)", "1, 2  (0.50)", "3  (0.00)",
        "ponder map  (mean 2.0 of 4)",
    ]  # fmt: skip
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["computed", "skipped"]
    bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert len(bars) == 2
    assert [text.get_text() for text in bars[0].get_yticklabels()] == ["copy", "1", "4"]
    assert figure.get_suptitle() == "a toy"


def test_colours_of_a_mask() -> None:
    figure = viz.gate_figure(viz.decisions(network(), images()))
    (panel,) = [axes for axes in figure.axes if axes.get_title().startswith("1, 2")]
    (drawn,) = panel.get_images()
    colours = drawn.cmap(drawn.norm(drawn.get_array()))[..., :3]
    assert np.allclose(colours[0, 0], to_rgb(viz.COMPUTED))
    assert np.allclose(colours[0, -1], to_rgb(viz.SKIPPED))


def test_ponder_figure_and_file(tmp_path: Path) -> None:
    figure = viz.ponder_figure(viz.decisions(network(), images()), image=images())
    assert isinstance(figure, Figure)
    viz.save(figure, tmp_path / "ponder.png")
    assert (tmp_path / "ponder.png").read_bytes().startswith(b"\x89PNG")


def test_masks_without_a_gate_call_more_than_once() -> None:
    """The record of a module that runs twice has two calls: the map counts both."""
    layer = GatedConv2d(nn.Conv2d(3, 3, 3, padding=1))
    twice = nn.Sequential(layer, layer).eval()
    force_gates(twice, 1.0)
    assert len(gates(twice)) == 1
    assert viz.ponder_map(twice, images()).unique().tolist() == [2.0]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"viz: images must be \(N, C, H, W\), got \(3, 4, 4\)"):
        viz.ponder_map(network(), torch.rand(3, 4, 4))
    with pytest.raises(ValueError, match="must have gates that run, got a Conv2d without"):
        viz.ponder_map(nn.Conv2d(3, 3, 1), images())
    found = viz.decisions(network(), images())
    with pytest.raises(ValueError, match="index must be .* 0 to 1, got 2"):
        viz.gate_figure(found, index=2)
    with pytest.raises(ValueError, match="must have gates to count, got scale choices only"):
        viz.ponder_figure(viz.decisions(MultiDilationPool(3, (0, 1)).eval(), images()))
