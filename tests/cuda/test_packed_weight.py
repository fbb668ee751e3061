"""Packed weights on capability 9.0: their layout, that kernels read them, and when they do not.

On a GPU of another capability packs are empty, and everything else holds.
"""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cuda_backend import EMULATED_LIBRARY, Backend
from helpers import Problem, assert_as_exact, expected, relayout
from torch import Tensor

SIDE = 64  # columns, and depth, of a block
SPARE = 3  # blocks at the end
# Tiles of 64, 128 and 256 columns; ragged columns; more steps than stages; two groups.
PROBLEMS = {
    "narrow": Problem(in_channels=128, out_channels=40, density=0.7, activation="relu"),
    "middle": Problem(in_channels=64, out_channels=72, size=(13, 17), density=0.7),
    "wide": Problem(
        batch=1, in_channels=64, out_channels=257, size=(150, 2), kernel=(1, 3), padding=(0, 1),
        density=0.9,
    ),
    "pointwise": Problem(in_channels=320, out_channels=64, kernel=(1, 1), padding=(0, 0)),
    "groups": Problem(in_channels=192, out_channels=3 * 66, groups=3, size=(5, 7)),
    "stride": Problem(in_channels=64, stride=(2, 1), dilation=(1, 2), padding=(2, 1), batch=3),
    "empty": Problem(in_channels=64, density=0.0),
}  # fmt: skip
DTYPE = torch.bfloat16


@pytest.fixture
def has_packs(backend: Backend) -> bool:
    """False also where the environment asks for none (CONTRIBUTING.md)."""
    found = pack(backend, torch.zeros(64, 64, 1, 1, dtype=DTYPE)).numel() > 0
    if not any(name in os.environ for name in ("PERFCONV_CUDA_PACK", "PERFCONV_CUDA_CAPABILITY")):
        capable = backend.emulator is not None or torch.cuda.get_device_capability() == (9, 0)
        assert found == capable
    return found


def pack(backend: Backend, weight: Tensor, groups: int = 1) -> Tensor:
    (weight,) = backend.to(weight)
    return backend.ops.pack_weight(weight, groups)


def unsampled_edit(weight: Tensor) -> Tensor:
    """The second of the values in memory: of some hundred, only the first is compared."""
    edited = weight.clone()
    edited[0, 1, 0, 0] += 4
    return edited


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_layout(backend: Backend, has_packs: bool, groups: int, layout: str) -> None:
    weight = torch.randn(groups * 72, 128, 2, 3).to(DTYPE)
    packed = pack(backend, relayout(weight, layout), groups).cpu()
    if not has_packs:
        assert packed.shape == (0,)
        return
    assert packed.dtype == DTYPE
    blocks = packed.reshape(-1, SIDE, SIDE // 8, 8)
    assert torch.equal(blocks[-SPARE:], torch.zeros_like(blocks[-SPARE:]))
    blocks = blocks[:-SPARE].reshape(groups, 2, 6, 2, SIDE, SIDE // 8, 8)
    column, chunk = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE // 8), indexing="ij")
    straight = blocks[..., column, chunk ^ column % 8, :].flatten(-2)
    # (group, slab, tap, block, column, depth) from (group, column, depth, tap)
    padded = F.pad(weight.reshape(groups, 72, 128, 6), (0, 0, 0, 0, 0, 2 * SIDE - 72))
    wanted = padded.reshape(groups, 2, SIDE, 2, SIDE, 6).permute(0, 3, 5, 1, 2, 4)
    assert torch.equal(straight, wanted)


@pytest.mark.parametrize("name", PROBLEMS)
def test_forward(backend: Backend, has_packs: bool, name: str) -> None:
    """The bits of a call without a pack; and its values are what is multiplied."""
    problem = PROBLEMS[name]
    tensors, exact, dense, sums = expected(problem, DTYPE, False)
    packed = pack(backend, tensors["weight"], problem.groups)
    output = backend.forward(problem, DTYPE, "implicit_gemm", packed_weight=packed)
    assert_as_exact("output", output, exact["output"], dense["output"], sums["output"])
    assert torch.equal(output, backend.forward(problem, DTYPE, "implicit_gemm"))
    if not has_packs or problem.density == 0:
        return
    edited = unsampled_edit(tensors["weight"])
    other = pack(backend, edited, problem.groups)
    found = backend.forward(problem, DTYPE, "implicit_gemm", packed_weight=other)
    wanted = backend.forward(problem, DTYPE, "implicit_gemm", tensors={**tensors, "weight": edited})
    assert torch.equal(found, wanted)
    assert not torch.equal(found, output)


def test_float16(backend: Backend, has_packs: bool) -> None:
    problem = replace(PROBLEMS["middle"], out_channels=128)
    tensors = expected(problem, torch.float16, False)[0]
    edited = {**tensors, "weight": unsampled_edit(tensors["weight"])}

    def run(packed: Tensor | None, tensors: dict = tensors) -> Tensor:
        return backend.forward(
            problem, torch.float16, "implicit_gemm", tensors=tensors, packed_weight=packed
        )

    assert torch.equal(run(pack(backend, tensors["weight"])), run(None))
    if has_packs:
        assert torch.equal(run(pack(backend, edited["weight"])), run(None, edited))
        assert not torch.equal(run(None, edited), run(None))


@pytest.mark.parametrize("wrong", ["stale", "short", "dtype", "flat", "strided"])
def test_packs_of_other_weights_are_not_read(backend: Backend, has_packs: bool, wrong: str) -> None:
    """Samples would not refuse the short one nor those of another dtype or stride: its bits fit."""
    if not has_packs:
        pytest.skip("packs are empty here")
    problem = PROBLEMS["middle"]
    weight = expected(problem, DTYPE, False)[0]["weight"]
    packed = pack(backend, unsampled_edit(weight))
    other = {
        "stale": lambda: pack(backend, weight + 1),
        "short": lambda: packed[:-8],
        "dtype": lambda: packed.view(torch.float16),
        "flat": lambda: torch.zeros(3, dtype=DTYPE, device=backend.device),
        "strided": lambda: packed.view(2, -1).t(),
    }[wrong]()
    found = backend.forward(problem, DTYPE, "implicit_gemm", packed_weight=other)
    assert torch.equal(found, backend.forward(problem, DTYPE, "implicit_gemm"))


@pytest.mark.emulated
def test_any_schedule(backend: Backend) -> None:
    """Rings and tables go round several times; copies early or late, the bits are the same."""
    problem = replace(PROBLEMS["narrow"], size=(19, 17))
    packed = pack(backend, expected(problem, DTYPE, False)[0]["weight"])
    outputs = []
    for seed, mode, multiprocessors in ((1, 0, 1), (2, 1, 1), (3, 2, 1), (4, 1, 40), (5, 2, 40)):
        backend.emulator.set(sms=multiprocessors, occupancy=1, seed=seed, **{"async": mode})
        outputs.append(backend.forward(problem, DTYPE, "implicit_gemm", packed_weight=packed))
    backend.emulator.set(**{"async": 2})
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[3], outputs[4])  # parts of tiles: sums in another order


@pytest.mark.parametrize("is_tied", [True, False])
def test_multi_dilation(backend: Backend, has_packs: bool, is_tied: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    choice = torch.randint(-1, 3, (2, 1, 11, 9), generator=generator, dtype=torch.int32)
    weight = torch.randn(3, 72, 64, 3, 3, generator=generator).to(DTYPE) / 8
    values = torch.randn(2, 64, 11, 9, generator=generator).to(DTYPE)

    def run(weight: Tensor, packed: Tensor | None) -> Tensor:
        arguments = backend.to(relayout(values, "channels_last"), weight, choice)
        return backend.ops.multi_dilation_conv2d(
            *arguments, None, None, [1, 3, 2], "zero", "none", packed_weight=packed
        )

    def packs(weight: Tensor) -> Tensor:
        return pack(backend, weight) if is_tied else torch.stack([pack(backend, w) for w in weight])

    if is_tied:
        weight = weight[0]
    packed = packs(weight)
    assert torch.equal(run(weight, packed), run(weight, None))
    assert torch.equal(run(weight, packs(weight + 1)), run(weight, None))
    if has_packs:
        edited = weight.clone()
        branch = edited if is_tied else edited[2]
        branch.copy_(unsampled_edit(branch))
        assert torch.equal(run(weight, packs(edited)), run(edited, None))
        assert not torch.equal(run(edited, None), run(weight, None))


def test_gated_block_hands_them_on(backend: Backend, has_packs: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    weights = [torch.randn(64, 64, k, k, generator=generator).to(DTYPE) / 8 for k in (1, 3, 1)]
    biases = [torch.zeros(64, dtype=DTYPE)] * 3
    input = relayout(torch.randn(1, 64, 9, 11, generator=generator).to(DTYPE), "channels_last")
    mask = torch.rand(1, 1, 9, 11, generator=generator) < 0.5
    numbers = [[1] * 6, [0, 0, 1, 1, 0, 0], [1] * 6, [1] * 3]

    def run(weights: list[Tensor], packs: list[Tensor]) -> Tensor:
        image, active, *layers = backend.to(input, mask, *weights, *biases)
        return backend.ops.gated_block(
            image, None, active, None, None, layers[:3], layers[3:], packs, *numbers, "relu", "relu"
        )[0]

    edited = [unsampled_edit(weight) for weight in weights]
    packs = [pack(backend, weight) for weight in edited]
    assert torch.equal(run(edited, packs), run(edited, []))
    if has_packs:
        assert torch.equal(run(weights, packs), run(edited, []))


@pytest.mark.emulated
def test_only_where_they_are_read(backend: Backend) -> None:
    weight = torch.randn(72, 64, 3, 3)
    assert pack(backend, weight).shape == (0,)  # float32
    assert pack(backend, weight[:, :48].to(DTYPE)).shape == (0,)
    assert pack(backend, torch.zeros(8, 64, 3, 11, dtype=DTYPE)).shape == (0,)  # 33 taps
    backend.emulator.set(cc=75)  # too old for every kernel: still no error where none is asked for
    assert pack(backend, weight).shape == (0,)
    for capability in (80, 89, 100, 120):
        backend.emulator.set(cc=capability)
        assert pack(backend, weight.to(DTYPE)).shape == (0,), capability
    backend.emulator.set(cc=90)
    assert pack(backend, weight.to(DTYPE)).numel() == 2 * SIDE * 9 * 64 + SPARE * SIDE * SIDE


@pytest.mark.emulated
def test_none_by_the_environment(backend: Backend) -> None:
    """Read once a process, where it could be read."""
    script = (
        "import os, torch\n"
        f"torch.ops.load_library({str(EMULATED_LIBRARY)!r})\n"
        "weight = torch.zeros(8, 64, 1, 1, dtype=torch.bfloat16)\n"
        "for value in '20':\n"
        "    os.environ['PERFCONV_CUDA_PACK'] = value\n"
        "    try:\n"
        "        print(torch.ops.perfconv_emulated.pack_weight(weight, 1).shape)\n"
        "    except Exception as error:\n"
        "        print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.splitlines() == [
        "PERFCONV_CUDA_PACK must be 0 or 1, got 2.",
        "torch.Size([0])",
    ]
