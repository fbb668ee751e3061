"""distill_gates on toy networks: what it learns, leaves alone, repeats, resumes and refuses."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import perfconv
from perfconv import convert, distill, distill_gates, gates, record_gates
from perfconv.distill import calibrate_gates, output_distance


def toy(seed: int = 0) -> nn.Module:
    """A convolution whose 3x3 matters only where the image is not 0; BatchNorm; dropout."""
    torch.manual_seed(seed)
    plain = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.Dropout(0.5),
    )  # fmt: skip
    return convert(plain, filter=lambda name, conv: name == "3")


def half_empty(count: int = 6, size: int = 12) -> list[Tensor]:
    """Noise in the left half of each image, nothing in the right."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        image = 3 * torch.randn(1, 2, size, size, generator=generator)
        image[..., size // 2 :] = 0
        found.append(image)
    return found


def learn(model: nn.Module, images: list[Tensor], **options) -> distill.Distillation:
    defaults = {"target_density": 0.5, "steps": 60, "learning_rate": 0.1, "progress": False}
    options = {**defaults, **options}
    generator = torch.Generator().manual_seed(4)
    return distill_gates(model, images, generator=generator, **options)


def gate_state(model: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if ".gate." in key}


@pytest.mark.parametrize("form", ["budget", "kl"])
def test_learns_where_the_network_computes_something(form: str) -> None:
    model, images = toy(), half_empty()
    report = learn(model, images, form=form, density_weight=20, steps=80)
    with record_gates(model.eval()) as record:
        model(images[0])
    mask = record.gates[0].mask
    assert abs(report.density - 0.5) < 0.02
    assert abs(sum(report.densities[-20:]) / 20 - 0.5) < 0.1  # the loss alone, noise included
    assert mask[..., :6].float().mean() > 0.75
    assert mask[..., 7:].float().mean() < 0.25


def test_hint_alone_teaches_the_order() -> None:
    """Told that the upper half matters in a ramp from top to bottom, the gate opens it."""
    torch.manual_seed(0)
    images = [torch.linspace(1, 0, 12)[:, None].expand(1, 2, 12, 12).contiguous()]
    plain = nn.Sequential(nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 1))
    model = convert(plain, filter=lambda name, conv: name == "1")
    report = learn(
        model, images, steps=60, hint_steps=60,
        hint=lambda output: torch.linspace(1, 0, 12)[:, None].expand(1, 1, 12, 12).round(),
    )  # fmt: skip
    with record_gates(model.eval()) as record:
        model(images[0])
    assert record.gates[0].mask[0, 0].all(1).tolist() == [True] * 6 + [False] * 6
    assert report.densities == [1.0] * 60
    assert report.losses[-1] < report.losses[0]


def test_leaves_everything_else_alone() -> None:
    model = toy().train()
    model[0].weight.requires_grad_(False)
    gate = gates(model)["3"]
    gate.temperature = 0.7
    before = {key: value.clone() for key, value in model.state_dict().items()}
    needs = [parameter.requires_grad for parameter in model.parameters()]
    learn(model, half_empty(), steps=3)
    after = model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"3.gate.conv.weight", "3.gate.conv.bias"}
    assert all(module.training for module in model.modules())
    assert [parameter.requires_grad for parameter in model.parameters()] == needs
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (gate.temperature, gate.generator) == (0.7, None)


def test_same_seed_same_gates() -> None:
    states = []
    for seed in (4, 4, 5):
        model = toy()
        distill_gates(
            model, half_empty(), target_density=0.5, steps=5, progress=False,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        states.append(gate_state(model)["3.gate.conv.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_global_generator() -> None:
    states = []
    for _ in range(2):
        model = toy()
        torch.manual_seed(9)
        distill_gates(model, half_empty(), target_density=0.5, steps=3, progress=False)
        states.append(gate_state(model)["3.gate.conv.weight"])
    assert torch.equal(*states)


@pytest.mark.parametrize("stopped_at", [7, 10])
def test_resumes_bit_for_bit(stopped_at: int, tmp_path: Path) -> None:
    """Stopped in the middle of a step: what was saved last is where the second run begins."""
    whole = toy()
    expected = learn(whole, half_empty(), steps=14)
    file = tmp_path / "folder" / "run.pt"
    seen = []

    def shifted(image: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(1)
        if len(seen) == stopped_at and stopping:
            raise KeyboardInterrupt
        return image

    model, stopping = toy(), True
    options = {"steps": 14, "checkpoint": file, "checkpoint_every": 3, "augment": shifted}
    with pytest.raises(KeyboardInterrupt):
        learn(model, half_empty(), **options)
    assert [path.name for path in file.parent.iterdir()] == ["run.pt"]  # no temporary file
    resumed, stopping, before = toy(), False, len(seen)
    report = learn(resumed, half_empty(), **options)
    assert len(seen) - before == 14 - (stopped_at - 1) // 3 * 3
    assert report == expected
    for key, value in gate_state(whole).items():
        assert torch.equal(value, gate_state(resumed)[key]), key


def test_checkpoint_of_another_run(tmp_path: Path) -> None:
    file = tmp_path / "run.pt"
    learn(toy(), half_empty(), steps=4, checkpoint=file, checkpoint_every=2)
    with pytest.raises(ValueError, match="the same arguments, got .* with other numbers"):
        learn(toy(), half_empty(), steps=5, checkpoint=file)
    with pytest.raises(ValueError, match="with other images"):
        learn(toy(), half_empty(size=10), steps=4, checkpoint=file)
    file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="checkpoint must be a file of distill_gates"):
        learn(toy(), half_empty(), steps=4, checkpoint=file)


@pytest.mark.parametrize("target", [0.2, 0.75])
def test_calibration_keeps_the_order(target: float) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 3, 3, padding=1)
    gate = perfconv.nn.PixelGate(3, init_std=1.0)
    layer = nn.Sequential(perfconv.nn.GatedConv2d(conv, gate=gate)).train()
    images = [torch.randn(1, 3, 40, 40) for _ in range(2)]
    weight = gate.conv.weight.clone()
    reached = calibrate_gates(layer, images, target_density=target)
    with record_gates(layer.eval()) as record:
        for image in images:
            layer(image)
    assert abs(reached - target) < 0.01
    assert sum(g.mask.float().mean().item() for g in record.gates) / 2 == pytest.approx(reached)
    assert torch.equal(gate.conv.weight, weight)


class Two(NamedTuple):
    first: Tensor
    rest: dict[str, Tensor]


def test_output_distance_by_hand() -> None:
    wanted = Two(torch.tensor([0.0, 2.0]), {"a": torch.tensor([0.0, 4.0]), "n": torch.tensor([3])})
    got = Two(torch.tensor([1.0, 2.0]), {"a": torch.tensor([0.0, 4.0]), "n": torch.tensor([5])})
    assert output_distance(got, wanted).item() == 0.25  # (0.5 / 1 + 0 / 4) / 2
    with pytest.raises(ValueError, match="must return a floating-point tensor, got none"):
        output_distance(torch.tensor([1]), torch.tensor([1]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target_density": 1.0}, ValueError, r"target_density must be in \(0, 1\), got 1.0"),
        ({"steps": 0}, ValueError, "steps must be 1 or more, got 0"),
        ({"checkpoint_every": 0}, ValueError, "checkpoint_every must be 1 or more"),
        ({"hint_steps": 1}, ValueError, "and 0 without a hint, got 1"),
        ({"hint_steps": 3, "hint": torch.ones_like}, ValueError, "from 0 to steps = 2"),
        ({"images": []}, ValueError, "images must hold an image"),
        ({"images": [torch.zeros(1, 2, 8, 8, dtype=torch.uint8)]}, TypeError, "got torch.uint8"),
        ({"images": ["photo.jpg"]}, TypeError, "floating-point tensor, got str"),
        ({"images": [torch.full((1, 2, 8, 8), torch.nan)]}, ValueError, "got nan in step 1"),
        ({"model": nn.Conv2d(2, 2, 1)}, ValueError, "must have gates, got a Conv2d without"),
    ],
)
def test_bad_input(options: dict, error: type, message: str) -> None:
    options = {"model": toy(), "images": half_empty(), **options}
    model, images = options.pop("model"), options.pop("images")
    with pytest.raises(error, match=message):
        learn(model, images, **{"steps": 2, **options})


def test_shows_progress(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    tqdm = pytest.importorskip("tqdm")
    monkeypatch.setattr(tqdm.tqdm, "__init__", _always(tqdm.tqdm.__init__))
    learn(toy(), half_empty(), steps=2, progress=True)
    assert "2/2" in capfd.readouterr().err


def _always(init):
    """As on a terminal."""
    return lambda self, *args, **options: init(self, *args, **{**options, "disable": False})
