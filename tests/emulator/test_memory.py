"""Bounds, rights, alignment, undefined memory, limits of launches, calls, the tests' API."""

import pytest
import torch
from emulator.library import Features, In, KernelError, Undefined

pytestmark = pytest.mark.emulated


def ints(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int32)


def numbers(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int32)


def test_bounds_of_global_memory(features: Features) -> None:
    out = ints(32)
    features.run("copy", In(numbers(32)), out, 0, 0)
    assert torch.equal(out, numbers(32))
    for source, to, message in [
        (1, 0, "illegal global load of 4 bytes at offset 128 of a registered range of 128 bytes"),
        (0, 1, "illegal global store of 4 bytes at offset 128"),
        (-1, 0, "illegal global load of 4 bytes at offset -4"),
        (10000, 0, "in no registered range"),
    ]:
        with pytest.raises(KernelError, match=message):
            features.run("copy", In(numbers(32)), ints(32), source, to)


def test_reports_name_line_block_thread_and_seed(features: Features) -> None:
    features.set(seed=7)
    place = r"at memory\.cu:\d+, ptx line \d+ ld\.global\S* \[block 0,0,0 thread 31\] \(seed 7\)"
    with pytest.raises(KernelError, match=place):
        features.run("copy", In(numbers(32)), ints(32), 1, 0)


def test_unchecked_bounds(features: Features) -> None:
    features.set(bounds=0)
    features.run("copy", In(numbers(32)), ints(32), 1, 1)


def test_read_only_memory(features: Features) -> None:
    with pytest.raises(KernelError, match="store to read-only global memory"):
        features.run("copy", In(numbers(32)), In(ints(32)), 0, 0)


def test_alignment(features: Features) -> None:
    source = torch.arange(80, dtype=torch.uint8)
    out = ints(16)
    features.run("copy_wide", In(source), out, 16)
    assert torch.equal(out.view(torch.uint8), source[16:])
    with pytest.raises(KernelError, match="misaligned access of 16 bytes"):
        features.run("copy_wide", In(source), out, 4)


def test_bounds_of_shared_memory(features: Features) -> None:
    out = ints(32)
    features.run("shared_bounds", out, 3, 9)
    assert out.tolist() == [33] * 32
    for fixed, dynamic in [(4, 0), (-1, 0), (0, 10), (0, -1)]:
        with pytest.raises(KernelError, match="illegal shared store of 4 bytes out of bounds"):
            features.run("shared_bounds", out, fixed, dynamic)


def test_undefined_memory(features: Features) -> None:
    out = ints(32)
    features.run("undefined_shared", out, 1)
    with pytest.raises(KernelError, match=r"nobody wrote: byte \d+ of shared memory"):
        features.run("undefined_shared", out, 0)
    features.run("undefined_global", Undefined(ints(32)), out, 1)
    features.run("undefined_global", ints(32), out, 0)
    with pytest.raises(KernelError, match="nobody wrote: byte 0 of global memory"):
        features.run("undefined_global", Undefined(ints(32)), out, 0)


def test_undefined_register(features: Features) -> None:
    with pytest.raises(KernelError, match="undefined register"):
        features.run("undefined_register", ints(32))
    features.set(registers=0)
    features.run("undefined_register", ints(32))


def test_limits_of_shared_memory(features: Features) -> None:
    out = ints(1)
    features.run("large_shared", out, 4096, 0)
    assert out.item() == 1023
    features.run("large_shared", out, 65536, 1)
    assert out.item() == 16383
    with pytest.raises(KernelError, match="227 KiB"):
        features.run("large_shared", out, 240000, 1)
    with pytest.raises(KernelError, match="cudaFuncSetAttribute missing or too small"):
        features.run("large_shared", out, 65540 * 2, 0)


def test_limits_of_threads(features: Features) -> None:
    features.run("bounded", ints(128), 64)
    with pytest.raises(KernelError, match=r"larger than __launch_bounds__ \(64\)"):
        features.run("bounded", ints(128), 128)
    with pytest.raises(KernelError, match="invalid configuration"):
        features.run("bounded", ints(128), 0)


def test_occupancy_is_capped(features: Features) -> None:
    def occupancy(bytes_of_shared_memory: int) -> int:
        blocks = ints(1)
        features.run("occupancy", blocks, bytes_of_shared_memory)
        return int(blocks.item())

    assert occupancy(0) == 2
    features.set(occupancy=100)
    assert occupancy(0) == 16  # 64 warps
    assert occupancy(100 * 1024) == 2
    features.set(occupancy=1)
    assert occupancy(0) == 1


def test_calls_and_recursion(features: Features) -> None:
    out = ints(32)
    features.run("calls", In(numbers(32) % 11), out)
    fibonacci = [0, 1, 1, 2, 3, 5, 8, 13, 21, 34, 55]
    assert out.tolist() == [fibonacci[i % 11] for i in range(32)]


def test_tables_and_constants(features: Features) -> None:
    out = ints(64)
    features.run("tables", In(numbers(64) * 7), out)

    def wanted(v: int) -> int:
        scale = [0.5, 1.25, 2.0, 3.75][v >> 3 & 3]
        table = [3, 1, 4, 1][v >> 3 & 3]
        return [v * 3, v ^ 0x55, v * v, v % 9 // 3 - 1, table, int(scale * 10), -v, -v][v & 7]

    assert out.tolist() == [wanted(7 * i) for i in range(64)]


def test_local_memory(features: Features) -> None:
    out = ints(32)
    features.run("local_arrays", In(numbers(32)), out, 5)
    values = {(i * 3 + 5) % 8: i for i in range(8)}
    assert out.tolist() == [2 * t + values[5] + values[0] for t in range(32)]


def test_assert_and_print(features: Features) -> None:
    features.run("asserts", 32)
    with pytest.raises(KernelError, match=r"assert\(.*thread index.*memory\.cu:\d+"):
        features.run("asserts", 31)
    features.run("prints")


def test_capability_chooses_the_ptx(features: Features) -> None:
    for capability, wanted in ((80, 800), (86, 800), (90, 900), (120, 900)):
        features.set(cc=capability)
        out = ints(1)
        features.run("architecture", out)
        assert out.item() == wanted
    features.set(cc=75)
    with pytest.raises(KernelError, match="no PTX for compute capability 75"):
        features.run("architecture", ints(1))


def test_memory_of_the_runtime(features: Features) -> None:
    back = ints(16)
    features.library.emu_register_range(back.data_ptr(), 64, 0)
    features.run("round_trip", In(numbers(16)), back, 64)
    features.library.emu_unregister_range(back.data_ptr())
    assert back.tolist() == [0, *range(1, 16)]
    with pytest.raises(KernelError, match="outside the registered ranges"):
        features.run("memset", ints(8), 36)


def test_log_and_launched_kernels(features: Features) -> None:
    features.run("copy", In(numbers(32)), ints(32), 0, 0)
    assert "launch grid 1,1,1 block 32,1,1 dynamic 0" in features.text("log")

    def launches() -> int:
        counts = dict(line.split() for line in features.text("launched").splitlines())
        return sum(int(count) for name, count in counts.items() if "4copyE" in name)

    before = launches()
    features.run("copy", In(numbers(32)), ints(32), 0, 0)
    assert launches() == before + 1
    assert any("4copyE" in name for name in features.text("kernels").splitlines())


def test_all_ptx_can_run(features: Features) -> None:
    for capability in (80, 90):
        features.set(cc=capability)
        report = features.text("report")
        assert "unsupported" not in report
        assert "error" not in report
