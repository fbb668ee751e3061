"""perfconv.truncate: which blocks go, what is left, and what the network then computes."""

from collections.abc import Callable

import pytest
import torch
from networks import BasicBlock, Bottleneck, ResNet, randomized
from torch import nn

import perfconv
from perfconv.flops import count
from perfconv.models import baseline_resnet50


def network() -> nn.Module:
    torch.manual_seed(0)
    return randomized(ResNet(Bottleneck, (3, 3))).eval()


def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", [lambda net: net, perfconv.convert], ids=["plain", "converted"])
def test_blocks_go_from_the_output_backwards(make: Callable[[nn.Module], nn.Module]) -> None:
    model = make(network())
    whole = count(model, images()).dense_macs
    truncated = perfconv.truncate(model, images(), budget=0.75)
    report = truncated.truncation_report
    assert report.dropped == ("layer2.2", "layer2.1")[: len(report.dropped)]
    assert len(report.dropped) >= 1
    assert report.kept[-1] == "layer1.1"
    assert report.whole_macs == whole
    assert report.macs == count(truncated, images()).dense_macs <= 0.75 * whole
    before_last = perfconv.truncate(model, images(), budget=1.0)
    assert before_last.truncation_report.dropped == ()
    assert f"{len(report.dropped)} blocks dropped (layer2.2" in str(report)
    assert set(truncated.state_dict()) < set(model.state_dict())
    assert "layer2.2.conv1.weight" in model.state_dict()


def test_a_dropped_block_is_its_input() -> None:
    model = network()
    truncated = perfconv.truncate(model, images(), budget=0.99, blocks=["layer1.1"])
    model.layer1[1] = nn.Identity()
    assert torch.equal(truncated(images()), model(images()))


def test_hooks_stay() -> None:
    model, seen = network(), []
    model.layer2[2].register_forward_hook(lambda module, inputs, output: seen.append(output))
    perfconv.truncate(model, images(), budget=0.99, blocks=["layer2.2"])(images())
    assert len(seen) == 2  # one while counting


@pytest.mark.parametrize(
    ("dropped", "macs"),
    [
        (("layer3.5", "layer2.3", "layer1.2"), 8.93e10),
        (("layer3.3", "layer3.4", "layer3.5"), 8.30e10),
        (("layer4.2",), 7.88e10),
        (("layer4.2", "layer4.1"), 6.19e10),
    ],
)
def test_sets_of_the_table(dropped: tuple[str, ...], macs: float) -> None:
    """Rows of the papers' comparison, at 425 x 560 pixels, strides in the first 1x1."""
    with torch.device("meta"):
        model, image = baseline_resnet50().eval(), torch.empty(1, 3, 425, 560)
    names = [f"trunk.{name}" for name in dropped]
    whole = count(model, image).dense_macs
    truncated = perfconv.truncate(model, image, budget=1.01 * macs / whole, blocks=names)
    assert truncated.truncation_report.dropped == tuple(names)
    assert truncated.truncation_report.macs == pytest.approx(macs, rel=0.01)


@pytest.mark.parametrize(
    ("budget", "blocks", "message"),
    [
        (0.0, None, r"budget must be in \(0, 1\]"),
        (1.2, None, r"budget must be in \(0, 1\]"),
        (0.5, ["layer2.0"], "got 'layer2.0', which is none of layer1.1, layer1.2, layer2.1"),
        (0.5, ["layer1.1", "layer1.1"], "got 'layer1.1', twice"),
        (0.01, None, "must be reached by dropping 4 blocks, got 0.01 where 0"),
    ],
)
def test_bad_input(budget: float, blocks: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        perfconv.truncate(network(), images(), budget=budget, blocks=blocks)


def test_no_module_and_no_block() -> None:
    with pytest.raises(TypeError, match="truncate: the model must be a torch.nn.Module"):
        perfconv.truncate([1], images(), budget=0.5)
    plain = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(ValueError, match="by dropping 0 blocks"):
        perfconv.truncate(plain, images(), budget=0.5)
    with pytest.raises(ValueError, match="by dropping 0 blocks"):  # nothing is left of it
        perfconv.truncate(BasicBlock(3, 3).eval(), images(), budget=0.5)


def test_the_model_is_left_as_it_is() -> None:
    """Counting runs it, and in training mode BatchNorm statistics move."""
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    truncated = perfconv.truncate(model, images(), budget=0.75)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, value in truncated.state_dict().items():
        assert torch.equal(value, before[name]), name
