"""Every named network through torch's compilers and exporters, in bfloat16, and in ONNX Runtime."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from named_networks import VARIANTS, inputs, named, network
from no_waiting import NoWaiting
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import perfconv
import perfconv.onnx
from perfconv.losses import density_loss

Run = Callable[..., object]


def tensors(outputs: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def assert_same(found: object, wanted: object, tolerance: float = 1e-4) -> None:
    """By norm, so that a decision that falls otherwise at one pixel near a tie does not matter."""
    pairs = list(zip(tensors(found), tensors(wanted), strict=True))
    assert pairs
    for result, exact in pairs:
        assert result.shape == exact.shape
        error = (result.double() - exact.double()).norm()
        assert error <= tolerance * exact.double().norm()


def compiled(model: nn.Module, arguments: tuple, backend: str = "aot_eager") -> object:
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend=backend)(*arguments)


def exported(model: nn.Module, arguments: tuple) -> object:
    return torch.export.export(model, arguments).module()(*arguments)


def in_onnxruntime(folder: Path, model: nn.Module, arguments: tuple) -> list[Tensor]:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    perfconv.onnx.export(model, arguments, folder / "network.onnx")
    session = runtime.InferenceSession(str(folder / "network.onnx"))
    named = {
        entry.name: value.numpy()
        for entry, value in zip(session.get_inputs(), arguments, strict=True)
    }
    return [torch.from_numpy(values) for values in session.run(None, named)]


def in_aot_inductor(folder: Path, model: nn.Module, arguments: tuple) -> object:
    program = torch.export.export(model, arguments)
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(folder / "network.pt2")
    )
    return torch._inductor.aoti_load_package(path)(*arguments)


def check(variant, run: Run, tolerance: float = 1e-4) -> None:
    model, arguments = network(variant), inputs(variant)
    with torch.no_grad():
        assert_same(run(model, arguments), model(*arguments), tolerance)


# ---- one of each, always -------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.call)
def test_bfloat16_autocast(variant) -> None:
    def run(model: nn.Module, arguments: tuple) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return model(*arguments)

    check(variant, run, tolerance=0.1)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.call)
def test_weights_in_bfloat16(variant) -> None:
    """All of it, without autocast: wide in between where torch has no 16 bits."""
    model = network(variant).bfloat16()
    with torch.no_grad():
        outputs = tensors(model(*(argument.bfloat16() for argument in inputs(variant))))
    assert outputs
    assert all(output.isfinite().all() for output in outputs)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.call)
def test_nothing_waits_for_a_device(variant) -> None:
    """Neither inference nor a training step: what a CUDA graph needs of the code above operators.

    The operators themselves: tests/cuda/test_graphs.py.
    """
    model, arguments = network(variant), inputs(variant)
    with torch.no_grad(), NoWaiting():
        model(*arguments)
    model.train().requires_grad_(True)
    model(*arguments)  # a gate looks for saturation in its first call and every 64th
    with NoWaiting(), perfconv.record_gates(model) as record:
        losses = [output.float().square().mean() for output in tensors(model(*arguments))]
        if record:
            losses.append(density_loss(record, 0.5))
        torch.stack(losses).sum().backward()


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: x + torch.tensor([1.0]),
        lambda x: x[x > 0],
        lambda x: x.index_put((x > 0,), x.sum()),
        lambda x: x.nonzero(),
    ],
    ids=["item", "tensor", "index", "index_put", "nonzero"],
)
def test_waiting_is_noticed(waits: Run) -> None:
    with NoWaiting(), pytest.raises(AssertionError):
        waits(torch.arange(3.0))


def test_onnx_of_gated_blocks(tmp_path: Path) -> None:
    """A gated block, and one that holds a pool: what a gated network is made of."""
    blocks = network(named("pag_resnet50(gates_pool=True)")).trunk.layer4
    features = torch.rand(1, blocks[0].conv1.in_channels, 5, 6)
    with torch.no_grad():
        wanted = blocks(features)
        assert_same(in_onnxruntime(tmp_path, blocks, (features,)), wanted)


# ---- all of them ---------------------------------------------------------------------------------

# On the narrow trunk the blocks that are dropped are the same two, and 101 layers as many as 50.
REPEATED = [v.call for v in VARIANTS if "dropped" in v.options][1:]
REPEATED += ["pag_resnet101()", "depth_aware_resnet101(weighting='true_depth')"]
every = pytest.mark.parametrize(
    "variant",
    [variant for variant in VARIANTS if variant.call not in REPEATED],
    ids=lambda variant: variant.call,
)


@pytest.mark.slow
@every
def test_compile(variant) -> None:
    check(variant, compiled)


@pytest.mark.slow
@every
def test_export_and_onnx(variant, tmp_path: Path) -> None:
    check(variant, exported)
    check(variant, partial(in_onnxruntime, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        "pag_resnet50(gates_pool=True)",
        "multi_scale_resnet50()",
        "depth_aware_resnet50(assignment='hard')",
        "recurrent_depth_resnet50(loops=1, loop_weighting='true_depth')",
    ],
)
def test_aot_inductor(call: str, tmp_path: Path) -> None:
    """A family each: gates and pool, scales, one launch, loops with true depth."""
    check(named(call), partial(in_aot_inductor, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("call", ["pag_resnet50(gates_pool=True)", "layer_skipping_resnet50()"])
def test_compile_by_the_default_backend(call: str) -> None:
    """Inductor, as torch.compile(model) has it. Its C++ compiler is what takes time."""
    check(named(call), partial(compiled, backend="inductor"))


# ---- the export itself ---------------------------------------------------------------------------


@pytest.mark.slow
def test_dynamic_sizes_of_a_fused_network(tmp_path: Path) -> None:
    variant = named("pag_resnet50(gates_pool=True)")
    model = network(variant)
    shapes = {axis: 8 * torch.export.Dim(f"side{axis}", min=3, max=64) for axis in (2, 3)}
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    path = tmp_path / "network.onnx"
    images = torch.rand(1, 3, 40, 48)
    perfconv.onnx.export(perfconv.fuse(model), (images,), path, dynamic_shapes=(shapes,))
    session = runtime.InferenceSession(str(path))
    for size in ((40, 48), (32, 64)):
        images = torch.rand(1, 3, *size)
        found = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            assert_same([torch.from_numpy(values) for values in found], model(images))


def test_refused_exports(tmp_path: Path) -> None:
    model, arguments = network(named("pag_resnet50()")), inputs(named("pag_resnet50()"))
    with pytest.raises(ValueError, match="must be in eval mode, got one in training mode"):
        perfconv.onnx.export(model.train(), arguments, tmp_path / "network.onnx")
    fused = perfconv.fuse(model.eval().trunk.layer2, inplace=True)
    features = torch.rand(1, fused[0].conv1.in_channels, 5, 6)
    with pytest.raises(
        ValueError, match=r"runs perfconv.perforated_conv2d_into.* Export it before"
    ):
        perfconv.onnx.export(fused, (features,), tmp_path / "network.onnx")
    assert not list(tmp_path.iterdir())


def test_an_operator_without_a_dense_form() -> None:
    class Gathers(nn.Module):
        def forward(self, input: Tensor, mask: Tensor) -> Tensor:
            return perfconv.gather_pixels(input, perfconv.compact_mask(mask))

    arguments = torch.rand(1, 2, 4, 4), torch.rand(1, 1, 4, 4) < 0.5
    with pytest.raises(ValueError, match="a model that runs perfconv.gather_pixels"):
        perfconv.onnx.dense_program(Gathers().eval(), arguments)
