"""The memory of a parser in inference: what nobody reads again is written over or given back."""

import copy
from types import MethodType

import pytest
import torch
from named_networks import narrow_trunk
from networks import randomized
from torch import Tensor, nn

import perfconv
from perfconv._bench.timing import CpuClock
from perfconv.models import SceneParser, pag_resnet50
from perfconv.models.heads import SegmentationHead
from perfconv.models.resnet import Bottleneck, FeatureInfo
from perfconv.nn import GatedChain, MultiDilationPool

SIZE = (256, 320)


def parser(dtype: torch.dtype = torch.float32, **options) -> SceneParser:
    """A pool in the middle of res5, gates closed at some pixels."""
    model = pag_resnet50(trunk=narrow_trunk(depths=(1, 2, 1, 3)), **options)
    head = SegmentationHead(model.trunk.feature_info[-1], 4, hidden_channels=64)
    model.heads["segmentation"] = head
    model = randomized(model)
    generator = torch.Generator().manual_seed(0)
    for gate in perfconv.gates(model).values():
        nn.init.normal_(gate.conv.weight, std=0.5, generator=generator)
        nn.init.zeros_(gate.conv.bias)
    model = model.eval().requires_grad_(False)
    return model.to(dtype, memory_format=torch.channels_last)


def image(dtype: torch.dtype = torch.float32, size: tuple[int, int] = (128, 160)) -> Tensor:
    values = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    return values.to(dtype, memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gates_pool", [False, True])
def test_peak_of_a_gated_parser(dtype: torch.dtype, gates_pool: bool) -> None:
    """At most that of the dense network's widest block, in a compiler's hands.

    Input and output of a block of res5, and the two maps between its convolutions.
    """
    fused = perfconv.fuse(parser(dtype, gates_pool=gates_pool), inplace=True)
    images = image(dtype, SIZE)
    with torch.inference_mode():
        found = fused(images)["segmentation"]
        (channels, stride) = fused.trunk.feature_info[-1][1:]
        block = 2 * (1 + 1 / 4) * channels * SIZE[0] * SIZE[1] / stride**2 * dtype.itemsize
        assert block > found.nbytes
        assert CpuClock().peak_bytes(lambda: fused(images)) <= block


def test_a_feature_that_nobody_reads_is_given_back() -> None:
    trunk, images = narrow_trunk().eval(), image()
    clock = CpuClock()
    with torch.inference_mode():
        every = trunk(images)
        one = trunk(images, ("res5",))
        unread = sum(every[name].nbytes for name in ("res2", "res3"))
        saved = clock.peak_bytes(lambda: trunk(images)) - clock.peak_bytes(
            lambda: trunk(images, ("res5",))
        )
    assert list(every) == ["res2", "res3", "res4", "res5"]
    assert list(one) == ["res5"]
    assert torch.equal(one["res5"], every["res5"])
    assert saved >= unread


def test_features_by_name() -> None:
    with torch.inference_mode():
        trunk = narrow_trunk(16).eval()
        assert list(trunk(image(), ["res6", "res3"])) == ["res3", "res6"]
        assert list(trunk(image(), [])) == []
    with pytest.raises(ValueError, match="names must be among res2, res3, res4, res5, got 'res6'"):
        narrow_trunk()(image(), ["res6"])


@pytest.mark.parametrize("where", ["trunk", "heads.segmentation"])
def test_a_hook_sees_every_feature(where: str) -> None:
    model, seen = parser(), []

    def keep(module: nn.Module, arguments: tuple, output: dict) -> None:
        seen.append(output if where == "trunk" else arguments[0])

    model.get_submodule(where).register_forward_hook(keep)
    with torch.no_grad():
        model(image())
    assert list(seen[0]) == ["res2", "res3", "res4", "res5"]


def test_a_head_that_does_not_say_what_it_reads() -> None:
    class Sizes(nn.Module):
        def forward(self, features: dict, size: tuple) -> dict:
            return {"sizes": [tuple(feature.shape[2:]) for feature in features.values()]}

    model = SceneParser(narrow_trunk().eval(), {"sizes": Sizes()})
    assert len(model(image())["sizes"]) == 4


@pytest.mark.parametrize("says", [False, True])
def test_a_subclass_of_a_head_that_reads_more(says: bool) -> None:
    class TwoStages(SegmentationHead):
        def forward(self, features: dict, size: tuple) -> dict:
            seen.append(list(features))
            return {**super().forward(features, size), "mean": features["res3"].mean()}

    if says:
        TwoStages.reads = ("res3", "res5")
    trunk, seen = narrow_trunk().eval(), []
    model = SceneParser(trunk, {"segmentation": TwoStages(trunk.feature_info[-1], 4)}).eval()
    with torch.no_grad():
        model(image())
    assert seen == [["res3", "res5"] if says else ["res2", "res3", "res4", "res5"]]


def test_a_trunk_that_takes_images_alone() -> None:
    class Halves(nn.Module):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return {"res5": images[..., ::32, ::32]}

    head = SegmentationHead(FeatureInfo("res5", 3, 32), 4)
    model = SceneParser(Halves(), {"segmentation": head}).eval()
    assert model(image())["segmentation"].shape == (1, 4, 128, 160)


@pytest.mark.parametrize("how", ["subclass", "replaced"])
def test_a_block_without_owns_input_is_not_in_place(how: str) -> None:
    """What its forward keeps, no other block writes over."""
    kept: list[tuple[Tensor, Tensor]] = []

    def forward(self: nn.Module, input: Tensor) -> Tensor:
        output = Bottleneck.forward(self, input)
        kept.extend((value, value.clone()) for value in (input, output))
        return output

    model, images = parser(), image()
    with torch.no_grad():
        expected = perfconv.fuse(model)(images)["segmentation"]
        fused = perfconv.fuse(model, inplace=True)
        block = fused.trunk.layer4[1]
        assert type(block) is Bottleneck
        if how == "subclass":
            block.__class__ = type("Keeping", (Bottleneck,), {"forward": forward})
        else:
            block.forward = MethodType(forward, block)
        assert torch.equal(fused(images)["segmentation"], expected)
    assert len(kept) == 2
    assert all(torch.equal(*pair) for pair in kept)


@pytest.mark.parametrize("how", ["forward", "compile"])
def test_a_stage_that_is_called_in_another_way_is_called_as_a_whole(how: str) -> None:
    fused, called = perfconv.fuse(parser(), inplace=True), []
    layer, images = fused.trunk.layer4, image()
    assert type(layer) is GatedChain
    with torch.no_grad():
        expected = fused(images)["segmentation"]
        whole = layer.forward

        def counted(input: Tensor) -> Tensor:
            called.append(input)
            return whole(input)

        if how == "forward":
            layer.forward = counted
        else:
            layer._compiled_call_impl = counted  # what layer.compile() sets
        assert torch.equal(fused(images)["segmentation"], expected)
    assert len(called) == 1


def test_a_pool_before_a_batch_norm_is_followed_by_a_relu() -> None:
    block = Bottleneck(16, 4)
    block.conv2 = MultiDilationPool(4, (1, 2))
    randomized(block).eval()
    input = torch.rand(1, 16, 9, 10)
    expected = block(input)
    with torch.no_grad():
        torch.testing.assert_close(block(input), expected)


@pytest.mark.parametrize("gates_pool", [False, True])
def test_written_in_place_the_bits_are_the_same(gates_pool: bool) -> None:
    model, images = parser(gates_pool=gates_pool), image()
    before = images.clone()
    fused = perfconv.fuse(model, inplace=True)
    assert isinstance(fused.trunk.layer4, GatedChain)
    with torch.no_grad():
        expected = perfconv.fuse(model)(images)["segmentation"]
        for _ in range(2):
            assert torch.equal(fused(images)["segmentation"], expected)
    assert torch.equal(images, before)


@pytest.mark.parametrize("is_fused", [False, True])
def test_gradients_through_a_pool_whose_gate_learns_nothing(is_fused: bool) -> None:
    """The pool's own ReLU is what its gradient needs: nothing is written over it."""
    model = parser()
    if is_fused:
        model = perfconv.fuse(model, inplace=True)
    images = image().requires_grad_()
    found = model(images)["segmentation"]
    (gradient,) = torch.autograd.grad(found.sum(), images)
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        torch.testing.assert_close(model(images)["segmentation"], found)


@pytest.mark.parametrize("gates_pool", [False, True])
@pytest.mark.parametrize(
    ("where", "kept"),
    [("layer3", "output"), ("layer4", "input"), ("layer4", "output"), ("layer4.0", "output"),
     ("layer4.1", "input"), ("layer4.1", "output"), ("layer4.1.conv1", "input"),
     ("layer4.1.conv2", "input"), ("layer4.2", "input"), ("layer4.2", "output")],
)  # fmt: skip
def test_what_a_hook_keeps_is_not_written_over(where: str, kept: str, gates_pool: bool) -> None:
    model = parser(gates_pool=gates_pool)
    fused, seen = perfconv.fuse(model, inplace=True), []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        value = inputs[0] if kept == "input" else output
        seen.append((value, value.clone()))

    fused.get_submodule(f"trunk.{where}").register_forward_hook(keep)
    with torch.no_grad():
        expected = perfconv.fuse(model)(image())["segmentation"]
        assert torch.equal(fused(image())["segmentation"], expected)
    assert len(seen) == 1
    assert torch.equal(*seen[0])


def test_compiled_and_traced_in_place() -> None:
    fused = perfconv.fuse(parser(), inplace=True)
    images = image(size=(33, 40))
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(fused), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        expected = fused(images)["segmentation"]
        torch.testing.assert_close(compiled(images)["segmentation"], expected)
        stacked = torch.stack([images, images])
        found = torch.func.vmap(fused)(stacked)["segmentation"]
        torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=1e-4)
