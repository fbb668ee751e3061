"""Arithmetic on the emulator against numpy and torch."""

import numpy as np
import pytest
import torch
from emulator.library import Features, In

pytestmark = pytest.mark.emulated
COUNT = 200
EDGES = [0, 1, -1, 2, -2, 7, 31, 32, 255, -256, 2**31 - 1, -(2**31), -(2**31) + 1]


def integers(seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).integers(-(2**31), 2**31, COUNT).astype(np.int32)
    values[: len(EDGES)] = np.roll(np.array(EDGES), seed)
    return values


def run(features: Features, name: str, rows: int, *inputs: torch.Tensor, dtype: torch.dtype):
    out = torch.zeros(rows, COUNT, dtype=dtype)
    features.run(name, *(In(x) for x in inputs), out, COUNT)
    return out


def truncated_division(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of Python integers, toward zero; the result for 0 does not matter."""
    sizes = [0 if y == 0 else abs(x) // abs(y) for x, y in zip(a, b, strict=True)]
    return np.array(sizes, dtype=object) * np.where((a < 0) == (b < 0), 1, -1)


def as_python(values: np.ndarray, bits: int, is_signed: bool = True) -> np.ndarray:
    whole = values.astype(object)
    return whole if is_signed else whole % (1 << bits)


def wrapped(values: np.ndarray, bits: int) -> list[int]:
    half = 1 << (bits - 1)
    return [(int(v) + half) % (1 << bits) - half for v in values]


def field(value: int, position: int, length: int) -> int:
    part = value >> position & ((1 << length) - 1)
    return part - (1 << length) if part >> (length - 1) else part


def test_integers(features: Features) -> None:
    a, b, c = (integers(seed) for seed in (1, 2, 3))
    b[b == 0] = 3
    sa, sb, sc = (as_python(x, 32) for x in (a, b, c))
    ua, ub, uc = (as_python(x, 32, False) for x in (a, b, c))
    shift = sc & 31
    quotient = truncated_division(sa, sb)
    bytes_of = [[int(v) >> 8 * k & 255 for k in range(8)] for v in ua | ub << 32]
    signed = np.frombuffer(a.tobytes(), np.int8).reshape(-1, 4).astype(object)
    other = np.frombuffer(b.tobytes(), np.int8).reshape(-1, 4).astype(object)
    expected = [
        sa + sb, sa - sb, sa * sb, sa * sb >> 32, ua * ub >> 32, sa * sb + sc,
        quotient, sa - quotient * sb, ua // ub, ua % ub, np.minimum(sa, sb), np.maximum(ua, ub),
        abs(sa), abs(sa - sb) + uc, (sa & sb) ^ sc, ~sa | sb, np.where(sc < 32, ua << shift, 0),
        sa >> shift, ua >> shift, (ub << 32 | ua) << shift >> 32, (ub << 32 | ua) >> shift,
        [sum(row[int(v) >> 4 * k & 7] << 8 * k for k in range(4))
         for row, v in zip(bytes_of, uc & 0x7777, strict=True)],
        [int(v).bit_count() for v in ua], [32 - int(v).bit_length() for v in ua],
        [int(f"{int(v):032b}"[::-1], 2) for v in ua],
        [(int(v) & -int(v)).bit_length() for v in ua],
        (signed * other).sum(1) + sc, np.where(sa > sb, sa, sc),
        [field(int(v), 5, 9) for v in ua],
        ub & ~(0x7FF << 7) | (ua & 0x7FF) << 7,
        np.zeros(COUNT, dtype=object), np.where(sa < 0, -1, 0),
    ]  # fmt: skip
    shifts_left = np.where((sc < 32) & (sc >= 0), 0, 1)  # undefined in C++ outside
    inputs = [torch.from_numpy(x) for x in (a, b, c)]
    out = run(features, "integers", len(expected), *inputs, dtype=torch.int32)
    for row, wanted in enumerate(expected):
        got = np.array(out[row].tolist())
        difference = got != np.array(wrapped(wanted, 32))
        if row == 16:
            difference &= shifts_left == 0
        assert not difference.any(), (row, a[difference][:3], b[difference][:3], got[difference])


def test_long_integers(features: Features) -> None:
    generator = np.random.default_rng(4)
    a, b = (generator.integers(-(2**63), 2**63 - 1, COUNT) for _ in range(2))
    a[:4] = [0, -1, 2**63 - 1, -(2**63)]
    b[:4] = [1, -1, -(2**63), 2]
    sa, sb = (as_python(x, 64) for x in (a, b))
    ua, ub = (as_python(x, 64, False) for x in (a, b))
    quotient = truncated_division(sa, sb)
    shift = ub & 63
    low_a, low_b = (np.array(wrapped(x, 32), dtype=object) for x in (sa, sb))
    expected = [
        sa + sb, sa - sb, sa * sb, sa * sb >> 64, ua * ub >> 64, quotient, sa - quotient * sb,
        ua // ub, np.minimum(sa, sb), ua << shift, sa >> shift, ua >> shift,
        [int(v).bit_count() for v in ua], [64 - int(v).bit_length() for v in ua],
        [int(f"{int(v):064b}"[::-1], 2) for v in ua], low_a * low_b + sb,
    ]  # fmt: skip
    inputs = [torch.from_numpy(x) for x in (a, b)]
    out = run(features, "long_integers", len(expected), *inputs, dtype=torch.int64)
    for row, wanted in enumerate(expected):
        assert out[row].tolist() == wrapped(wanted, 64), row


def floats(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(COUNT, generator=generator) * 20
    edges = [float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 0.5, 1.5, -2.5, 1e-40, 3e38]
    values[: len(edges)] = torch.tensor(edges).roll(seed)
    return values


def test_floats(features: Features) -> None:
    a, b, c = (floats(seed) for seed in (1, 2, 3))
    out = run(features, "floats", 26, a, b, c, dtype=torch.float32)
    fused = (a.double() * b.double() + c.double()).float()
    exact = [
        a + b, a - b, a * b, fused, a / b, torch.fmin(a, b), torch.fmax(a, b), a.abs(), -a,
        a.double().abs().sqrt().float(), a.floor(), a.ceil(), a.trunc(), a.round(), (a < b).float(),
        (a >= b).float(), a.isnan().float(), a.isfinite().float(), torch.copysign(a, b),
        a.clamp(0, 1).nan_to_num(0.0),
    ]  # fmt: skip
    for row, wanted in enumerate(exact):
        torch.testing.assert_close(out[row], wanted, rtol=0, atol=0, equal_nan=True)
    d = a.double()
    close = [1 / (d.abs() + 1).sqrt(), d.exp(), d.abs().log1p(), d.sin(), d.tanh(), d / 3]
    tiny = 2e-6
    for row, wanted in enumerate(close, len(exact)):
        ok = d.abs() < 80  # exp overflows, sin loses its argument
        torch.testing.assert_close(
            out[row][ok], wanted.float()[ok], rtol=4e-6, atol=tiny, equal_nan=True
        )


@pytest.mark.parametrize(
    ("name", "dtype"), [("halves", torch.float16), ("bfloats", torch.bfloat16)]
)
def test_halves(features: Features, name: str, dtype: torch.dtype) -> None:
    a, b, c = (floats(seed).clamp(-60000, 60000).to(dtype) for seed in (1, 2, 3))
    out = run(features, name, 10, a, b, c, dtype=dtype)
    da, db, dc = (x.double() for x in (a, b, c))
    fused = da * db + dc
    expected = [
        da + db, da - db, da * db, fused, torch.where(fused < 0, 0, fused),
        torch.fmin(da, db), torch.maximum(da, db), -da, da.abs(), torch.where(da < db, da, dc),
    ]  # fmt: skip
    for row, wanted in enumerate(expected):
        torch.testing.assert_close(out[row], wanted.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_packed_halves(features: Features) -> None:
    a, b = (floats(seed)[20:].half() for seed in (1, 2))
    out = torch.zeros(2, a.numel(), dtype=torch.float16)
    features.run("packed_halves", In(a), In(b), out, a.numel() // 2)
    fused = (a.double() * b.double() + b.double()).half()
    assert torch.equal(out, torch.stack([fused, torch.maximum(a, b)]))


def test_conversions(features: Features) -> None:
    generator = torch.Generator().manual_seed(5)
    a = torch.randn(COUNT, generator=generator, dtype=torch.float64) * 1000
    a[:8] = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 1e-3, 70000.25, -2.0])
    f = a.float()
    d = f.double()
    whole = a.trunc().long()
    bits = f.view(torch.int32).long()
    halves = f.half().view(torch.int16).long() & 0xFFFF
    toward_zero = halves - (f.half().double().abs() > d.abs()).long()
    packed = halves | ((-f).half().view(torch.int16).long() & 0xFFFF) << 16
    expected = [
        bits, d.trunc(), d.round(), d.floor(), d.ceil().clamp(0), a.trunc(), d.round(),
        halves, f.bfloat16().view(torch.int16).long() & 0xFFFF, toward_zero,
        whole.to(torch.int8), whole & 0xFFFF, whole.float().view(torch.int32),
        (whole % 2**32).double().float().view(torch.int32), whole.double().view(torch.int64),
        packed, (bits + 0x1000 & 0xFFFFE000),
    ]  # fmt: skip
    out = run(features, "conversions", len(expected), a, dtype=torch.int64)
    unsigned = {15, 16}  # stored as 32 unsigned bits
    for row, wanted in enumerate(expected):
        got = out[row] & 0xFFFFFFFF if row in unsigned else out[row]
        wanted = wanted.long() & 0xFFFFFFFF if row in unsigned else wanted.long()
        assert torch.equal(got, wanted), row
