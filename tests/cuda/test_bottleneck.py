"""A bottleneck (1x1 on the halo, 3x3, 1x1 + residual) touches active pixels only.

Each convolution writes into an image that is NaN before, as addressed as a dense one: what is
inactive stays NaN, and no later step reads it.
"""

import pytest
import torch
from cuda_backend import Backend
from helpers import random_mask
from planted_faults import template_of
from torch import Tensor

CHANNELS, INNER, SIZE = 32, 16, (11, 13)
DTYPES = (torch.float32, torch.bfloat16)
LAYERS = ("first", "second", "third")


def operands(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = {
        "input": (2, CHANNELS, *SIZE),
        "first": (INNER, CHANNELS, 1, 1),
        "second": (INNER, INNER, 3, 3),
        "third": (CHANNELS, INNER, 1, 1),
    }
    values = {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()
    }
    return {k: v.contiguous(memory_format=torch.channels_last) for k, v in values.items()}


def masks(backend: Backend, density: float) -> tuple[Tensor, Tensor]:
    """Of the block, with fewer active pixels in the second image, and its halo."""
    mask = random_mask(2, 1, *SIZE, density=density, seed=3)
    mask[1, :, : SIZE[0] // 2] = density == 1
    (mask,) = backend.to(mask)
    return mask, backend.ops.expand_mask(mask, [3, 3], [1, 1], [1] * 4, [1, 1], list(SIZE))


def launches(backend: Backend) -> list[str]:
    """What the last call launched: grid and block, and the name of the kernel."""
    if backend.emulator is None:
        return []
    lines = backend.emulator.text("log").splitlines()
    return [f"{line.rsplit(' ', 1)[0]} {template_of(line)}" for line in lines]


def chain(
    backend: Backend, values: dict, mask: Tensor, halo: Tensor
) -> tuple[dict[str, Tensor], list[str]]:
    """The images after the three layers, and what they launched."""
    input, *weights = backend.to(*(values[name] for name in ("input", *LAYERS)))
    inner = input.new_full((2, INNER, *SIZE), torch.nan)
    images = {"first": inner.contiguous(memory_format=torch.channels_last)}
    images |= {"second": images["first"].clone(), "third": input.clone()}
    steps = zip(LAYERS, weights, (halo, mask, mask), (input, *images.values()), strict=False)
    launched = []
    for name, weight, active, source in steps:
        active_idx, count, _ = backend.ops.compact_mask(active)
        backend.ops.perforated_conv2d_into(
            images[name], source, weight, active, None, active_idx, count,
            padding=[weight.size(-1) // 2] * 4, activation="relu",
            adds_base=name == "third", algorithm="implicit_gemm",
        )  # fmt: skip
        launched += launches(backend)
    return {name: image.cpu() for name, image in images.items()}, launched


def filled_chain(backend: Backend, values: dict, mask: Tensor, halo: Tensor) -> Tensor:
    """The same in images of their own, filled with zeros."""
    value, residual = None, None
    (image,) = backend.to(values["input"])
    for name, active in zip(LAYERS, (halo, mask, mask), strict=True):
        (weight,) = backend.to(values[name])
        (residual,) = backend.to(values["input"] if name == "third" else None)
        value = backend.ops.perforated_conv2d(
            image if value is None else value, weight, active, None, None, residual,
            padding=[weight.size(-1) // 2] * 4, activation="relu", algorithm="implicit_gemm",
        )  # fmt: skip
    return value.cpu()


def bits(value: Tensor) -> Tensor:
    return value.contiguous().view(torch.int32 if value.element_size() == 4 else torch.int16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.03, 0.3, 1.0])
def test_inactive_pixels_are_neither_read_nor_written(
    backend: Backend, density: float, dtype: torch.dtype
) -> None:
    values = operands(dtype)
    mask, halo = masks(backend, density)
    expected = filled_chain(backend, values, mask, halo)
    assert expected.isfinite().all()
    is_halo, is_active = halo.cpu(), mask.cpu()
    poisoned = {**values, "input": torch.where(is_halo, values["input"], torch.nan)}
    images, _ = chain(backend, poisoned, mask, halo)
    result = images["third"]
    assert torch.equal(torch.where(is_active, result, 0), torch.where(is_active, expected, 0))
    assert torch.equal(bits(result)[~is_active.expand_as(result)],
                       bits(poisoned["input"])[~is_active.expand_as(result)])  # fmt: skip
    for name, active in (("first", is_halo), ("second", is_active)):
        assert torch.equal(images[name].isfinite(), active.expand_as(images[name]))


def test_same_launches_for_any_mask_and_no_fill(backend: Backend) -> None:
    """So that a graph of them serves every mask; two kernels a layer."""
    if backend.emulator is None:
        pytest.skip("the emulator keeps a log of kernels; test_graphs.py replays the chain")
    values = operands(torch.bfloat16)
    found = [chain(backend, values, *masks(backend, density))[1] for density in (0.0, 0.3, 1.0)]
    kernels = [line.split()[-1] for line in found[0]]
    assert kernels == ["implicit_gemm_kernel", "finish_kernel"] * len(LAYERS)
    assert found[0] == found[1] == found[2]
