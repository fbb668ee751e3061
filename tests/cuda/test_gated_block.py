"""gated_block on CUDA: the bits of its stages one after another."""

import pytest
import torch
from cuda_backend import Backend
from helpers import random_mask, relayout
from torch import Tensor

SIZE = (9, 11)
BRANCHES = {  # (in, out, kernel, stride) of each stage
    "bottleneck": ((16, 16, 1, 1), (16, 16, 3, 1), (16, 16, 1, 1)),
    "stride": ((16, 16, 1, 1), (16, 16, 3, 2), (16, 24, 1, 1)),
    "basic": ((16, 24, 3, 1), (24, 16, 3, 1)),
}


def operands(name: str, layout: str) -> tuple[Tensor, Tensor | None, list[Tensor], list[Tensor]]:
    """Input, shortcut of a projection, weights, biases."""
    generator = torch.Generator().manual_seed(1)
    branch = BRANCHES[name]
    weights = [torch.randn(c, d, k, k, generator=generator) / 10 for d, c, k, _ in branch]
    biases = [torch.randn(c, generator=generator) for _, c, _, _ in branch]
    input = relayout(torch.randn(2, 16, *SIZE, generator=generator), layout)
    shortcut = torch.randn(2, 24, 5, 6, generator=generator) if name == "stride" else None
    return input, None if shortcut is None else relayout(shortcut, layout), weights, biases


def numbers(name: str) -> list[list[int]]:
    """stride, padding, dilation, groups."""
    branch = BRANCHES[name]
    strides = [stride for *_, stride in branch for _ in range(2)]
    paddings = [kernel // 2 for _, _, kernel, _ in branch for _ in range(2)]
    return [strides, paddings, [1] * 2 * len(branch), [1] * len(branch)]


def by_stages(
    backend: Backend, name: str, input: Tensor, shortcut: Tensor | None, weights: list,
    biases: list, mask: Tensor,
) -> Tensor:  # fmt: skip
    branch = BRANCHES[name]
    masks = [mask]
    for _, _, kernel, stride in branch[:0:-1]:  # what comes before a larger kernel is of SIZE
        expanded = masks[0]
        if kernel > 1:
            expanded = backend.ops.expand_mask(
                masks[0], [kernel] * 2, [stride] * 2, [kernel // 2] * 4, [1, 1], list(SIZE)
            )
        masks.insert(0, expanded)
    features = input
    base = input if shortcut is None else shortcut
    for i, (_, _, kernel, stride) in enumerate(branch):
        is_last = i + 1 == len(branch)
        features = backend.ops.perforated_conv2d(
            features, weights[i], masks[i], biases[i], base if is_last else None,
            base if is_last else None, stride=[stride] * 2, padding=[kernel // 2] * 4,
            fill="passthrough" if is_last else "zero", activation="relu",
            activate_base=is_last and shortcut is not None,
        )  # fmt: skip
    return features


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", BRANCHES)
def test_equals_its_stages(backend: Backend, name: str, density: float, layout: str) -> None:
    input, shortcut, weights, biases = operands(name, layout)
    input, shortcut, *layers = backend.to(input, shortcut, *weights, *biases)
    weights, biases = layers[: len(weights)], layers[len(weights) :]
    (mask,) = backend.to(
        random_mask(2, 1, *(SIZE if shortcut is None else (5, 6)), density=density, seed=2)
    )
    expected = by_stages(backend, name, input, shortcut, weights, biases, mask)
    rest = (weights, biases, [], *numbers(name), "relu", "relu")
    found, decided = backend.ops.gated_block(input, shortcut, mask, None, None, *rest)
    assert decided.numel() == 0
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride()
    base = (input if shortcut is None else shortcut).clone()
    given = None if shortcut is None else input
    backend.ops.gated_block_into(base, given, mask, None, None, *rest)
    assert torch.equal(base, expected)
    if density == 0.3 and layout == "channels_last":  # one mask for both images
        base = (input if shortcut is None else shortcut).clone()
        backend.ops.gated_block_into(base, given, mask[:1], None, None, *rest)
        found, _ = backend.ops.gated_block(input, shortcut, mask[:1].repeat(2, 1, 1, 1), None,
                                           None, *rest)  # fmt: skip
        assert torch.equal(base, found)


@pytest.mark.parametrize("name", ["bottleneck", "stride"])
def test_a_gate_decides(backend: Backend, name: str) -> None:
    input, shortcut, weights, biases = operands(name, "channels_last")
    gate = torch.randn(2, 16, 1, 1, generator=torch.Generator().manual_seed(3)), torch.zeros(2)
    input, shortcut, *layers = backend.to(input, shortcut, *weights, *biases)
    gate_weight, gate_bias = backend.to(*gate)
    step = 1 if shortcut is None else 2
    seen = input[:, :, ::step, ::step]
    _, mask, *_ = backend.ops.gate_mask(seen, gate_weight, gate_bias, False)
    rest = (layers[: len(weights)], layers[len(weights) :], [], *numbers(name), "relu", "relu")
    expected, _ = backend.ops.gated_block(input, shortcut, mask, None, None, *rest)
    found, decided = backend.ops.gated_block(input, shortcut, None, gate_weight, gate_bias, *rest)
    assert torch.equal(decided, mask)
    assert torch.equal(found, expected)


def test_errors_are_those_of_the_cpu(backend: Backend) -> None:
    input, _, weights, biases = operands("bottleneck", "channels_last")
    (input,) = backend.to(input)
    rest = (backend.to(*weights), backend.to(*biases), [], *numbers("bottleneck"), "relu", "relu")
    with pytest.raises(ValueError, match="either mask or gate_weight must be given, got neither"):
        backend.ops.gated_block(input, None, None, None, None, *rest)
    with pytest.raises(ValueError, match="base must be"):
        backend.ops.gated_block_into(input[0], None, None, None, None, *rest)
