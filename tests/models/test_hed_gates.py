"""HED with gates: what shares a gate, densities, the file that ships, FLOPs of the gates."""

from pathlib import Path

import numpy as np
import pytest
import torch

import perfconv
from perfconv.models import hed_gates
from perfconv.models.hed import HED
from perfconv.models.hed_gates import (
    GATES_FILE,
    block_densities,
    gate_macs,
    gated_hed,
    hed_with_learned_gates,
    load_gates,
    save_gates,
    set_density,
)
from perfconv.nn import CellGate, SharedGate, gates


@pytest.fixture(scope="module")
def model() -> HED:
    torch.manual_seed(0)
    return HED(fill="nearest").eval()


def image() -> torch.Tensor:
    return torch.rand(1, 3, 70, 96, generator=torch.Generator().manual_seed(0))


def test_open_gates_change_nothing(model: HED) -> None:
    gated = gated_hed(model).eval()
    perfconv.force_gates(gated, 1.0)
    with torch.no_grad():
        torch.testing.assert_close(gated(image()).edges, model(image()).edges)


def test_one_gate_for_each_block(model: HED) -> None:
    found = gates(gated_hed(model))
    leaders = [name for name, gate in found.items() if isinstance(gate, CellGate)]
    assert leaders == ["block2.conv1", "block3.conv1", "block4.conv1", "block5.conv1"]
    followers = [gate for gate in found.values() if isinstance(gate, SharedGate)]
    assert len(followers) == len(found) - 4 == 7


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9, 0.99, 1.0])
def test_densities_have_the_mean_asked_for(density: float) -> None:
    densities = block_densities(density)
    shares = hed_gates.SHARES
    mean = sum(shares[k] * value for k, value in densities.items()) / sum(shares.values())
    assert mean == pytest.approx(density, rel=0.01)
    assert list(densities.values()) == sorted(densities.values(), reverse=True)
    assert max(densities.values()) <= 1


def test_block_2_is_whole_while_few_pixels_are_closed() -> None:
    assert [block_densities(density)[2] for density in (0.65, 0.8, 0.95)] == [1.0] * 3
    assert block_densities(0.4)[2] < block_densities(0.5)[2] < 1


def test_shipped_gates_meet_their_density(model: HED) -> None:
    gated = hed_with_learned_gates(model, density=0.6)
    with torch.no_grad(), perfconv.record_gates(gated) as record:
        gated(image())
    calls = record.calls
    whole = sum(call.macs for call in calls)
    active = sum(call.macs * call.gate.mask.float().mean().item() for call in calls)
    assert active / whole == pytest.approx(0.6, abs=0.03)


def test_the_file_holds_gates_only() -> None:
    assert GATES_FILE.stat().st_size < 300_000
    with np.load(GATES_FILE) as file:
        assert all(".gate." in key for key in file.files)
        assert all(np.isfinite(file[key]).all() for key in file.files)
        assert any(file[key].any() for key in file.files)


def test_save_and_load(model: HED, tmp_path: Path) -> None:
    first, second = gated_hed(model), gated_hed(model)
    for gate in gates(first).values():
        for parameter in gate.parameters():
            torch.nn.init.normal_(parameter)
    save_gates(first.requires_grad_(False), tmp_path / "gates.npz")
    load_gates(second, tmp_path / "gates.npz")
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def test_flops_of_the_gates(model: HED) -> None:
    gated = hed_with_learned_gates(model, density=0.5)
    counted = perfconv.flops.count(gated, image())
    of_gates = sum(float(row.executed.sum()) for row in counted.rows if row.kind == "gate")
    assert gate_macs(gated, (70, 96)) == of_gates


def test_bad_input(model: HED, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="must hold the gates of gated_hed, got .*: a"):
        load_gates(gated_hed(model), tmp_path / "other.npz")
    with pytest.raises(FileNotFoundError):
        load_gates(gated_hed(model), tmp_path / "none.npz")
    with pytest.raises(ValueError, match=r"set_density: density must be in \(0, 1\], got 0"):
        set_density(gated_hed(model), 0)
