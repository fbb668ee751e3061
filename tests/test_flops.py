"""perfconv.flops.count against MACs written out from the layers' shapes and the masks."""

import importlib

import pytest
import torch
import torch.nn.functional as F
from foreign import make_importable
from networks import BasicBlock, Bottleneck, InvertedResidual, ResNet, randomized
from torch import Tensor, nn

import perfconv
from perfconv.flops import FlopCount, count, count_set, fvcore_handles, ptflops_hooks
from perfconv.nn import (
    GatedBasicBlock,
    GatedBottleneck,
    GatedInvertedResidual,
    LayerGate,
    record_gates,
)


def images(channels: int = 3, batch: int = 3, size: tuple[int, int] = (12, 14)) -> Tensor:
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(1))


def pixels(mask: Tensor) -> Tensor:
    """(N,): active pixels of each image."""
    return mask.flatten(1).sum(1).double()


def rows(counted: FlopCount) -> dict[tuple[str, str], tuple[Tensor, Tensor, Tensor]]:
    return {(row.name, row.kind): (row.active, row.executed, row.dense) for row in counted.rows}


def random_gates(block: nn.Module, density: float = 0.3) -> nn.Module:
    perfconv.force_gates(block, density, generator=torch.Generator().manual_seed(2))
    return block.eval()


def test_dense_layers() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.Flatten(),
        nn.Linear(4 * 12 * 14, 5),
    )
    expected = [8 * 27 * 42, 8 * 18 * 42, 8 * 4 * 4 * 42, 4 * 12 * 14 * 5]
    counted = count(model, images())
    assert [round(float(row.dense[0])) for row in counted.rows] == expected
    assert counted.dense_macs == counted.active_macs == counted.executed_macs == 3 * sum(expected)
    assert counted.dense_flops == 2 * counted.dense_macs
    assert counted.flops_ratio == 1
    assert torch.equal(counted.image_macs(), torch.full((3,), float(sum(expected))).double())


@pytest.mark.parametrize("execution", ["sparse", "dense"])
def test_bottleneck(execution: str) -> None:
    block = GatedBottleneck(randomized(Bottleneck(16, 4)), execution=execution)
    random_gates(block)
    input = images(16)
    counted = count(block, input)
    random_gates(block)  # draws the same masks again
    with record_gates(block) as record:
        block(input)
    mask = record.gates[0].mask
    own = pixels(mask)
    halo = pixels(F.max_pool2d(mask.float(), 3, 1, 1) > 0) - own
    area = torch.full((3,), 168.0).double()
    found = rows(counted)
    is_dense = execution == "dense"
    for name, macs in (("conv2", 144), ("conv3", 64)):
        active, executed, dense = found[name, "layer"]
        torch.testing.assert_close(active, own * macs)
        torch.testing.assert_close(dense, area * macs)
        assert torch.equal(executed, dense) or (not is_dense and torch.equal(executed, active))
    active, _, dense = found["conv1", "layer"]
    torch.testing.assert_close(active, own * 64)
    torch.testing.assert_close(dense, area * 64)
    halo_active, halo_executed, halo_dense = found["conv1", "halo"]
    torch.testing.assert_close(halo_active, halo * 64)
    assert not halo_dense.any()
    assert not is_dense or not halo_executed.any()
    for values in found["gate.conv", "gate"]:
        torch.testing.assert_close(values, area * 32)
    total = (own * (144 + 64) + (own + halo) * 64).sum()
    assert counted.active_macs == total + 3 * 168 * 32
    assert counted.flops_ratio == pytest.approx(float(total / (area.sum() * 272)))
    has_compaction = any(row.kind == "compaction" and row.pixels for row in counted.rows)
    assert has_compaction != is_dense


def test_executed_macs_of_the_algorithm_that_ran() -> None:
    """ "auto" on the halo of a dense mask takes the dense convolution, and the count says so."""
    block = random_gates(GatedBottleneck(Bottleneck(16, 4), execution="sparse"), 1.0)
    counted = count(block, images(16))
    assert counted.executed_macs == counted.dense_macs == counted.active_macs
    layer = perfconv.PerforatedConv2d(16, 16, 3, padding=1)
    mask = torch.rand(1, 1, 12, 14) < 0.5
    input = images(16)
    counted = count(layer, input, mask)
    (row,) = counted.rows
    chosen = perfconv.explain(input, layer.weight, mask, padding=1)[0][0]
    torch.testing.assert_close(row.active, (pixels(mask) * 16 * 144).expand(3))
    torch.testing.assert_close(row.executed, row.dense if chosen == "dense" else row.active)


def test_other_reading_of_f3() -> None:
    block = random_gates(GatedBottleneck(Bottleneck(16, 4), perforate_f3=False))
    found = rows(count(block, images(16)))
    for name in ("conv1", "conv3"):
        active, executed, dense = found[name, "layer"]
        assert torch.equal(active, dense)
        assert torch.equal(executed, dense)
    active, _, dense = found["conv2", "layer"]
    assert bool((active < dense).all())
    assert ("conv1", "halo") not in found


def test_stride_and_projection() -> None:
    block = random_gates(GatedBasicBlock(randomized(BasicBlock(8, 8, 2))))
    found = rows(count(block, images(8)))
    assert set(found) == {
        ("gate.conv", "gate"), ("downsample.0", "layer"), ("conv1", "layer"), ("conv1", "halo"),
        ("conv2", "layer"), ("", "compaction"), ("", "copy"),
    }  # fmt: skip
    assert torch.equal(found["downsample.0", "layer"][0], torch.full((3,), 42 * 64.0).double())


def test_images_differ() -> None:
    """A layer gate that skips some images: their share of the block is 0."""
    torch.manual_seed(0)
    block = GatedBasicBlock(BasicBlock(8, 8), gate=LayerGate(8)).eval()
    perfconv.force_gates(block, 0.5, generator=torch.Generator().manual_seed(3))
    counted = count(block, images(8, batch=8))
    (layer,) = [row for row in counted.rows if row.name == "conv2"]
    assert set(layer.active.tolist()) == {0.0, 168 * 576.0}
    assert counted.image_macs().unique().numel() == 2
    assert counted.image_macs("dense").unique().numel() == 1


def test_a_fused_network_counts_the_same() -> None:
    converted = perfconv.convert(randomized(ResNet(Bottleneck)).eval())
    before = count(random_gates(converted), images())
    after = count(random_gates(perfconv.fuse(converted)), images())
    assert before.active_macs == after.active_macs < before.dense_macs == after.dense_macs
    assert {row.name for row in before.rows} >= {"conv1", "layer1.0.conv1", "layer2.1.gate.conv"}


def test_a_module_called_twice_and_nothing_left_behind() -> None:
    layer = nn.Conv2d(4, 4, 1)
    model = nn.Sequential(layer, layer)
    assert count(model, images(4)).dense_macs == 2 * 3 * 168 * 16
    block = GatedBasicBlock(BasicBlock(4, 4))
    count(block, images(4))
    assert not any(module._forward_hooks for module in block.modules())
    assert block.gate._recorders == ()


def test_table() -> None:
    text = str(count(random_gates(GatedBasicBlock(BasicBlock(4, 4))), images(4)))
    assert "conv1" in text
    assert "halo" in text
    assert "mask pixels" in text
    assert "active MACs per image: mean" in text


def test_compiled_models_are_refused() -> None:
    with pytest.raises(TypeError, match="count: the model must not be compiled"):
        count(torch.compile(nn.Conv2d(3, 3, 1)), images())


def test_a_set_of_images_of_several_sizes() -> None:
    block = random_gates(GatedInvertedResidual(randomized(InvertedResidual(4, 3, squeeze=2))))
    batches = [images(4, batch=2), images(4, batch=1, size=(5, 6))]
    counted = count_set(block, batches)
    random_gates(block)  # draws the same masks again
    alone = [count(block, batch) for batch in batches]
    for column in ("active", "executed", "dense"):
        expected = torch.cat([single.image_macs(column) for single in alone])
        assert torch.equal(counted.image_macs(column), expected)
    assert counted.active_macs == sum(single.active_macs for single in alone)
    assert "(3 images)" in str(counted)
    with pytest.raises(ValueError, match="count_set: images must not be empty"):
        count_set(block, [])


def test_squeeze_excite_makes_the_first_layer_dense() -> None:
    block = random_gates(GatedInvertedResidual(randomized(InvertedResidual(4, 3, squeeze=2))))
    counted = count(block, images(4))
    random_gates(block)
    with record_gates(block) as record:
        block(images(4))
    own, area = pixels(record.gates[0].mask), 168
    found = rows(counted)
    whole = torch.full((3,), float(area)).double()
    assert torch.equal(found["conv1", "layer"][0], whole * 48)
    torch.testing.assert_close(found["conv2", "layer"][0], own * 12 * 9)
    torch.testing.assert_close(found["conv3", "layer"][0], own * 48)
    assert torch.equal(found["se.reduce", "layer"][0], torch.full((3,), 24.0).double())
    assert ("conv1", "halo") not in found
    (copied,) = [row.pixels for row in counted.rows if row.kind == "copy"]
    assert copied == 2 * int((whole - own).sum())  # what is pooled, and the output


def test_ptflops_counts_active_macs() -> None:
    make_importable("torchvision", "ptflops")  # it imports torchvision
    ptflops = importlib.import_module("ptflops")
    layer = perfconv.PerforatedConv2d(4, 6, 3, padding=1, bias=False)
    mask = torch.rand(1, 1, 12, 14, generator=torch.Generator().manual_seed(0)) < 0.4
    macs, _ = ptflops.get_model_complexity_info(
        layer, (4, 12, 14), input_constructor=lambda size: {"input": images(4, 1), "mask": mask},
        backend="aten", custom_modules_hooks=ptflops_hooks(), as_strings=False,
        print_per_layer_stat=False,
    )  # fmt: skip
    assert macs == int(mask.sum()) * 6 * 4 * 9


def test_fvcore_counts_as_if_every_pixel_were_active() -> None:
    fvcore = pytest.importorskip("fvcore.nn")
    block = GatedBasicBlock(randomized(BasicBlock(8, 8))).eval()
    with torch.no_grad():
        analysis = fvcore.FlopCountAnalysis(block, images(8, 1)).set_op_handle(**fvcore_handles())
        counts = analysis.unsupported_ops_warnings(False).by_operator()
    assert counts["perforated_conv2d"] == 2 * 168 * 8 * 8 * 9
    assert counts["conv"] == 168 * 2 * 8  # the gate


# ---- the reference network -----------------------------------------------------------------------


class ScaleChoice(Bottleneck):
    """The block with one 3x3 of several dilations per pixel; they cost one 3x3, its gate extra."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__(in_channels, width, dilation=4)
        self.choice = nn.Sequential(
            nn.Conv2d(width, 128, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU(),
            nn.Conv2d(128, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 7, 1),
        )  # fmt: skip
        self.conv2.register_forward_pre_hook(self.choose)

    def choose(self, conv: nn.Module, inputs: tuple[Tensor]) -> None:
        self.choice(inputs[0])


def reference_network() -> nn.Module:
    """ResNet-50 of output stride 8, 7x7 stem, strides in the first 1x1, 1x1 head, 40 classes."""
    layers = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, blocks, stride, dilation in (
        (64, 3, 1, 1),
        (128, 4, 2, 1),
        (256, 6, 1, 2),
        (512, 3, 1, 4),
    ):
        for number in range(blocks):
            if width == 512 and number == 1:
                layers.append(ScaleChoice(channels, width))
            else:
                plain = Bottleneck(
                    channels, width, stride if not number else 1, dilation=dilation,
                    is_stride_first=True,
                )  # fmt: skip
                layers.append(GatedBottleneck(plain))
            channels = 4 * width
    return nn.Sequential(*layers, nn.Conv2d(channels, 512, 1), nn.Conv2d(512, 40, 1)).eval()


def test_golden_number_of_the_reference_network() -> None:
    with torch.device("meta"):
        counted = count(reference_network(), torch.empty(1, 3, 425, 560))
    of_gates = sum(round(float(row.dense[0])) for row in counted.rows if row.kind == "gate")
    of_choice = sum(round(float(row.dense[0])) for row in counted.rows if ".choice." in row.name)
    assert of_gates == 96_606_720
    assert of_choice == 387_918_720
    assert counted.dense_macs == counted.active_macs == 96_096_165_760
    assert len([row for row in counted.rows if row.kind == "gate"]) == 15
