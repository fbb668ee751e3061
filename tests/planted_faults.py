"""Calls that between them run every kernel, and the faults to plant where they go."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from cuda_backend import Backend, Emulator
from helpers import Problem, expected, gate_operands, random_mask
from torch import Tensor

Call = Callable[[Backend], list[Tensor]]

# Planted wherever they run: what orders memory.
ORDER = (
    "bar.sync", "barrier.sync", "bar.warp", "cp.async.wait_group", "cp.async.commit_group",
    "cp.async.mbarrier", "mbarrier.init", "mbarrier.arrive", "mbarrier.try_wait",
    "mbarrier.expect_tx", "cp.async.bulk", "fence.proxy.async", "wgmma.fence",
    "wgmma.commit_group", "wgmma.wait_group", "barrier.cluster",
)  # fmt: skip
# Sampled: sources that may not change places, and what may not be missing.
SWAPPED = (
    "sub",
    "setp.lt",
    "setp.gt",
    "setp.le",
    "setp.ge",
    "selp",
    "shl",
    "div",
    "mma",
    "mapa",
    "wgmma.mma_async",
)
DROPPED = ("mma", "wgmma.mma_async", "st.global", "st.shared", "fma")
VECTOR_BYTES = 16
BLOCK_BYTES = 8192  # of packed weights
# Bytes that do not come, or come unexpected; another phase.
ADDED = (("mbarrier.expect_tx", 16), ("mbarrier.expect_tx", -16), ("mbarrier.try_wait", 1))

# What test_planted_faults.py found, for the terminal (cuda/conftest.py).
summary: list[str] = []


def mask(density: float = 0.4, *, size: tuple[int, int] = (19, 23), batch: int = 2) -> Tensor:
    return random_mask(batch, 1, *size, density=density, seed=7)


def image(channels: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    values = torch.randn(2, channels, 19, 23, generator=generator).to(dtype)
    return values.contiguous(memory_format=torch.channels_last)


def compaction(backend: Backend) -> list[Tensor]:
    results = []
    for batch, size in ((2, (19, 23)), (3, (70, 61))):
        results += backend.ops.compact_mask(mask(size=size, batch=batch))
    return results


def long_compaction(backend: Backend) -> list[Tensor]:
    """More sections than one level of counts takes."""
    return list(backend.ops.compact_mask(mask(0.01, size=(1030, 1024), batch=1)))


def expansion(backend: Backend) -> list[Tensor]:
    return [backend.ops.expand_mask(mask(0.1), [3, 3], [1, 1], [2] * 4, [2, 2], [19, 23])]


def gate(backend: Backend) -> list[Tensor]:
    operands = gate_operands(24, torch.float32, (3, 30, 41))
    return list(backend.ops.gate_mask(*operands, True))


def rows(backend: Backend) -> list[Tensor]:
    results = []
    for channels, dtype in ((8, torch.bfloat16), (6, torch.float32), (3, torch.float16)):
        values = image(channels, dtype)
        active_idx, count, _ = backend.ops.compact_mask(mask())
        gathered = backend.ops.gather_pixels(values, active_idx, count)
        base = image(channels, dtype).roll(1, 2)
        results += [
            gathered,
            backend.ops.scatter_pixels(gathered, mask(), active_idx, count, None),
            backend.ops.scatter_pixels(gathered, mask(), active_idx, count, base),
        ]
    return results


def nearest(backend: Backend) -> list[Tensor]:
    sparse = mask(0.05)
    return [
        result
        for channels in (8, 3)
        for result in (
            backend.ops.nearest_fill(image(channels), sparse),
            backend.ops.nearest_fill_grad(image(channels), sparse),
        )
    ]


def active_sum(backend: Backend) -> list[Tensor]:
    return [backend.ops.active_sum(image(40), mask())]


def multi_dilation(
    operator: str, channels: int, fill: str, is_tied: bool, dtype: torch.dtype = torch.float32
) -> Call:
    """conv2d, dgrad or wgrad of branches with dilations 1, 0 and 2."""

    def call(backend: Backend) -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        choice = torch.randint(-1, 3, (2, 1, 19, 23), generator=generator, dtype=torch.int32)
        shape = ([] if is_tied else [3]) + [channels, channels, 3, 3]
        weight, bias = (
            torch.randn(s, generator=generator).to(dtype) for s in (shape, (3, channels))
        )
        base = image(channels, dtype).roll(1, 2) if fill == "passthrough" else None
        values, dilations = image(channels, dtype), [1, 0, 2]
        arguments = {
            "conv2d": (values, weight, choice, bias, base, dilations, fill, "relu"),
            "dgrad": (values, weight, choice, dilations, False),
            "wgrad": (values, values, choice, 3, dilations, is_tied),
        }
        return [getattr(backend.ops, f"multi_dilation_{operator}")(*arguments[operator])]

    return call


def one_pass(
    name: str, problem: Problem, dtype: torch.dtype, algorithm: str, **options: object
) -> Call:
    """forward, dgrad or wgrad of a problem."""
    return lambda backend: [getattr(backend, name)(problem, dtype, algorithm, **options)]


def packed_pass(backend: Backend) -> list[Tensor]:
    """The forward pass with weights from a pack: more steps than stages, several tiles a block."""
    weight = expected(WGMMA_PACKED, torch.bfloat16, False)[0]["weight"]
    packed = backend.ops.pack_weight(weight, 1)
    output = backend.forward(WGMMA_PACKED, torch.bfloat16, "implicit_gemm", packed_weight=packed)
    return [packed, output]


# Rows for several tiles of a block; columns and depth with a ragged end; two images.
WIDE = Problem(in_channels=40, out_channels=72, size=(13, 17), density=0.7, activation="hardswish")
# Sixteen steps for a ring of three stages: the last one is read from the stage where the epilogue
# puts its sums.
EVEN = Problem(
    in_channels=56, out_channels=56, size=(13, 17), kernel=(2, 2), density=0.7, activation="relu6"
)
# Rings that go round several times, tables too; columns with a ragged end.
WGMMA = Problem(
    in_channels=192, out_channels=56, size=(23, 27), kernel=(1, 1), padding=(0, 0), density=0.7,
    activation="relu6",
)  # fmt: skip
WGMMA_TF32 = replace(WGMMA, in_channels=96)
WGMMA_PACKED = Problem(
    in_channels=128, out_channels=56, size=(18, 17), kernel=(2, 1), padding=(0, 0), density=0.7
)
# One tile, split over the blocks of a cluster.
WGMMA_CLUSTER = Problem(
    batch=1, in_channels=256, out_channels=56, size=(9, 16), kernel=(2, 1), padding=(0, 0),
    density=0.95, activation="hardswish",
)  # fmt: skip
WGMMA_DGRAD = Problem(
    in_channels=56, out_channels=192, size=(23, 27), kernel=(1, 1), padding=(0, 0), density=0.7
)
# One slice, more steps than stages.
WGMMA_WGRAD = Problem(
    in_channels=64, out_channels=128, size=(22, 23), kernel=(1, 1), padding=(0, 0), density=0.9
)
EPILOGUE = Problem(
    in_channels=24, out_channels=40, size=(13, 17), fill="passthrough", has_residual=True,
    activation="hardswish", activate_base=True,
)  # fmt: skip
DIRECT = Problem(activation="hardswish")
DEPTHWISE = Problem(in_channels=24, out_channels=24, groups=24, activation="hardswish")
# Several slabs of depth, several tiles of rows for a block.
FEW_CHANNELS = Problem(
    in_channels=5, out_channels=20, size=(23, 27), density=0.8, activation="hardswish"
)

PASSES: dict[str, tuple] = {
    "direct": (DIRECT, torch.float32, "direct"),
    "textbook": (WIDE, torch.float32, "gather_gemm"),
    "bfloat16": (WIDE, torch.bfloat16, "implicit_gemm"),
    "float32": (EVEN, torch.float32, "implicit_gemm"),
    "depthwise": (DEPTHWISE, torch.float32, "implicit_gemm"),
}
CALLS: dict[str, Call] = {
    "compaction": compaction,
    "long compaction": long_compaction,
    "expansion": expansion,
    "gate": gate,
    "rows": rows,
    "nearest": nearest,
    "active-sum": active_sum,
    **{
        f"{name} {which}": one_pass(which, *arguments)
        for name, arguments in PASSES.items()
        for which in ("forward", "dgrad", "wgrad")
    },
    "tf32 forward": one_pass("forward", WIDE, torch.float32, "implicit_gemm", allow_tf32=True),
    "wgmma dgrad": one_pass("dgrad", WGMMA_DGRAD, torch.bfloat16, "implicit_gemm"),
    "wgmma wgrad": one_pass("wgrad", WGMMA_WGRAD, torch.bfloat16, "implicit_gemm"),
    "wgmma tf32": one_pass("forward", WGMMA_TF32, torch.float32, "implicit_gemm", allow_tf32=True),
    "wgmma forward": one_pass("forward", WGMMA, torch.bfloat16, "implicit_gemm"),
    "wgmma packed": packed_pass,
    "wgmma cluster": one_pass("forward", WGMMA_CLUSTER, torch.bfloat16, "implicit_gemm"),
    "few-channels": one_pass("forward", FEW_CHANNELS, torch.float32, "implicit_gemm"),
    "epilogue": one_pass("forward", EPILOGUE, torch.float16, "implicit_gemm"),
    "dense": one_pass("forward", EPILOGUE, torch.float32, "dense"),
    "multi-dilation": multi_dilation("conv2d", 40, "passthrough", False),
    "multi-dilation bfloat16": multi_dilation("conv2d", 40, "nearest", True, torch.bfloat16),
    **{
        f"multi-dilation direct {operator}": multi_dilation(operator, 5, "zero", False)
        for operator in ("conv2d", "dgrad", "wgrad")
    },
    "multi-dilation dgrad": multi_dilation("dgrad", 24, "zero", False, torch.bfloat16),
    "multi-dilation wgrad": multi_dilation("wgrad", 24, "zero", False),
    "multi-dilation wgmma wgrad": multi_dilation("wgrad", 128, "zero", True, torch.bfloat16),
}
# Calls that go another way through a kernel of an earlier call, which they damage again there.
OTHER_WAYS = {
    "multi-dilation dgrad": "DgradRows",
    "multi-dilation wgmma wgrad": "wgmma_wgrad_kernel",
    "wgmma packed": "ForwardRows",
    "wgmma cluster": "ForwardRows",
}


def kernel_of(mangled: str) -> str:
    """The name of a kernel template, with what makes a kernel of its own of an instantiation."""
    name = template_of(mangled)
    if name not in ("implicit_gemm_kernel", "wgmma_gemm_kernel"):
        return name
    rows = re.search(r"\d([A-Z][a-z]+Rows)", mangled)
    kind = "bfloat16" if "bfloat16" in mangled else "float16" if "half" in mangled else "float32"
    multiply = re.search(r"MultiplyE(\d)", mangled)
    return f"{name}<{kind}, {multiply[1] if multiply else ''}, {rows[1] if rows else ''}>"


def template_of(mangled: str) -> str:
    """Names are mangled as a length and so many letters; the shortest that fits is the kernel's.

    A longer one would begin with a piece of the hash of its anonymous namespace.
    """
    names = []
    for found in re.finditer(r"\d+", mangled):
        for start in range(found.start(), found.end()):
            name = mangled[found.end() : found.end() + int(mangled[start : found.end()])]
            if re.fullmatch(r"[a-z][a-z0-9_]*_kernel", name):
                names.append(name)
    return min(names, key=len, default=mangled)


@dataclass(frozen=True)
class Fault:
    kernel: str  # mangled
    kind: str  # "drop bar.sync"
    where: str  # source line and opcode
    spec: str  # for Emulator.mutate


def faults(emulator: Emulator, kernel: str, samples: int) -> Iterator[Fault]:
    """Faults where a profiled call went: all that order memory, the others evenly sampled."""

    def plant(kind: str, pattern: str, spec: str, most: int | None = samples) -> Iterator[Fault]:
        places = emulator.places(pattern, kernel)
        is_predicate = pattern == "unpred:"
        ran = [n for n, (runs, held, _) in enumerate(places) if (held if is_predicate else runs)]
        for number in ran if most is None else spread(ran, most):
            where = places[number][2]
            text = spec.format(number, shift_bytes(where))
            yield Fault(kernel, kind, re.sub(r"ptx line \d+ ", "", where), f"{text}@{kernel}")

    for opcode in ORDER:
        yield from plant(f"drop {opcode}", opcode, f"drop:{opcode}:{{0}}", None)
    yield from plant("wait + 1", "wait:", "wait:{0}:1", None)
    for opcode, amount in ADDED:
        yield from plant(f"add to {opcode}", f"add:{opcode}", f"add:{opcode}:{{0}}:{amount}", None)
    for opcode in SWAPPED:
        yield from plant(f"swap {opcode}", f"swap:{opcode}", f"swap:{opcode}:{{0}}", 1)
    for opcode in DROPPED:
        yield from plant(f"drop {opcode}", opcode, f"drop:{opcode}:{{0}}", 1)
    yield from plant("unpredicate", "unpred:", "unpred:{0}")
    yield from plant("shift", "shift:", "shift:{0}:{1}")
    yield from plant("source", "source:", "source:{0}:{1}", None)


def shift_bytes(where: str) -> int:
    """To the next element, for vectors so that the address stays aligned, or to other weights."""
    opcode = where.split()[-1]
    if ".bulk" in opcode:
        return BLOCK_BYTES
    size = re.search(r"\.[a-z]+(8|16|32|64)$", opcode)
    is_vector = any(part in opcode for part in (".v2", ".v4", "cp.async", "matrix"))
    return VECTOR_BYTES if is_vector or size is None else int(size[1]) // 8


def spread(numbers: list[int], samples: int) -> list[int]:
    """Up to ``samples`` of the numbers, evenly spaced."""
    taken = min(len(numbers), samples)
    return [numbers[(2 * i + 1) * len(numbers) // (2 * taken)] for i in range(taken)]
