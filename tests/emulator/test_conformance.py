"""conformance.cu against models written from the PTX ISA manual: random bits in, raw bits out.

The models know nothing of the emulator; a GPU, when there is one, must give the same bits (sums of
mma excepted: their order is not documented), and what it gave can be kept as golden files.
"""

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from cuda_backend import refuse
from emulator.conformance_device import (
    WRITES_GOLDEN,
    DeviceFeatures,
    check_golden,
    golden_path,
    write_golden,
)
from emulator.library import Features, In

LANES = 32
SEEDS = range(3)


device_features = cache(DeviceFeatures)


@pytest.fixture(
    params=[
        pytest.param("emulated", marks=pytest.mark.emulated),
        pytest.param("cuda", marks=pytest.mark.cuda),
    ]
)
def kernels(request: pytest.FixtureRequest) -> Features | DeviceFeatures:
    """The kernels of conformance.cu, emulated or on a GPU."""
    if request.param == "emulated":
        return request.getfixturevalue("features")
    if not torch.cuda.is_available():
        refuse("PERFCONV_REQUIRE_CUDA", "no GPU")
    return device_features()


def run(kernels: Features | DeviceFeatures, name: str, given: np.ndarray, words: int) -> np.ndarray:
    """Words of every lane, (words, 32)."""
    out = torch.zeros(words, LANES, dtype=torch.int32)
    kernels.run(name, In(torch.from_numpy(given.view(np.int32).copy())), out)
    got = out.numpy().view(np.uint32)
    if isinstance(kernels, DeviceFeatures):
        if os.environ.get(WRITES_GOLDEN) == "1":
            write_golden(name, given, got)
    else:
        check_golden(name, given, got)
    return got


@pytest.mark.emulated
def test_golden_files_are_compared(features: Features, tmp_path: Path) -> None:
    """What a GPU would leave, written by the emulator here; then one bit of it is another."""
    given = random_words(0, 1, LANES)
    got = run(features, "round_to_tf32", given, 1)
    check_golden("round_to_tf32", given, got, tmp_path)  # no file: nothing to compare
    write_golden("round_to_tf32", given, got, tmp_path)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]
    check_golden("round_to_tf32", given, got, tmp_path)
    write_golden("round_to_tf32", given, got ^ np.uint32(1 << 20), tmp_path)
    with pytest.raises(AssertionError, match="a GPU gave other bits"):
        check_golden("round_to_tf32", given, got, tmp_path)
    assert golden_path("round_to_tf32", given, tmp_path).exists()


def random_words(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, shape, dtype=np.uint32)


# ---- matrices ------------------------------------------------------------------------------------


def fragment_of(matrix: np.ndarray) -> np.ndarray:
    """What each lane holds of an 8 x 8 matrix of 16 bits (9.7.14.5.15)."""
    words = np.zeros(LANES, np.uint32)
    for lane in range(LANES):
        row, pair = divmod(lane, 4)
        words[lane] = matrix[row, 2 * pair] | np.uint32(matrix[row, 2 * pair + 1]) << np.uint32(16)
    return words


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ["ldmatrix", "ldmatrix_trans"])
def test_ldmatrix(kernels: Features | DeviceFeatures, name: str, seed: int) -> None:
    rows = random_words(seed, LANES, 4)
    got = run(kernels, name, rows, 4)
    matrices = rows.view(np.uint16).reshape(4, 8, 8)
    for m in range(4):
        wanted = matrices[m].T if name == "ldmatrix_trans" else matrices[m]
        assert np.array_equal(got[m], fragment_of(wanted)), m


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def from_float16(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint16).view(np.float16).astype(np.float32)


def from_tf32(bits: np.ndarray) -> np.ndarray:
    return (bits & np.uint32(0xFFFFE000)).view(np.float32)


def mma_operands(words: np.ndarray, is_tf32: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A (16, K), B (K, 8) as bits and C (16, 8), by the figures of 9.7.14.5.8 and .6."""
    depth = 8 if is_tf32 else 16
    a = np.zeros((16, depth), np.uint32)
    b = np.zeros((depth, 8), np.uint32)
    c = np.zeros((16, 8), np.float32)
    for lane in range(LANES):
        group, thread = divmod(lane, 4)
        for i in range(4 if is_tf32 else 8):
            if is_tf32:
                row = group + 8 * (i % 2)
                column = thread + 4 * (i // 2)
                a[row, column] = words[i, lane]
            else:
                row = group if i in (0, 1, 4, 5) else group + 8
                column = 2 * thread + i % 2 + (8 if i >= 4 else 0)
                a[row, column] = words[i // 2, lane] >> np.uint32(16 * (i % 2)) & 0xFFFF
        for i in range(2 if is_tf32 else 4):
            if is_tf32:
                b[thread + 4 * i, group] = words[4 + i, lane]
            else:
                row = 2 * thread + i % 2 + (8 if i >= 2 else 0)
                b[row, group] = words[4 + i // 2, lane] >> np.uint32(16 * (i % 2)) & 0xFFFF
        for i in range(4):
            row = group + 8 * (i // 2)
            c[row, 2 * thread + i % 2] = words[6 + i, lane : lane + 1].view(np.float32)[0]
    return a, b, c


def small_operands(name: str, seed: int) -> np.ndarray:
    """Random significands and signs; exponents near 1, so that sums stay comparable."""
    words = random_words(seed, 10, LANES)
    if name == "mma_tf32":
        words[:6] = words[:6] & np.uint32(0x807FFFFF) | np.uint32(0x3F800000)
    elif name == "mma_bf16":
        words[:6] = words[:6] & np.uint32(0x807F807F) | np.uint32(0x3F803F80)
    else:
        words[:6] = words[:6] & np.uint32(0x83FF83FF) | np.uint32(0x3C003C00)
    words[6:] = words[6:] & np.uint32(0x807FFFFF) | np.uint32(0x40800000)
    return words


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("name", "widen"),
    [("mma_bf16", from_bfloat16), ("mma_f16", from_float16), ("mma_tf32", from_tf32)],
)
def test_mma(kernels: Features | DeviceFeatures, name: str, widen, seed: int) -> None:
    words = small_operands(name, seed)
    a_bits, b_bits, c = mma_operands(words, name == "mma_tf32")
    a, b = (widen(bits).astype(np.float64) for bits in (a_bits, b_bits))
    wanted = a @ b + c
    got = run(kernels, name, words, 4).view(np.float32)
    size = np.abs(a) @ np.abs(b) + np.abs(c)
    for lane in range(LANES):
        group, thread = divmod(lane, 4)
        for i in range(4):
            row, column = group + 8 * (i // 2), 2 * thread + i % 2
            error = abs(got[i, lane] - wanted[row, column])
            assert error <= 2e-6 * size[row, column], (lane, i)


@pytest.mark.parametrize("major", ["", "_n_major", "_m_n_major"])
@pytest.mark.parametrize("columns", [64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_wgmma(
    kernels: Features | DeviceFeatures, dtype: torch.dtype, columns: int, major: str
) -> None:
    """Factors whose products and sums are exact, so that their order does not matter."""
    if major == "_m_n_major" and columns == 256:
        pytest.skip("no kernel has such a tile")
    if isinstance(kernels, DeviceFeatures) and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("only compute capability 9.0 has wgmma")
    generator = torch.Generator().manual_seed(columns)
    a, b = (
        (torch.randint(-16, 17, (rows, 64), generator=generator) / 16).to(dtype)
        for rows in (64, columns)
    )
    out = torch.full((columns // 2, 128), float("nan"))
    name = f"wgmma_{'bf16' if dtype == torch.bfloat16 else 'f16'}_{columns}{major}"
    kernels.run(
        name,
        In(a.T.contiguous() if "_m" in major.removesuffix("_n_major") else a),
        In(b.T.contiguous() if major else b),
        out,
    )
    assert torch.equal(out, of_threads((a.double() @ b.double().T).float()))


def of_threads(product: torch.Tensor) -> torch.Tensor:
    """Where each thread holds the elements of D: the manual's "register fragments"."""
    register, thread = torch.meshgrid(
        torch.arange(product.size(1) // 2), torch.arange(128), indexing="ij"
    )
    row = thread // 32 * 16 + thread % 32 // 4 + register // 2 % 2 * 8
    column = register // 4 * 8 + thread % 4 * 2 + register % 2
    return product[row, column]


@pytest.mark.parametrize("columns", [64, 128, 256])
def test_wgmma_of_tf32(kernels: Features | DeviceFeatures, columns: int) -> None:
    """The same, and the low 13 bits of either factor make no difference."""
    if isinstance(kernels, DeviceFeatures) and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("only compute capability 9.0 has wgmma")
    generator = torch.Generator().manual_seed(columns)
    a, b = (torch.randint(-16, 17, (rows, 32), generator=generator) / 16 for rows in (64, columns))
    noise = [torch.randint(0, 1 << 13, (64, 32), generator=generator), 0x1FFF]
    noisy = [
        (values.view(torch.int32) | bits).to(torch.int32).view(torch.float32)
        for values, bits in zip((a, b), noise, strict=True)
    ]
    out = torch.full((columns // 2, 128), float("nan"))
    kernels.run(f"wgmma_tf32_{columns}", In(noisy[0]), In(noisy[1]), out)
    assert torch.equal(out, of_threads((a.double() @ b.double().T).float()))


# ---- copies and rounding -------------------------------------------------------------------------


def test_copy_of_16_bytes_or_zeros(kernels: Features | DeviceFeatures) -> None:
    rows = random_words(1, LANES, 4)
    wanted = np.where(np.arange(LANES)[:, None] % 3 != 0, rows, 0)
    assert np.array_equal(run(kernels, "copy_16", rows, 4), wanted.T)


@pytest.mark.parametrize("size", [4, 8, 16])
def test_copy_fills_with_zeros(kernels: Features | DeviceFeatures, size: int) -> None:
    rows = random_words(size, LANES, 4)
    wanted = np.full((LANES, 16), 0xAA, np.uint8)
    for lane in range(LANES):
        valid = lane % (size + 1)
        wanted[lane, :size] = 0
        wanted[lane, :valid] = rows[lane].view(np.uint8)[:valid]
    assert np.array_equal(run(kernels, f"copy_{size}_part", rows, 4), wanted.view(np.uint32).T)


def test_bulk_copies(kernels: Features | DeviceFeatures) -> None:
    if isinstance(kernels, DeviceFeatures) and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("built for compute capability 9.0")
    given = random_words(3, 4, LANES)
    wanted = np.roll(given.ravel(), -12).reshape(4, LANES)
    assert np.array_equal(run(kernels, "bulk_copies", given, 4), wanted)


def test_cluster_exchange(kernels: Features | DeviceFeatures) -> None:
    if isinstance(kernels, DeviceFeatures) and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("built for compute capability 9.0")
    given = random_words(4, 16, LANES) & np.uint32(0xBFFFFFFF)  # no NaN: they pass as floats
    wanted = np.roll(np.roll(given, -4, 0), -1, 1)
    assert np.array_equal(run(kernels, "cluster_exchange", given, 16), wanted)


def test_rounding_to_tf32(kernels: Features | DeviceFeatures) -> None:
    given = random_words(7, 1, LANES) & np.uint32(0xBFFFFFFF)  # finite
    given[0, :3] = [0x3F801000, 0x3F800FFF, 0xBF803000]  # ties and less
    wanted = given + np.uint32(0x1000) & np.uint32(0xFFFFE000)
    assert np.array_equal(run(kernels, "round_to_tf32", given, 1), wanted)


# ---- collectives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("width", [8, 16, 32])
def test_shuffles(kernels: Features | DeviceFeatures, width: int, seed: int) -> None:
    given = random_words(seed, 2, LANES)
    value, distance = given[0], (given[1] & 31).astype(int)
    uniform = distance[5]
    wanted = np.zeros((5, LANES), np.uint32)
    for lane in range(LANES):
        begin = lane // width * width
        end = begin + width
        up, down, across = lane - uniform, lane + uniform, lane ^ uniform
        wanted[0, lane] = value[begin + distance[lane] % width]
        wanted[1, lane] = value[up if up >= begin else lane]
        wanted[2, lane] = value[down if down < end else lane]
        wanted[3, lane] = value[across if across < end else lane]
        wanted[4, lane] = up >= begin
    assert np.array_equal(run(kernels, f"shuffles_{width}", given, 5), wanted)


@pytest.mark.parametrize("seed", SEEDS)
def test_collectives(kernels: Features | DeviceFeatures, seed: int) -> None:
    given = random_words(seed, 1, LANES)
    got = run(kernels, "collectives", given, 12)
    for half in (range(16), range(16, 32)):
        values = [int(given[0, lane]) for lane in half]
        bit = {lane: 1 << lane for lane in half}
        named = list(zip(half, values, strict=True))
        same = len({v & 1 for v in values}) == 1
        signed = [v - (v >> 31 << 32) for v in values]
        for lane, value in named:
            wanted = [
                sum(bit[o] for o, v in named if v & 4),
                any(v & 0xF0 == 0x30 for v in values),
                all(v & 0xF0 != 0x30 for v in values),
                sum(bit[o] for o, v in named if v & 3 == value & 3),
                sum(bit.values()) if same else 0,
                same,
                sum(values),
                min(signed),
                max(values),
                int(np.bitwise_and.reduce([v | 0x00FF00FF for v in values])),
                int(np.bitwise_or.reduce([v & 0x01010101 for v in values])),
                int(np.bitwise_xor.reduce(values)),
            ]
            assert got[:, lane].tolist() == [int(v) % 2**32 for v in wanted], lane
