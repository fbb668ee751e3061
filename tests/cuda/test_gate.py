"""gate_mask on CUDA against the float64 oracle."""

import pytest
import torch
from cuda_backend import Backend
from helpers import DTYPES, assert_gated, gate_operands, relayout
from torch import Tensor

SECTION = 2048  # pixels of a section of the compaction (csrc/cuda/kernels/launch.h)

# One thread a row, a few, a warp; 16 bytes at a time and element by element; more than a warp.
CHANNELS = (1, 8, 13, 24, 40, 264)
# Ragged blocks, section boundaries, several images in a section, none at all.
SIZES = [(0, 4, 4), (3, 0, 4), (1, 1, 1), (2, 9, 11), (1, 1, SECTION - 1), (1, 32, SECTION // 32),
         (1, 1, SECTION + 1), (5, 25, 33)]  # fmt: skip


def run(backend: Backend, *operands: Tensor | None, wants_soft: bool = True) -> tuple[Tensor, ...]:
    return backend.ops.gate_mask(*backend.to(*operands), wants_soft)


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gate(backend: Backend, dtype: torch.dtype, channels: int, has_bias: bool) -> None:
    operands = gate_operands(channels, dtype, has_bias=has_bias)
    assert_gated(run(backend, *operands), *operands)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(backend: Backend, size: tuple[int, int, int]) -> None:
    operands = gate_operands(4, torch.float32, size)
    assert_gated(run(backend, *operands), *operands)


@pytest.mark.parametrize("offset", [-100.0, 100.0], ids=["none", "all"])
def test_no_pixel_and_every_pixel(backend: Backend, offset: float) -> None:
    input, weight, bias = gate_operands(8, torch.float32, (3, 30, 41))
    bias[1] += offset
    found = run(backend, input, weight, bias, wants_soft=False)
    assert found[3].item() == (input[:, 0].numel() if offset > 0 else 0)
    assert found[0].shape == (0,)
    assert_gated(found, input, weight, bias)


@pytest.mark.parametrize("layout", ["channels_last", "strided", "transposed", "offset"])
def test_layouts(backend: Backend, layout: str) -> None:
    input, weight, bias = gate_operands(8, torch.float32)
    if layout == "offset":  # rows of 16 bytes, none at a multiple of 16
        storage = torch.empty(input.numel() + 1, device=backend.device)
        given = storage[1:].view(2, 9, 11, 8).permute(0, 3, 1, 2)
        given.copy_(input)
    else:
        given = relayout(input.to(backend.device), layout)
    found = backend.ops.gate_mask(given, *backend.to(weight[:, :, None, None], bias), True)
    assert_gated(found, input, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_and_nan_are_inactive(backend: Backend, dtype: torch.dtype) -> None:
    input = torch.tensor([1.0, torch.nan, torch.inf, -1.0, 0.0]).to(dtype).view(1, 1, 1, 5)
    weight = torch.tensor([[-1.0], [1.0]], dtype=dtype)
    mask = run(backend, input, weight, None)[1]
    assert mask.flatten().tolist() == [True, False, True, False, False]
    assert not run(backend, input, weight[1:].expand(2, 1), None)[1].any()


def test_same_bits_in_any_schedule(backend: Backend) -> None:
    operands = gate_operands(24, torch.bfloat16, (3, 30, 41))
    first = run(backend, *operands)
    for seed, multiprocessors in ((2, 1), (3, 4)):
        if backend.emulator is not None:
            backend.emulator.set(seed=seed, sms=multiprocessors)
        for one, other in zip(first, run(backend, *operands), strict=True):
            assert torch.equal(one, other)


def test_refused_as_on_the_cpu(backend: Backend) -> None:
    input, weight, bias = backend.to(*gate_operands(8, torch.float32))
    for arguments, word in (
        ((input[0], weight, bias), r"\(N, C, H, W\)"),
        ((input, weight[:, :7], bias), "C = 8"),
        ((input, weight, bias[:1]), r"\(2,\)"),
        ((input, weight.double(), bias), "dtype"),
    ):
        with pytest.raises(ValueError, match=f"gate_mask: .*{word}"):
            backend.ops.gate_mask(*arguments, True)
