"""convert, unconvert and fuse on networks of our own, of torchvision and of timm."""

import copy
import importlib
from collections.abc import Callable
from functools import partial

import pytest
import torch
from foreign import FOREIGN, SLOW, foreign_network
from networks import BasicBlock, Bottleneck, InvertedResidual, ResNet, randomized
from torch import Tensor, nn

import perfconv
from perfconv.nn import GatedBasicBlock, GatedBlock, GatedBottleneck, LayerGate

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "bottlenecks": lambda: ResNet(Bottleneck),
    "basic": lambda: ResNet(BasicBlock),
    "grouped": lambda: ResNet(partial(Bottleneck, groups=2, squeeze=2)),
    "inverted": lambda: InvertedNet(),
    **{name: lambda name=name: foreign_network(name) for name in (*FOREIGN, *SLOW)},
}
OWN = ("bottlenecks", "basic", "grouped", "inverted")
QUICK = (*OWN, *FOREIGN)
SOME = (
    *OWN,
    "torchvision.resnet18",
    "torchvision.regnet_y_400mf",
    "timm.tf_efficientnet_lite0",
    "segmentation_models_pytorch.efficientnet-b0",
)
HAS_LEFT = [name for name, is_whole in {**FOREIGN, **SLOW}.items() if not is_whole]


class InvertedNet(nn.Module):
    """Inverted residual blocks between a stem and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.layer1 = nn.Sequential(
            InvertedResidual(8, 3, squeeze=2), InvertedResidual(8, 1, 5, activation=nn.SiLU)
        )
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.layer1(self.stem(images)).mean((2, 3)))


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomized(NETWORKS[name]()).eval()


def images(batch: int = 2, size: int = 32) -> Tensor:
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def output(model: nn.Module, input: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(input)
    return found["out"] if isinstance(found, dict) else found


def assert_close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_gates_open_same_output(name: str) -> None:
    plain = network(name)
    before = copy.deepcopy(plain.state_dict())
    converted = perfconv.convert(plain)
    gates = perfconv.gates(converted)
    assert gates
    assert set(gates) == set(converted.conversion_report.converted)
    assert bool(converted.conversion_report.left) == (name in HAS_LEFT)
    assert_close(output(converted, images()), output(plain, images()))
    for module in converted.modules():
        if isinstance(module, GatedBlock):
            module.execution = "dense"
    assert torch.equal(output(converted, images()), output(plain, images()))
    after = plain.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any(isinstance(module, GatedBlock) for module in plain.modules())


@pytest.mark.parametrize("is_fused", [False, True])
def test_features_by_torchvision(is_fused: bool) -> None:
    """Its feature extractor traces the model: a gated block is one node of the graph."""
    converted = perfconv.convert(network("torchvision.resnet18"))
    for gate in perfconv.gates(converted).values():
        nn.init.normal_(gate.conv.weight)
    model = perfconv.fuse(converted, inplace=True) if is_fused else converted
    extraction = importlib.import_module("torchvision.models.feature_extraction")
    names = ("layer2", "layer3.0", "layer4")
    extractor = extraction.create_feature_extractor(model, {name: name for name in names})
    expected = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: expected.update({name: output.clone()})
        )
    with torch.no_grad():
        found = extractor(images())
        model(images())
    assert list(found) == list(names)
    assert all(torch.equal(found[name], expected[name]) for name in names)
    assert len(perfconv.gates(extractor)) == 8


def test_a_traced_gated_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()).eval()
    converted = perfconv.convert(model, filter=lambda name, layer: True)
    traced = torch.fx.symbolic_trace(converted)
    assert [node.op for node in traced.graph.nodes] == [
        "placeholder", "call_module", "call_module", "output",
    ]  # fmt: skip
    assert torch.equal(output(traced, images()), output(converted, images()))


@pytest.mark.parametrize("name", SOME)
def test_state_dict_keys_and_the_way_back(name: str) -> None:
    plain = network(name)
    converted = perfconv.convert(plain)
    new = set(converted.state_dict()) - set(plain.state_dict())
    assert set(plain.state_dict()) <= set(converted.state_dict())
    assert new
    assert all(".gate." in key for key in new)
    missing = perfconv.convert(plain).load_state_dict(plain.state_dict(), strict=False)
    assert set(missing.missing_keys) == new
    with torch.no_grad():
        converted.get_parameter(next(iter(plain.state_dict()))).add_(1)
    restored = perfconv.unconvert(converted)
    assert list(restored.state_dict()) == list(plain.state_dict())
    assert type(restored) is type(plain)
    assert [type(m) for m in restored.modules()] == [type(m) for m in plain.modules()]
    assert not torch.equal(*(next(m.parameters()) for m in (restored, plain)))
    assert not hasattr(restored, "conversion_report")


@pytest.mark.parametrize(
    ("name", "density"),
    [(name, 0.4) for name in SOME] + [(name, density) for name in OWN for density in (0.0, 1.0)],
)
def test_fused_equals_unfused(name: str, density: float) -> None:
    """Folded and packed, and right at inactive pixels."""
    converted = perfconv.convert(network(name))
    fused = perfconv.fuse(converted)
    results = []
    for model in (converted, fused):
        perfconv.force_gates(model, density, generator=torch.Generator().manual_seed(2))
        results.append(output(model, images()))
    assert_close(*results[::-1])
    blocks = [module for module in fused.modules() if isinstance(module, GatedBlock)]
    for block in blocks:
        for stage in block.stages:
            assert not isinstance(block.get_submodule(stage.norm), nn.BatchNorm2d)
            assert block.get_submodule(stage.conv)._packed_weight is not None
    assert_close(output(perfconv.unconvert(fused), images()), output(network(name), images()))


def test_batch_norms_after_convolutions_of_a_sequential_are_folded() -> None:
    fused = perfconv.fuse(perfconv.convert(network("basic")))
    assert type(fused.layer2[0].downsample[1]) is nn.Identity


class Backwards(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return self[0](self[1](input))


def test_nothing_is_folded_into_a_convolution_used_elsewhere() -> None:
    """A head shared by scales whose BatchNorms differ; and a forward in another order."""
    shared = nn.Conv2d(4, 4, 1)
    networks = [
        nn.Sequential(shared, nn.BatchNorm2d(4), nn.ReLU(), shared, nn.BatchNorm2d(4)),
        nn.Sequential(nn.Sequential(shared, nn.BatchNorm2d(4)), nn.Sequential(nn.ReLU(), shared)),
        Backwards(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
    ]
    input = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    for model in networks:
        randomized(model).eval()
        torch.testing.assert_close(perfconv.fuse(model)(input), model(input))


def test_nothing_is_folded_across_a_hook() -> None:
    converted = perfconv.convert(network("basic"))
    converted.layer1[0].conv2.register_forward_hook(lambda *arguments: None)
    fused = perfconv.fuse(converted)
    assert type(fused.layer1[0].bn1) is nn.Identity
    assert type(fused.layer1[0].bn2) is nn.BatchNorm2d
    assert_close(output(fused, images()), output(network("basic"), images()))


def test_fuse_needs_eval() -> None:
    with pytest.raises(ValueError, match="fuse: the model must be in eval mode"):
        perfconv.fuse(ResNet(BasicBlock))


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_training_flag_and_hooks_are_kept(dtype: torch.dtype, is_training: bool) -> None:
    plain = network("bottlenecks").to(dtype).train(is_training)
    calls = []
    plain.layer1[1].register_forward_hook(lambda module, *rest: calls.append(type(module)))
    converted = perfconv.convert(plain)
    assert calls == []
    assert {parameter.dtype for parameter in converted.parameters()} == {dtype}
    assert converted.training == converted.layer1[1].training == is_training
    assert converted.bn1.training == is_training
    assert not converted.layer1[1].bn1.training
    converted(images().to(dtype))
    assert calls == [GatedBottleneck]
    restored = perfconv.unconvert(converted)
    restored(images().to(dtype))
    assert calls == [GatedBottleneck, Bottleneck]
    assert restored.layer1[1].bn1.training == is_training


def test_options_reach_the_blocks() -> None:
    converted = perfconv.convert(
        network("bottlenecks"),
        gate=lambda block: LayerGate(block.conv1.in_channels, stride=block.conv2.stride),
        perforate_f3=False,
        execution="dense",
        gate_grad="active",
        batch_norm="active",
    )
    first, with_stride = converted.layer1[0], converted.layer2[0]
    assert isinstance(first.gate, LayerGate)
    assert (first.execution, first.gate_grad, first.batch_norm) == ("dense", "active", "active")
    assert (first.perforate_f3, with_stride.perforate_f3) == (False, True)


def test_a_block_alone() -> None:
    plain = network("basic").layer1[0]
    converted = perfconv.convert(plain)
    assert isinstance(converted, GatedBasicBlock)
    assert list(converted.conversion_report.converted) == [""]
    assert type(perfconv.unconvert(converted)) is BasicBlock


class PreActivation(BasicBlock):
    """The layers of a basic block in another order."""

    def forward(self, input: Tensor) -> Tensor:
        features = self.conv1(torch.relu(self.bn1(input)))
        return input + self.conv2(torch.relu(self.bn2(features)))


class Broken(BasicBlock):
    def forward(self, input: Tensor) -> Tensor:
        raise RuntimeError("no such thing")


def test_report_says_what_was_left() -> None:
    plain = network("basic")
    plain.layer1[0].relu = nn.SiLU()
    plain.layer1[1] = PreActivation(4, 4)
    plain.layer2[1] = Broken(8, 8)
    report = perfconv.convert(plain.eval()).conversion_report
    assert report.converted == {"layer2.0": "GatedBasicBlock"}
    assert report.left["layer1.0"].startswith("its relu is a SiLU, not a ReLU, and its forward")
    assert "does not compute ReLU(shortcut + branch)" in report.left["layer1.1"]
    assert "no such thing" in report.left["layer2.1"]
    assert "1 blocks converted, 3 left" in str(report)
    assert "layer1.0: left, its relu" in str(report)


class OwnActivation(nn.Module):
    """A function of another class."""

    def forward(self, input: Tensor) -> Tensor:
        return input.clamp(min=0)


class StochasticDepth(nn.Module):
    def forward(self, input: Tensor) -> Tensor:
        return input * 0 if self.training else input


class Whole(nn.Module):
    """Layers at other depths, under other names, with what acts in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(
            {
                "first": nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)),
                "between": OwnActivation(),
                "second": nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)),
            }
        )
        self.drop_path = StochasticDepth()

    def forward(self, input: Tensor) -> Tensor:
        first, between, second = self.parts.values()
        return input + self.drop_path(second(between(first(input))))


def test_found_by_the_order_of_layers_whatever_their_names() -> None:
    converted = perfconv.convert(randomized(Whole()).eval())
    report = converted.conversion_report
    assert report.converted == {"": "GatedInvertedResidual"}
    assert report.unused == {"": ("drop_path",)}
    assert "without its drop_path" in str(report)
    assert converted.structure.stages[0].activation == "relu"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda b: setattr(b.conv2, "padding_mode", "circular"), "its conv2 has padding"),
        (lambda b: setattr(b, "bn2", nn.InstanceNorm2d(8)), "its bn2 is a InstanceNorm2d"),
        (lambda b: b.add_module("more", nn.MaxPool2d(2)), "it has a further layer more, a MaxPool"),
        (lambda b: b.se.add_module("act", nn.Softplus()), "its squeeze-excite has a layer se.act"),
        (lambda b: setattr(b, "conv2", nn.Conv2d(8, 8, 2)), "its forward fails on an image"),
        (lambda b: setattr(b, "forward", torch.relu), "does not compute shortcut + branch"),
        (
            lambda b: setattr(b, "conv3", nn.Conv2d(8, 4, 3)),
            "after its squeeze-excite is not a 1x1",
        ),
        (lambda b: setattr(b, "conv3", nn.Conv2d(8, 6, 1)), "it changes the shape"),
        (lambda b: setattr(b, "conv3", nn.Conv2d(6, 4, 1)), "its layers do not fit, 8 to 6"),
        (lambda b: setattr(b, "bn1", nn.Identity()), None),
    ],
)
def test_reasons(change: Callable[[nn.Module], None], reason: str | None) -> None:
    block = InvertedResidual(4, 2, squeeze=2)
    change(block)
    if reason is None:  # what fuse leaves
        assert perfconv.convert(block).conversion_report.converted
        return
    with pytest.raises(ValueError, match="must have a residual block") as error:
        perfconv.convert(nn.Sequential(block))
    assert reason in str(error.value)


def test_blocks_whose_last_batch_norm_starts_at_zero() -> None:
    plain = network("basic")
    for block in (*plain.layer1, *plain.layer2):
        nn.init.zeros_(block.bn2.weight)
        nn.init.zeros_(block.bn2.bias)
    plain.layer1[1].forward = torch.relu  # the same output as long as the branch is 0
    report = perfconv.convert(plain).conversion_report
    assert set(report.left) == {"layer1.1"}


def assert_untouched(plain: nn.Module, error: type[Exception], message: str) -> None:
    """``convert`` fails and leaves every module and parameter of the model where it was."""
    modules = list(plain.named_modules()) if isinstance(plain, nn.Module) else []
    with pytest.raises(error, match=message):
        perfconv.convert(plain)
    if modules:
        assert [(n, id(m)) for n, m in plain.named_modules()] == [(n, id(m)) for n, m in modules]


def test_no_residual_block() -> None:
    assert_untouched(nn.Sequential(nn.Conv2d(3, 4, 1)), ValueError, "must have a residual block")
    plain = network("basic").layer1
    plain[0].relu = plain[1].relu = nn.SiLU()
    assert_untouched(plain, ValueError, "0: its relu is a SiLU, not a ReLU, and .*1: its relu")


def test_shared_layers() -> None:
    plain = network("basic")
    plain.layer1[1] = plain.layer1[0]
    assert_untouched(plain, ValueError, "share layers.*layer1.0 and layer1.1")
    plain = network("basic")
    plain.layer1[1].conv2 = plain.layer1[0].conv2
    assert_untouched(plain, ValueError, "share layers, got one Conv2d as layer1.0.conv2 and")
    plain = network("basic")
    for block in plain.layer1:
        block.relu = plain.layer2[0].relu  # holds nothing: may be shared
    assert len(perfconv.gates(perfconv.convert(plain))) == 4


def test_converted_twice() -> None:
    assert_untouched(perfconv.convert(network("basic")), ValueError, "must not have gated blocks")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_scripted_compiled_and_no_module() -> None:
    plain = network("basic")
    assert_untouched(torch.jit.trace(plain, images()), TypeError, "must not be scripted")
    assert_untouched(torch.compile(plain), TypeError, "must not be compiled, got the whole model")
    plain.layer1[0] = torch.compile(plain.layer1[0])
    assert_untouched(plain, TypeError, "must not be compiled, got layer1.0")
    assert_untouched([plain], TypeError, "must be a torch.nn.Module, got list")


def test_nothing_to_unconvert() -> None:
    with pytest.raises(ValueError, match="unconvert: the model must have gated blocks"):
        perfconv.unconvert(network("basic"))


def test_converted_network_trains_compiles_and_is_saved() -> None:
    converted = perfconv.convert(network("basic")).train()
    with perfconv.record_gates(converted) as record:
        loss = converted(images()).square().mean()
    assert [call.name for call in record] == ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    (loss + perfconv.losses.density_loss(record, 0.5, form="budget")).backward()
    assert all(parameter.grad is not None for parameter in converted.parameters())
    copied = copy.deepcopy(converted).eval()
    compiled = torch.compile(copied, fullgraph=True, backend="aot_eager")
    assert_close(output(compiled, images()), output(converted.eval(), images()))
    torch._dynamo.reset()


def plain_network() -> nn.Module:
    """No residual blocks; the second convolution changes the shape."""
    torch.manual_seed(0)
    return randomized(
        nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1),
        )
    ).eval()  # fmt: skip


def test_filter_wraps_convolutions_of_plain_networks() -> None:
    plain = plain_network()
    converted = perfconv.convert(plain, filter=lambda name, conv: conv.in_channels == 8)
    assert list(perfconv.gates(converted)) == ["2", "5"]
    assert converted.conversion_report.converted == {"2": "GatedConv2d", "5": "GatedConv2d"}
    assert [converted[index].fill for index in (2, 5)] == ["passthrough", "nearest"]
    assert_close(output(converted, images()), output(plain, images()))
    new = set(converted.state_dict()) - set(plain.state_dict())
    assert new == {f"{n}.gate.conv.{kind}" for n in (2, 5) for kind in ("weight", "bias")}
    restored = perfconv.unconvert(converted)
    assert [type(m) for m in restored] == [type(m) for m in plain]
    assert torch.equal(output(restored, images()), output(plain, images()))
    perfconv.force_gates(converted, 0.3, generator=torch.Generator().manual_seed(2))
    wanted = output(converted, images())
    fused = perfconv.fuse(converted)
    perfconv.force_gates(fused, 0.3, generator=torch.Generator().manual_seed(2))
    assert_close(output(fused, images()), wanted)
    with pytest.raises(ValueError, match="choose convolutions by filter"):
        perfconv.convert(plain, filter=lambda name, conv: False)


def test_filter_leaves_the_convolutions_of_blocks() -> None:
    converted = perfconv.convert(network("basic"), filter=lambda name, conv: True)
    assert next(iter(perfconv.gates(converted))) == "conv1"
    assert isinstance(converted.layer1[0], GatedBasicBlock)
    assert type(converted.layer1[0].conv1) is nn.Conv2d
