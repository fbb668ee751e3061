"""CUDA graphs: one capture serves every later mask, from empty to full, and updated weights.

Needs a GPU. A host synchronisation makes a capture fail: these tests also show that there is none.
"""

import pytest
import torch
from helpers import random_mask
from named_networks import inputs, named, network
from torch import Tensor
from torch.utils._pytree import tree_leaves

import perfconv
from perfconv import PerforatedConv2d
from perfconv.nn.captured import CapturedCall
from perfconv.nn.captured import graph_of as capture
from perfconv.ops import perforated_conv2d_into

pytestmark = pytest.mark.cuda

DENSITIES = (0.0, 0.02, 0.4, 1.0, 0.3, 0.0, 1.0)
SHAPE = (2, 64, 23, 29)
ALGORITHMS = ("direct", "gather_gemm", "implicit_gemm")
FILLS = ("zero", "passthrough", "nearest")


def masks(device: torch.device) -> list[Tensor]:
    return [
        random_mask(2, 1, *SHAPE[2:], density=density, seed=seed).to(device)
        for seed, density in enumerate(DENSITIES)
    ]


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


@pytest.mark.parametrize("captured_density", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("fill", FILLS)
def test_forward_replays_with_other_masks(
    gpu: torch.device, fill: str, algorithm: str, dtype: torch.dtype, captured_density: float
) -> None:
    input = draw(*SHAPE, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = draw(64, 64, 3, 3, dtype=dtype), draw(64, dtype=dtype)
    base = draw(*SHAPE, dtype=dtype) if fill == "passthrough" else None
    mask = random_mask(2, 1, *SHAPE[2:], density=captured_density).to(gpu)
    results = {}

    def call() -> Tensor:
        return perfconv.perforated_conv2d(
            input, weight, mask, bias, padding=1, fill=fill, base=base, activation="relu",
            algorithm=algorithm,
        )  # fmt: skip

    graph = capture(lambda: results.update(output=call()))
    for other in masks(gpu):
        mask.copy_(other)
        graph.replay()
        assert torch.equal(results["output"], call())


@pytest.mark.parametrize("captured_density", [0.0, 0.4, 1.0])
def test_bottleneck_replays_with_other_masks(gpu: torch.device, captured_density: float) -> None:
    """1x1 on the halo, 3x3, 1x1 + residual, in images whose inactive pixels nobody writes."""
    input = draw(*SHAPE, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
    weights = [draw(64, 64, side, side, dtype=torch.bfloat16) for side in (1, 3, 1)]
    mask = random_mask(2, 1, *SHAPE[2:], density=captured_density).to(gpu)
    results = {}

    def call() -> Tensor:
        halo = perfconv.expand_mask(mask, 3, padding=1)
        options = {"fill": "none", "activation": "relu", "algorithm": "implicit_gemm"}
        first = perfconv.perforated_conv2d(input, weights[0], halo, **options)
        second = perfconv.perforated_conv2d(first, weights[1], mask, padding=1, **options)
        return perforated_conv2d_into(
            input.clone(), second, weights[2], mask, adds_base=True, activation="relu",
            algorithm="implicit_gemm",
        )  # fmt: skip

    with torch.no_grad():
        graph = capture(lambda: results.update(output=call()))
        for other in masks(gpu):
            mask.copy_(other)
            graph.replay()
            assert torch.equal(results["output"], call())


@pytest.mark.parametrize("captured_density", [0.0, 0.4, 1.0])
def test_pooling_replays_with_other_choices(gpu: torch.device, captured_density: float) -> None:
    """Multi-dilation convolution and its gradients, from no active pixel to all of them."""
    input, weight = draw(*SHAPE, dtype=torch.bfloat16), draw(64, 64, 3, 3, dtype=torch.bfloat16)
    wanted = (input.requires_grad_(), weight.requires_grad_())
    drawn = torch.randint(4, (2, 1, *SHAPE[2:]), device=gpu, dtype=torch.int32)
    choice = torch.where(
        random_mask(2, 1, *SHAPE[2:], density=captured_density).to(gpu), drawn, -1
    ).int()
    results = {}

    def call() -> tuple[Tensor, ...]:
        output = perfconv.multi_dilation_conv2d(input, weight, choice, dilations=(0, 1, 2, 40))
        return output.detach(), *torch.autograd.grad(output, wanted, input.detach())

    graph = capture(lambda: results.update(outputs=call()))
    for other in masks(gpu):
        choice.copy_(torch.where(other, drawn, -1))
        graph.replay()
        for found, expected in zip(results["outputs"], call(), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("captured_density", [0.0, 0.4, 1.0])
def test_mask_operators_replay_with_other_masks(gpu: torch.device, captured_density: float) -> None:
    """Compaction, halo, rows of active pixels, nearest fill and its gradient."""
    image, mask = draw(*SHAPE), random_mask(2, 1, *SHAPE[2:], density=captured_density).to(gpu)
    results = {}

    def call() -> tuple[Tensor, ...]:
        active = perfconv.compact_mask(mask)
        rows = perfconv.gather_pixels(image, active)
        return (
            *active, rows, perfconv.scatter_pixels(rows, active, -image),
            perfconv.expand_mask(mask, 3, padding=1, dilation=2, input_size=(25, 31)),
            torch.ops.perfconv.nearest_fill(image, mask),
            torch.ops.perfconv.nearest_fill_grad(image, mask),
        )  # fmt: skip

    graph = capture(lambda: results.update(outputs=call()))
    for other in masks(gpu):
        mask.copy_(other)
        graph.replay()
        for found, expected in zip(results["outputs"], call(), strict=True):
            assert torch.equal(found, expected)


def test_gate_replays_with_other_inputs(gpu: torch.device) -> None:
    """The input decides the mask: biases from no active pixel to all of them."""
    input, weight, bias = draw(*SHAPE), draw(2, 64), draw(2)
    results = {}

    def call() -> tuple[Tensor, ...]:
        return torch.ops.perfconv.gate_mask(input, weight, bias, True)

    graph = capture(lambda: results.update(outputs=call()))
    for offset in (-100.0, 0.0, 100.0, 0.0, -100.0):
        input.copy_(draw(*SHAPE))
        bias[1] = bias[0] + offset
        graph.replay()
        for found, expected in zip(results["outputs"], call(), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_replay_sees_updated_weights(gpu: torch.device, dtype: torch.dtype) -> None:
    """In place, as fused optimisers and .data writes do: no copy of the weight is kept."""
    layer = PerforatedConv2d(64, 64, 3, padding=1).to(gpu, dtype).eval()
    input, mask = draw(*SHAPE, dtype=dtype), masks(gpu)[2]
    results = {}
    with torch.no_grad():
        graph = capture(lambda: results.update(output=layer(input, mask)))
        before = results["output"].clone()
        layer.weight.mul_(-2)
        layer.weight.data[:, 0] += 1
        graph.replay()
        assert torch.equal(results["output"], layer(input, mask))
        assert not torch.equal(results["output"], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_training_steps_replay(gpu: torch.device, dtype: torch.dtype) -> None:
    """Forward, backward and an update in one graph equal the same steps taken one by one."""
    torch.manual_seed(0)
    first, second = (PerforatedConv2d(64, 64, 3, padding=1).to(gpu, dtype) for _ in range(2))
    second.load_state_dict(first.state_dict())
    input, grad = draw(*SHAPE, dtype=dtype), draw(*SHAPE, dtype=dtype)
    mask = masks(gpu)[2].clone()

    def step(layer: PerforatedConv2d) -> None:
        wanted = (layer.weight, layer.bias)
        gradients = torch.autograd.grad(layer(input, mask), wanted, grad)
        with torch.no_grad():
            for parameter, gradient in zip(wanted, gradients, strict=True):
                parameter.sub_(gradient, alpha=1e-3)

    graph = capture(lambda: step(first))
    second.load_state_dict(first.state_dict())
    for other in masks(gpu):
        mask.copy_(other)
        graph.replay()
        step(second)
        assert torch.equal(first.weight, second.weight)
        assert torch.equal(first.bias, second.bias)


@pytest.mark.parametrize("fuses", [False, True], ids=["as built", "fused"])
@pytest.mark.parametrize(
    "call",
    [
        "pag_resnet50(gates_pool=True)",
        "layer_skipping_resnet50()",
        "depth_aware_resnet50(assignment='hard')",
        "recurrent_depth_resnet50(loops=1, loop_weighting='true_depth')",
    ],
)
def test_networks_replay_with_other_images(gpu: torch.device, call: str, fuses: bool) -> None:
    """Gates of pixels and images, both kinds of pools, loops; tests/models has the code above."""
    model = network(named(call)).to(gpu)
    if fuses:
        model = perfconv.fuse(model, inplace=True)
    captured = CapturedCall(model, *(argument.to(gpu) for argument in inputs(named(call))))
    for seed in range(2, 5):
        drawn = inputs(named(call), seed)
        with torch.no_grad():
            expected = tree_leaves(model(*(argument.to(gpu) for argument in drawn)))
        found = tree_leaves(captured(*drawn))
        for one, other in zip(found, expected, strict=True):
            if isinstance(other, Tensor):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_no_synchronisation(gpu: torch.device) -> None:
    """Neither forward nor backward waits for the device (outside of a graph too)."""
    layer = PerforatedConv2d(64, 64, 3, padding=1).to(gpu)
    input, mask = draw(*SHAPE).requires_grad_(), masks(gpu)[2]
    layer(input, mask).sum().backward()  # allocations and lazy loading are done
    torch.cuda.set_sync_debug_mode("error")
    try:
        layer(input, perfconv.compact_mask(mask)).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
