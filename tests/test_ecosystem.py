"""torch.compile, torch.export, AOTInductor and autocast, forwards and backwards."""

import copy
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from helpers import Problem, random_mask
from torch import Tensor, nn

import perfconv


class Network(nn.Module):
    """A perforated layer with every epilogue between two dense ones; the mask is an argument."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = perfconv.PerforatedConv2d(8, 8, 3, padding=1, fill="passthrough")
        self.weight = nn.Parameter(torch.randn(8, 8, 3, 3) / 9)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, input: Tensor, mask: Tensor) -> Tensor:
        features = self.middle(F.relu(self.first(input)), mask)
        features = perfconv.perforated_conv2d(
            features, self.weight, mask, padding="same", residual=features, activation="hardswish",
            fill="nearest",
        )  # fmt: skip
        return self.last(features)


def gradients(model: nn.Module, output: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(output.square().mean(), list(model.parameters())))


def assert_same_results(model: nn.Module, other: object, *arguments: Tensor, **tolerance) -> None:
    expected, found = model(*arguments), other(*arguments)
    torch.testing.assert_close(found, expected, **tolerance)
    for result, exact in zip(gradients(model, found), gradients(model, expected), strict=True):
        torch.testing.assert_close(result, exact, **tolerance)


# ---- torch.compile -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "layout"),
    [
        ("aot_eager", torch.contiguous_format),
        ("aot_eager", torch.channels_last),
        pytest.param("inductor", torch.contiguous_format, marks=pytest.mark.slow),
        ("inductor", torch.channels_last),
    ],
    ids=str,
)
def test_compile_with_changing_masks(backend: str, layout: torch.memory_format) -> None:
    """Whole graph, forwards and backwards, one compilation for every mask."""
    model = Network().to(memory_format=layout)
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    input = torch.randn(2, 3, 12, 14).contiguous(memory_format=layout)
    for density in (0.4, 0.0, 1.0, 0.1):
        mask = random_mask(2, 1, 12, 14, density=density)
        assert_same_results(model, compiled, input, mask, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


def test_compile_in_inference() -> None:
    model = Network().eval()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    input = torch.randn(2, 3, 12, 14)
    with torch.no_grad():
        for seed in range(3):
            mask = random_mask(2, 1, 12, 14, seed=seed)
            torch.testing.assert_close(compiled(input, mask), model(input, mask))
    assert counter.frame_count == 1


def test_compile_with_dynamic_sizes() -> None:
    """A second size makes the graph dynamic; a third compiles nothing more."""
    model = Network()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    for batch, height, width in ((2, 12, 14), (3, 16, 10), (4, 9, 21)):
        input = torch.randn(batch, 3, height, width)
        mask = random_mask(batch, 1, height, width)
        assert_same_results(model, compiled, input, mask)
    assert counter.frame_count == 2


def test_compile_of_masks_made_in_the_graph() -> None:
    """Compaction, halo, other resolutions, gather and scatter, without a graph break."""

    def function(scores: Tensor, input: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        mask = perfconv.downsample_mask(scores > 0, 2)
        active = perfconv.compact_mask(mask)
        output = perfconv.perforated_conv2d(input, weight, active, padding=1, stride=2)
        rows = perfconv.gather_pixels(output, active)
        halo = perfconv.expand_mask(mask, 3, padding=1, stride=2, input_size=(12, 14))
        return perfconv.scatter_pixels(rows.relu(), active), halo, perfconv.density(active)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    weight = torch.randn(5, 8, 3, 3, requires_grad=True)
    for seed in range(3):
        torch.manual_seed(seed)
        arguments = torch.randn(2, 1, 12, 14), torch.randn(2, 8, 12, 14), weight
        for found, expected in zip(compiled(*arguments), function(*arguments), strict=True):
            assert torch.equal(found, expected)
        grads = [torch.autograd.grad(f(*arguments)[0].sum(), weight) for f in (compiled, function)]
        torch.testing.assert_close(*grads)


def test_compile_of_a_gate() -> None:
    """The gate's mask feeds a layer and its soft output the loss; one compilation for all data."""

    def function(input: Tensor, gate: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
        active, soft = perfconv.gate_mask(input, gate, bias)
        return perfconv.perforated_conv2d(input, weight, active, padding=1) * soft

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, fullgraph=True, backend=counter)
    torch.manual_seed(0)
    leaves = [torch.randn(2, 8, requires_grad=True), torch.randn(2, requires_grad=True),
              torch.randn(5, 8, 3, 3, requires_grad=True)]  # fmt: skip
    for offset in (0.0, 100.0, -100.0):  # some pixels active, all, none
        input = torch.randn(2, 8, 9, 11)
        arguments = (input, leaves[0], leaves[1] + torch.tensor([0.0, offset]), leaves[2])
        results = [each(*arguments) for each in (compiled, function)]
        torch.testing.assert_close(*results)
        grads = [torch.autograd.grad(result.square().sum(), leaves) for result in results]
        torch.testing.assert_close(*grads)
    assert counter.frame_count == 1


def test_export_of_a_gate() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.layer = nn.Conv2d(8, 2, 1), perfconv.PerforatedConv2d(8, 4, 3)

        def forward(self, input: Tensor) -> Tensor:
            active, _ = perfconv.gate_mask(input, self.gate.weight, self.gate.bias)
            return self.layer(F.pad(input, (1, 1, 1, 1)), active)

    model = Gated().requires_grad_(False)
    batch = torch.export.Dim("N", min=2, max=64)
    module = torch.export.export(
        model, (torch.randn(2, 8, 9, 11),), dynamic_shapes=({0: batch},)
    ).module()
    for size in (2, 5):
        input = torch.randn(size, 8, 9, 11)
        torch.testing.assert_close(module(input), model(input))


# ---- torch.export, AOTInductor -------------------------------------------------------------------


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("N", "H", "W"))
    shapes = {0: batch, 2: height, 3: width}
    arguments = torch.randn(2, 3, 12, 14), random_mask(2, 1, 12, 14)
    return torch.export.export(model, arguments, dynamic_shapes=(shapes, shapes))


def test_export_with_dynamic_shapes() -> None:
    model = Network()
    module = exported(model).module()
    for batch, height, width in ((2, 12, 14), (3, 9, 20)):
        input, mask = torch.randn(batch, 3, height, width), random_mask(batch, 1, height, width)
        torch.testing.assert_close(module(input, mask), model(input, mask))


def test_training_the_exported_module() -> None:
    model = Network()
    module = exported(copy.deepcopy(model)).module()
    names = [name for name, _ in module.named_parameters()]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    input, mask = torch.randn(3, 3, 10, 12), random_mask(3, 1, 10, 12)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.05) for each in (model, module)]
    losses = []
    for _ in range(3):
        for each, optimizer in zip((model, module), optimizers, strict=True):
            loss = each(input, mask).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[0::2] == pytest.approx(losses[1::2], rel=1e-4)
    assert losses[-1] < losses[0]


def test_save_and_load_an_export(tmp_path: Path) -> None:
    model = Network()
    torch.export.save(exported(model), tmp_path / "network.pt2")
    module = torch.export.load(tmp_path / "network.pt2").module()
    input, mask = torch.randn(3, 3, 10, 12), random_mask(3, 1, 10, 12)
    torch.testing.assert_close(module(input, mask), model(input, mask))


@pytest.mark.slow
def test_aot_inductor(tmp_path: Path) -> None:
    model = Network().eval()
    with torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(
            exported(model), package_path=str(tmp_path / "network.pt2")
        )
        loaded = torch._inductor.aoti_load_package(path)
        for batch, height, width in ((2, 12, 14), (3, 9, 20)):
            input, mask = torch.randn(batch, 3, height, width), random_mask(batch, 1, height, width)
            torch.testing.assert_close(
                loaded(input, mask), model(input, mask), rtol=1e-4, atol=1e-5
            )


# ---- autocast, profiler --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    """As the dense layer: the result in the low dtype, gradients in the parameters' own."""
    model = Network()
    input, mask = torch.randn(2, 3, 12, 14), random_mask(2, 1, 12, 14)
    expected = model(input, mask)
    with torch.autocast("cpu", dtype):
        found = model(input, mask)
        mixed = perfconv.perforated_conv2d(
            torch.randn(2, 8, 12, 14).to(dtype), model.weight, mask, padding=1
        )
    assert found.dtype == mixed.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.05)
    for parameter, grad in zip(model.parameters(), gradients(model, found), strict=True):
        assert grad.dtype == parameter.dtype
        assert grad.isfinite().all()


def test_autocast_compiled() -> None:
    model = Network()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    input, mask = torch.randn(2, 3, 12, 14), random_mask(2, 1, 12, 14)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(input, mask), model(input, mask), rtol=0.02, atol=0.02)


def test_autocast_leaves_float64_alone() -> None:
    tensors = Problem().tensors(torch.float64)
    arguments = tensors["input"], tensors["weight"], tensors["mask"]
    with torch.autocast("cpu", torch.bfloat16):
        assert perfconv.perforated_conv2d(*arguments, padding=1).dtype == torch.float64


def test_operators_have_names_in_the_profiler() -> None:
    tensors = Problem().tensors(torch.float32)
    with torch.profiler.profile() as profile:
        perfconv.perforated_conv2d(
            tensors["input"], tensors["weight"].requires_grad_(), tensors["mask"], padding=1
        ).sum().backward()
        perfconv.perforated_conv2d(
            tensors["input"].requires_grad_(), tensors["weight"], tensors["mask"], padding=1
        ).sum().backward()
    names = {event.key for event in profile.key_averages()}
    expected = {"perforated_conv2d", "perforated_conv2d_wgrad", "perforated_conv2d_backward"}
    assert {f"perfconv::{name}" for name in expected} <= names


def test_meta_tensors() -> None:
    """Shapes without data, as for a model built on the meta device."""
    input, mask = torch.empty(2, 3, 12, 14, device="meta"), random_mask(2, 1, 12, 14).to("meta")
    assert Network().to("meta")(input, mask).shape == (2, 4, 12, 14)
