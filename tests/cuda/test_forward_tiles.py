"""The tiles of the implicit GEMM: edges in rows, columns and depth, split sums, equal bits."""

import pytest
import torch
from cuda_backend import Backend, open_backend
from helpers import Problem, assert_as_exact, expected

DTYPES = (torch.float32, torch.bfloat16)
ROWS = {"tile-1": (255, 1), "tile": (256, 1), "tile+1": (257, 1)}


@pytest.fixture
def emulated() -> Backend:
    """For tests that set the device's size or schedule."""
    backend = open_backend("emulated")
    assert backend.emulator is not None
    backend.emulator.set(race=1, bounds=1, seed=1, resident=2)
    return backend


def run(backend: Backend, problem: Problem, dtype: torch.dtype, **options: object) -> torch.Tensor:
    _, exact, dense, sums = expected(problem, dtype, False)
    output = backend.forward(problem, dtype, "implicit_gemm", **options)
    assert_as_exact("output", output, exact["output"], dense["output"], sums["output"])
    return output


def tile_of(backend: Backend) -> str:
    """The tile in the mangled name of the kernel that ran last; empty on a GPU."""
    if backend.emulator is None:
        return ""
    names = [
        line for line in backend.emulator.text("log").split() if "implicit_gemm_kernel" in line
    ]
    return names[-1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [63, 64, 65, 127, 128, 129])
@pytest.mark.parametrize("rows", ROWS)
def test_edges(backend: Backend, rows: str, columns: int, dtype: torch.dtype) -> None:
    problem = Problem(
        batch=1, in_channels=8, out_channels=columns, size=ROWS[rows], kernel=(3, 1),
        padding=(1, 0), density=1.0,
    )  # fmt: skip
    run(backend, problem, dtype)
    tile = "Li128ELi64" if dtype == torch.float32 or columns <= 64 else "Li128ELi128"
    assert backend.emulator is None or tile in tile_of(backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [63, 64, 65, 1])
def test_small_tiles(backend: Backend, rows: int, dtype: torch.dtype) -> None:
    problem = Problem(batch=1, in_channels=16, out_channels=65, size=(rows, 1), density=1.0)
    run(backend, problem, dtype)
    tile = "Li128ELi64" if dtype == torch.float32 else "Li64ELi64"
    assert backend.emulator is None or tile in tile_of(backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("tile", [(128, 128), (128, 64), (64, 64)], ids=str)
def test_every_tensor_core_tile(
    backend: Backend, tile: tuple[int, int], dtype: torch.dtype
) -> None:
    """float32 as tf32, of factors that tf32 holds exactly."""
    columns, rows = {(128, 128): (72, 300), (128, 64): (40, 300), (64, 64): (40, 60)}[tile]
    problem = Problem(
        batch=1, in_channels=24, out_channels=columns, size=(rows, 1), kernel=(3, 1),
        padding=(1, 0), density=0.8,
    )  # fmt: skip
    stored = torch.bfloat16 if dtype == torch.float32 else dtype
    tensors, exact, dense, sums = expected(problem, stored, False)
    tensors = {
        name: value.to(dtype) if value is not None and name != "mask" else value
        for name, value in tensors.items()
    }
    output = backend.forward(
        problem, dtype, "implicit_gemm", tensors=tensors, allow_tf32=dtype == torch.float32
    )
    rounded = exact["output"].float() if dtype == torch.float32 else dense["output"]
    assert_as_exact("output", output, exact["output"], rounded, sums["output"])
    assert backend.emulator is None or "Li{}ELi{}".format(*tile) in tile_of(backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("depth", [8, 16, 24, 32, 40, 72])
def test_depth(backend: Backend, depth: int, dtype: torch.dtype) -> None:
    run(backend, Problem(batch=1, in_channels=depth, out_channels=16), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_groups_of_several_tiles(backend: Backend, dtype: torch.dtype) -> None:
    """Columns of a group end inside a tile, and rows of 16 bytes inside a group."""
    run(backend, Problem(in_channels=24, out_channels=3 * 66, groups=3, size=(5, 7)), dtype)
    run(backend, Problem(in_channels=24, out_channels=3 * 72, groups=3, size=(5, 7)), dtype)


@pytest.mark.emulated
def test_split_sums(emulated: Backend) -> None:
    """Few tiles on many multiprocessors: parts of a tile, added in order by the second kernel."""
    problem = Problem(
        in_channels=40, out_channels=72, density=0.5, has_residual=True, activation="silu"
    )
    emulated.emulator.set(sms=1, occupancy=1)
    whole = run(emulated, problem, torch.float32)
    emulated.emulator.set(sms=30, occupancy=1)
    split = run(emulated, problem, torch.float32)
    assert "grid 30,1,1" in emulated.emulator.text("log")
    assert not torch.equal(whole, split)  # other sums, or nothing was split
    for seed in (2, 3):
        emulated.emulator.set(seed=seed)
        assert torch.equal(run(emulated, problem, torch.float32), split)


@pytest.mark.emulated
@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
def test_split_sums_of_any_mask(emulated: Backend, density: float) -> None:
    """More parts than steps, among others."""
    emulated.emulator.set(sms=40, occupancy=2)
    for kernel, padding in (((3, 3), (1, 1)), ((1, 1), (0, 0))):
        problem = Problem(
            in_channels=16, kernel=kernel, padding=padding, density=density, fill="passthrough"
        )
        for dtype in DTYPES:
            run(emulated, problem, dtype)


@pytest.mark.emulated
@pytest.mark.parametrize("allow_tf32", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits(emulated: Backend, dtype: torch.dtype, allow_tf32: bool) -> None:
    """Whatever the order in which blocks and warps run, and how many there are."""
    problem = Problem(in_channels=24, out_channels=136, size=(15, 15), density=0.6)
    outputs = []
    for options in (
        {"sms": 2, "occupancy": 2, "seed": 1, "resident": 2},
        {"sms": 2, "occupancy": 2, "seed": 1, "resident": 2},
        {"sms": 1, "occupancy": 1, "seed": 7, "resident": 1},
        {"sms": 1, "occupancy": 3, "seed": 11, "resident": 3},
    ):
        emulated.emulator.set(**options)
        outputs.append(emulated.forward(problem, dtype, "implicit_gemm", allow_tf32=allow_tf32))
    assert all(torch.equal(output, outputs[0]) for output in outputs[1:])
