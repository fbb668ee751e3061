"""fuse(inplace=True): gated blocks overwrite what they alone hold, and nothing else; what a fused
sparse block runs."""

import copy
import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from networks import BasicBlock, Bottleneck, InvertedResidual, ResNet, randomized
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import perfconv
from perfconv.nn import GatedBlock, GatedChain
from perfconv.nn.stage_conv import convolve

WRITES = "perfconv::gated_block_into"
STAGE_WRITES = "perfconv::perforated_conv2d_into"


def images(channels: int = 16, size: tuple[int, int] = (9, 10)) -> Tensor:
    """What a ReLU gave, in channels_last memory."""
    generator = torch.Generator().manual_seed(3)
    values = torch.rand(2, channels, *size, generator=generator)
    return values.contiguous(memory_format=torch.channels_last)


def gated(model: nn.Module) -> nn.Module:
    """Converted, its gates about half open: the sign of a sum that is 0 in the middle."""
    torch.manual_seed(1)
    converted = perfconv.convert(randomized(model).eval())
    for gate in perfconv.gates(converted).values():
        weight = torch.randn_like(gate.conv.weight)
        gate.conv.weight.data = weight - weight.mean(1, keepdim=True)
        nn.init.zeros_(gate.conv.bias)
    return converted


def chain(kind: type = Bottleneck, blocks: int = 3) -> nn.Sequential:
    """Identity blocks, and a projection at the end."""
    width = 16 // kind.expansion
    return gated(nn.Sequential(*(kind(16, width) for _ in range(blocks)), kind(16, 2 * width, 2)))


class Operators(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Counter[str]]:
    with torch.no_grad(), Operators() as mode:
        yield mode.counts


def writes(model: nn.Module, input: Tensor) -> int:
    """How many blocks wrote in place; the output must be right, and the input untouched.

    Bit for bit in channels_last: other layouts are converted once a block, or once a stage.
    """
    before = input.clone()
    expected = copy.deepcopy(perfconv.fuse(model.plain))(before)
    with counted() as counts:
        output = model(input)
    if input.is_contiguous(memory_format=torch.channels_last):
        assert torch.equal(output, expected)
    torch.testing.assert_close(output, expected)
    assert torch.equal(input, before)
    return counts[WRITES] + counts[STAGE_WRITES]


@pytest.fixture
def stage_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where one operator for the whole block would not do."""
    monkeypatch.setattr("perfconv.nn.gated_block.whole_block", lambda *_: None)


def in_place(model: nn.Module) -> nn.Module:
    fused = perfconv.fuse(model, inplace=True)
    fused.__dict__["plain"] = model
    return fused


@pytest.mark.parametrize("kind", [Bottleneck, BasicBlock])
@pytest.mark.parametrize("at_once", [True, False])
def test_blocks_of_a_chain_write_in_place(
    kind: type, at_once: bool, request: pytest.FixtureRequest
) -> None:
    """All but the first, whose input comes from outside; the projection into its shortcut."""
    if not at_once:
        request.getfixturevalue("stage_by_stage")
    fused = in_place(chain(kind))
    assert type(fused) is GatedChain
    assert writes(fused, images()) == 3
    perfconv.force_gates(fused, 0.0)
    perfconv.force_gates(fused.plain, 0.0)
    assert writes(fused, images()) == 3


def test_whole_network() -> None:
    fused = in_place(gated(ResNet(Bottleneck, (2, 3))))
    assert isinstance(fused.layer1, GatedChain)
    assert writes(fused, images(3, (32, 40))) == 5  # two projections, one and two identities
    assert writes(copy.deepcopy(fused), images(3, (32, 40))) == 5
    plain = fused.__dict__.pop("plain")
    loaded = pickle.loads(pickle.dumps(fused))
    loaded.__dict__["plain"] = plain
    assert writes(loaded, images(3, (32, 40))) == 5


def test_inference_mode() -> None:
    fused = in_place(chain())
    with torch.inference_mode():
        assert writes(fused, images()) == 3


def test_only_if_asked() -> None:
    fused = perfconv.fuse(chain())
    assert type(fused) is nn.Sequential
    with counted() as counts:
        fused(images())
    assert counts["perfconv::gated_block"] == 4
    assert counts[WRITES] + counts[STAGE_WRITES] == 0


@pytest.mark.parametrize("where", ["0", "1", "1.gate", "1.gate.conv", "3.downsample.0"])
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook", "full_backward_hook"])
def test_nothing_is_written_into_what_a_hook_sees(where: str, kind: str) -> None:
    fused = in_place(chain())
    seen = []

    def hook(module: nn.Module, *tensors: object) -> None:
        seen.extend((value, value.clone()) for value in tensors if isinstance(value, Tensor))
        for values in tensors:
            if isinstance(values, tuple):
                seen.extend((value, value.clone()) for value in values)

    handle = getattr(fused.get_submodule(where), f"register_{kind}")(hook)
    # A hook on block 1 or its gate keeps blocks 1 and 2 from it, one on block 0 block 1.
    expected = {"0": 2, "3.downsample.0": 2}.get(where, 1)
    assert writes(fused, images()) == expected
    assert len(seen) > 0 or kind == "full_backward_hook"
    assert all(torch.equal(kept, copied) for kept, copied in seen)
    handle.remove()
    assert writes(fused, images()) == 3


def test_the_first_layer_of_a_block_with_squeeze_excite_may_have_a_hook() -> None:
    """It runs as a layer, on the block's input."""
    fused = in_place(gated(nn.Sequential(*(InvertedResidual(16, 2, squeeze=4) for _ in range(3)))))
    assert writes(fused, images()) == 2
    seen = []
    fused[1].conv1.register_forward_pre_hook(
        lambda module, inputs: seen.append((inputs[0], inputs[0].clone()))
    )
    assert writes(fused, images()) == 0
    assert len(seen) == 1
    assert torch.equal(*seen[0])


def test_hooks_on_every_module() -> None:
    fused = in_place(chain())
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *arguments: None)
    try:
        assert writes(fused, images()) == 0
    finally:
        handle.remove()


def test_a_block_that_somebody_else_calls_keeps_its_input() -> None:
    fused = in_place(chain())
    features, copies = [images()], []
    with counted() as counts:
        for block in fused:
            copies.append(features[-1].clone())
            features.append(block(features[-1]))
    assert counts[WRITES] == 1  # the projection, into its own shortcut
    assert all(torch.equal(*pair) for pair in zip(copies, features, strict=False))


def test_a_traced_graph_may_tap_any_block() -> None:
    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, name: str) -> bool:
            return isinstance(module, GatedBlock)

    fused = in_place(chain())
    graph = Tracer().trace(fused)
    assert all(not node.kwargs for node in graph.nodes)


def test_a_feature_that_leaves_its_sequential_is_kept() -> None:
    class Taps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(Bottleneck(16, 4), Bottleneck(16, 4))
            self.second = nn.Sequential(Bottleneck(16, 4), Bottleneck(16, 4))

        def forward(self, input: Tensor) -> Tensor:
            feature = self.first(input)
            return torch.stack([feature, self.second(feature)])

    fused = in_place(gated(Taps()))
    assert writes(fused, images()) == 2


def test_nothing_is_written_while_gradients_are_recorded() -> None:
    fused = in_place(chain())
    with Operators() as mode:
        fused(images().requires_grad_()).sum().backward()
        fused(images())
    assert mode.counts["perfconv::perforated_conv2d"] > 0
    assert mode.counts[WRITES] + mode.counts[STAGE_WRITES] == 0


def test_in_other_transforms() -> None:
    fused = in_place(chain())
    stacked = torch.stack([images(), 2 * images()])
    with torch.no_grad():
        expected = torch.stack([fused(image) for image in stacked])
        found = torch.func.vmap(fused)(stacked)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_compiled() -> None:
    fused = in_place(chain())
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    input = images()
    before = input.clone()
    with torch.no_grad():
        torch.testing.assert_close(compiled(input), fused(input))
    assert torch.equal(input, before)
    torch._dynamo.reset()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_and_layouts(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    model = chain().to(dtype).to(memory_format=memory_format)
    assert writes(in_place(model), images().to(dtype).contiguous(memory_format=memory_format)) == 3


def test_with_autocast() -> None:
    """The shortcut is not in the dtype of the features: a new tensor."""
    fused = in_place(chain())
    with torch.autocast("cpu", torch.bfloat16):
        assert writes(fused, images()) in (0, 1)


def test_what_a_fused_block_runs() -> None:
    """One operator; with a projection, that one's convolution too."""
    fused = perfconv.fuse(chain(), inplace=True)
    input = images()
    with counted() as counts:
        fused[1](input.clone(), owns_input=True)
    assert counts == {WRITES: 1, "aten::clone": 1}
    with counted() as counts:
        fused[3](input)
    assert counts == {WRITES: 1, "aten::convolution": 1}


def test_what_a_fused_block_runs_stage_by_stage(stage_by_stage: None) -> None:
    """One gate, one halo, three layers: no folding, no copy, no second compaction."""
    fused = perfconv.fuse(chain(), inplace=True)
    input = images()
    expected = {
        "perfconv::gate_mask": 1,
        "perfconv::expand_mask": 1,
        "perfconv::perforated_conv2d": 2,
        STAGE_WRITES: 1,
    }
    with counted() as counts:
        fused[1](input.clone(), owns_input=True)
    assert counts == {**expected, "aten::clone": 1}
    with counted() as counts:  # a stride: the gate reads every second pixel of a view
        fused[3](input)
    views = {name for name in counts if name.startswith("aten::slice")}
    assert {name: counts[name] for name in counts.keys() - views} == {
        **expected,
        "aten::convolution": 1,
    }


def test_the_first_layer_writes_the_halo_only(
    stage_by_stage: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory that nobody wrote is NaN in the tests."""
    made = []

    def spy(*arguments, **options) -> Tensor:
        made.append(convolve(*arguments, **options))
        return made[-1]

    fused = perfconv.fuse(gated(Bottleneck(256, 64)))
    monkeypatch.setattr("perfconv.nn.gated_block.convolve", spy)
    perfconv.force_gates(fused, 0.05, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = fused(images(256))
    assert output.isfinite().all()
    perfconv.force_gates(fused, 0.05, generator=torch.Generator().manual_seed(1))
    mask = fused.gate.active_pixels(images(256)).mask
    first, second, _ = made
    assert first.isnan().all(1, keepdim=True).equal(~perfconv.expand_mask(mask, 3, padding=1))
    assert second.isnan().all(1, keepdim=True).equal(~mask)


def test_a_record_changes_no_bit() -> None:
    fused = perfconv.fuse(chain())
    with torch.no_grad():
        expected = fused(images())
        with perfconv.record_gates(fused) as record:
            assert torch.equal(fused(images()), expected)
    assert len(record) == 4
    assert all(0.05 < float(gate.mask.float().mean()) < 0.95 for gate in record.gates)
