"""The warp-specialised tiles of compute capability 9.0: edges, rings, parts, and who takes what.

On a GPU of another capability the same problems run on the tiles that it has.
"""

from dataclasses import replace

import pytest
import torch
from cuda_backend import Backend, open_backend
from helpers import Problem, assert_as_exact, assert_no_row_missing, expected, to_double

from perfconv.ops import reference

# Columns of the tile by output channels; tiles of 256 only where there are enough of them.
NARROW, MIDDLE, WIDE = 64, 128, 256
EPILOGUE = Problem(
    in_channels=64, out_channels=72, size=(13, 17), density=0.7, fill="passthrough",
    has_residual=True, activation="hardswish", activate_base=True,
)  # fmt: skip


@pytest.fixture
def emulated() -> Backend:
    """For tests that set the device's size or schedule; sound again afterwards."""
    backend = open_backend("emulated")
    assert backend.emulator is not None
    backend.emulator.set(race=1, bounds=1, seed=1, resident=2, sms=2, occupancy=2)
    yield backend
    backend.emulator.set(cc=90, **{"async": 2})


def launched_tile(backend: Backend) -> str:
    """The warp-specialised tile in the mangled name of the kernel that ran; empty without one."""
    names = backend.emulator.text("log").split()
    found = [name for name in names if "wgmma_gemm_kernel" in name]
    return found[-1] if found else ""


def run(
    backend: Backend, problem: Problem, dtype: torch.dtype, columns: int | None = None
) -> torch.Tensor:
    _, exact, dense, sums = expected(problem, dtype, False)
    output = backend.forward(problem, dtype, "implicit_gemm")
    if backend.emulator is not None:
        tile = launched_tile(backend)
        assert f"Li{columns}E" in tile if columns else tile
    assert_as_exact("output", output, exact["output"], dense["output"], sums["output"])
    return output


# Every tile in both dtypes, and its edges in one.
COLUMNS = [
    *((channels, columns, torch.bfloat16) for channels, columns in (
        (1, NARROW), (63, NARROW), (64, NARROW), (65, MIDDLE), (128, MIDDLE), (129, WIDE),
        (256, WIDE), (257, WIDE),
    )),
    *((columns, columns, torch.float16) for columns in (NARROW, MIDDLE, WIDE)),
]  # fmt: skip


@pytest.mark.parametrize(("channels", "columns", "dtype"), COLUMNS)
def test_columns(backend: Backend, channels: int, columns: int, dtype: torch.dtype) -> None:
    problem = Problem(
        batch=1, in_channels=64, out_channels=channels, size=(257, 1), kernel=(2, 1), density=1.0,
        padding=(1, 0),
    )  # fmt: skip
    run(backend, problem, dtype, columns)


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 127, 128, 129])
def test_rows(backend: Backend, rows: int) -> None:
    run(backend, Problem(batch=1, in_channels=64, size=(rows, 1), density=1.0), torch.bfloat16)


@pytest.mark.parametrize(
    ("kernel", "depth"), [((1, 1), 64), ((1, 1), 320), ((3, 3), 128), ((5, 5), 64)], ids=str
)
def test_depth(backend: Backend, kernel: tuple[int, int], depth: int) -> None:
    """Fewer steps than stages, and many more."""
    padding = (kernel[0] // 2, kernel[1] // 2)
    problem = Problem(
        batch=1, in_channels=depth, size=(6, 7), kernel=kernel, padding=padding, density=0.6
    )
    run(backend, problem, torch.bfloat16)


PROBLEMS = {
    "epilogue": EPILOGUE,
    "odd-columns": replace(EPILOGUE, out_channels=71),
    "groups": Problem(in_channels=192, out_channels=3 * 66, groups=3, size=(5, 7)),
    "stride": Problem(in_channels=64, stride=(2, 1), dilation=(1, 2), padding=(2, 1), batch=3),
    "dilation-beyond-map": Problem(in_channels=64, dilation=(12, 12), padding=(12, 12)),
    "empty": Problem(in_channels=64, density=0.0, fill="passthrough"),
    "full": Problem(in_channels=64, density=1.0),
    "one-pixel": Problem(in_channels=64, batch=1, size=(1, 1)),
    "shared-mask": Problem(in_channels=64, is_mask_shared=True),
    "nearest": Problem(in_channels=64, density=0.1, fill="nearest"),
    "none": Problem(in_channels=64, density=1.0, fill="none"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_problems(backend: Backend, name: str) -> None:
    run(backend, PROBLEMS[name], torch.bfloat16)


def rounded_to_tf32(values: torch.Tensor) -> torch.Tensor:
    """To the nearest, ties away from zero."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def run_tf32(backend: Backend, problem: Problem, columns: int | None = None) -> torch.Tensor:
    """Factors rounded to the nearest, not cut: the same bits as of rounded ones, whose products
    float32 holds exactly."""
    tensors, _, _, sums = expected(problem, torch.float32, False)
    rounded = {**tensors, **{name: rounded_to_tf32(tensors[name]) for name in ("input", "weight")}}
    output, wanted = (
        backend.forward(
            problem, torch.float32, "implicit_gemm", tensors=values, allow_tf32=True
        )
        for values in (tensors, rounded)
    )  # fmt: skip
    if backend.emulator is not None:
        tile = launched_tile(backend)
        assert f"Li{columns}E" in tile if columns else tile
    assert torch.equal(output, wanted)
    operands = {name: value for name, value in rounded.items() if name != "grad_output"}
    double = {name: to_double(value) for name, value in operands.items()}
    exact = reference.perforated_conv2d(**double, **problem.options)
    dense = reference.perforated_conv2d(**operands, **problem.options, dtype=torch.float32)
    assert_as_exact("output", output, exact, dense, sums["output"])
    return output


@pytest.mark.parametrize(
    ("channels", "columns"),
    [(1, NARROW), (64, NARROW), (65, MIDDLE), (128, MIDDLE), (129, WIDE), (257, WIDE)],
)
def test_tf32_columns(backend: Backend, channels: int, columns: int) -> None:
    problem = Problem(
        batch=1, in_channels=32, out_channels=channels, size=(257, 1), kernel=(2, 1), density=1.0,
        padding=(1, 0),
    )  # fmt: skip
    run_tf32(backend, problem, columns)


TF32_PROBLEMS = {
    "epilogue": replace(EPILOGUE, in_channels=96),
    "groups": Problem(in_channels=96, out_channels=3 * 66, groups=3, size=(5, 7)),
    "stride": Problem(in_channels=32, stride=(2, 1), dilation=(1, 2), padding=(2, 1), batch=3),
    "empty": Problem(in_channels=32, density=0.0, fill="passthrough"),
    "one-pixel": Problem(in_channels=32, batch=1, size=(1, 1)),
    "deep": Problem(in_channels=320, size=(6, 7), kernel=(1, 1), padding=(0, 0), density=0.6),
}


@pytest.mark.parametrize("name", TF32_PROBLEMS)
def test_tf32(backend: Backend, name: str) -> None:
    run_tf32(backend, TF32_PROBLEMS[name])


@pytest.mark.parametrize("bad", [0x7F800000, 0x7FC00000, 0x7FFFFFFF], ids=hex)
def test_tf32_keeps_what_is_not_finite(backend: Backend, bad: int) -> None:
    """Infinity, NaN, and the NaN of which rounding by adding to the bits would make a zero."""
    problem = Problem(in_channels=32, kernel=(1, 1), padding=(0, 0), density=1.0)
    for operand in ("input", "weight"):
        tensors = dict(expected(problem, torch.float32, False)[0])
        tensors[operand] = tensors[operand].clone()
        tensors[operand].flatten().view(torch.int32)[0] = bad
        output = backend.forward(
            problem, torch.float32, "implicit_gemm", tensors=tensors, allow_tf32=True
        )
        exact = reference.perforated_conv2d(
            **{name: value for name, value in tensors.items() if name != "grad_output"},
            **problem.options,
        )
        assert torch.equal(output.isfinite(), exact.isfinite())


@pytest.mark.emulated
def test_tf32_of_any_schedule(emulated: Backend) -> None:
    problem = replace(EPILOGUE, in_channels=96, kernel=(2, 2))
    outputs = [run_tf32(emulated, problem)]
    for seed, mode, multiprocessors in ((1, 0, 1), (2, 1, 1), (3, 1, 40), (4, 2, 40)):
        emulated.emulator.set(sms=multiprocessors, occupancy=1, seed=seed, **{"async": mode})
        outputs.append(emulated.forward(problem, torch.float32, "implicit_gemm", allow_tf32=True))
    assert torch.equal(outputs[1], outputs[2])
    assert torch.equal(outputs[3], outputs[4])  # parts of tiles: sums in another order


@pytest.mark.emulated
def test_tf32_of_gradients_takes_the_other_tiles(emulated: Backend) -> None:
    problem = Problem(in_channels=64, out_channels=128)
    for call in (emulated.dgrad, emulated.wgrad):
        call(problem, torch.float32, "implicit_gemm", allow_tf32=True)
        assert "wgmma" not in emulated.emulator.text("log")


def run_dgrad(
    backend: Backend, problem: Problem, dtype: torch.dtype, columns: int | None = None
) -> torch.Tensor:
    _, exact, dense, sums = expected(problem, dtype, False)
    result = backend.dgrad(problem, dtype, "implicit_gemm")
    if backend.emulator is not None:
        tile = launched_tile(backend)
        assert f"Li{columns}E" in tile if columns else "DgradRows" in tile
    assert_as_exact("input", result, exact["input"], dense["input"], sums["input"])
    assert_no_row_missing("input", result, exact["input"], dense["input"])
    return result


DGRAD_PROBLEMS = {
    "plain": Problem(in_channels=24, out_channels=64),
    "full": Problem(in_channels=8, out_channels=64, density=1.0),
    "empty": Problem(in_channels=8, out_channels=64, density=0.0),
    "groups": Problem(in_channels=3 * 72, out_channels=192, groups=3, size=(5, 7)),
    "stride": Problem(
        in_channels=16, out_channels=64, stride=(2, 1), dilation=(1, 2), padding=(2, 1), batch=3
    ),
    "deep": Problem(in_channels=136, out_channels=320, size=(6, 7), kernel=(1, 3), padding=(0, 1)),
}


@pytest.mark.parametrize(
    ("channels", "columns", "dtype"),
    [
        *((channels, columns, torch.bfloat16) for channels, columns in (
            (8, NARROW), (64, NARROW), (72, MIDDLE), (264, WIDE),
        )),
        *((columns, columns, torch.float16) for columns in (NARROW, MIDDLE, WIDE)),
    ],
)  # fmt: skip
def test_dgrad_columns(backend: Backend, channels: int, columns: int, dtype: torch.dtype) -> None:
    problem = Problem(
        batch=1, in_channels=channels, out_channels=64, size=(257, 1), kernel=(2, 1),
        padding=(1, 0), density=0.9,
    )  # fmt: skip
    run_dgrad(backend, problem, dtype, columns)


@pytest.mark.parametrize("name", DGRAD_PROBLEMS)
def test_dgrad(backend: Backend, name: str) -> None:
    run_dgrad(backend, DGRAD_PROBLEMS[name], torch.bfloat16)


@pytest.mark.emulated
def test_dgrad_of_any_schedule(emulated: Backend) -> None:
    problem = Problem(in_channels=72, out_channels=64, size=(13, 17), density=0.6)
    outputs = []
    for seed, mode, multiprocessors in ((1, 0, 1), (2, 1, 1), (3, 2, 3), (4, 1, 40), (5, 2, 40)):
        emulated.emulator.set(sms=multiprocessors, occupancy=1, seed=seed, **{"async": mode})
        outputs.append(run_dgrad(emulated, problem, torch.bfloat16))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[3], outputs[4])  # parts of tiles: sums in another order


def run_wgrad(backend: Backend, problem: Problem, dtype: torch.dtype) -> torch.Tensor:
    _, exact, dense, sums = expected(problem, dtype, False)
    result = backend.wgrad(problem, dtype, "implicit_gemm")
    if backend.emulator is not None:
        columns = NARROW if problem.in_channels // problem.groups <= 64 else MIDDLE
        log = backend.emulator.text("log")
        assert f"Li{columns}E" in log.split("wgmma_wgrad_kernel")[1].split("ActiveRows")[0]
    assert_as_exact("weight", result, exact["weight"], dense["weight"], sums["weight"])
    assert_no_row_missing("weight", result, exact["weight"], dense["weight"])
    return result


WGRAD_PROBLEMS = {
    "plain": Problem(in_channels=64, out_channels=128, size=(6, 7)),
    "wide": Problem(in_channels=192, out_channels=320, size=(6, 7), kernel=(1, 1), padding=(0, 0)),
    "empty": Problem(in_channels=64, out_channels=128, kernel=(1, 3), density=0.0),
    "one-pixel": Problem(in_channels=64, out_channels=128, density=0.005, seed=2),
    "groups": Problem(
        in_channels=128, out_channels=256, groups=2, size=(5, 7), kernel=(1, 2), padding=(0, 1)
    ),
    "stride": Problem(
        in_channels=64, out_channels=128, stride=(2, 1), dilation=(1, 2), padding=(2, 1), batch=3
    ),
    **{  # one step more or less, one table, several slices
        f"{rows}-pixels": Problem(
            batch=1, in_channels=64, out_channels=128, size=(rows, 1), kernel=(1, 1),
            padding=(0, 0), density=1.0,
        )
        for rows in (63, 64, 65, 128, 129, 1100)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WGRAD_PROBLEMS)
def test_wgrad(backend: Backend, name: str) -> None:
    run_wgrad(backend, WGRAD_PROBLEMS[name], torch.bfloat16)


@pytest.mark.parametrize("inputs", [64, 128])
def test_wgrad_float16(backend: Backend, inputs: int) -> None:
    problem = Problem(in_channels=inputs, out_channels=128, kernel=(1, 1), padding=(0, 0))
    run_wgrad(backend, problem, torch.float16)


@pytest.mark.emulated
def test_wgrad_of_any_schedule(emulated: Backend) -> None:
    """More steps than stages in one slice; the bits do not depend on the device's size."""
    problem = Problem(
        batch=1, in_channels=64, out_channels=128, size=(40, 25), kernel=(1, 1), padding=(0, 0),
        density=0.9,
    )  # fmt: skip
    outputs = []
    for seed, mode, multiprocessors in ((1, 0, 1), (2, 1, 3), (3, 2, 40), (4, 1, 2)):
        emulated.emulator.set(sms=multiprocessors, occupancy=1, seed=seed, **{"async": mode})
        outputs.append(run_wgrad(emulated, problem, torch.bfloat16))
    assert all(torch.equal(output, outputs[0]) for output in outputs[1:])


@pytest.mark.emulated
@pytest.mark.parametrize("columns", [NARROW, MIDDLE, WIDE])
def test_any_schedule(emulated: Backend, columns: int) -> None:
    """Tables and rings go round several times; whoever runs ahead, the bits are the same."""
    problem = replace(EPILOGUE, out_channels=columns, kernel=(2, 2), padding=(1, 1))
    outputs = []
    for seed, mode in ((1, "early"), (2, "late"), (3, "late"), (4, "random")):
        mode_number = ["early", "late", "random"].index(mode)
        emulated.emulator.set(sms=1, occupancy=1, seed=seed, **{"async": mode_number})
        outputs.append(run(emulated, problem, torch.bfloat16, columns))
    assert all(torch.equal(output, outputs[0]) for output in outputs[1:])


@pytest.mark.emulated
@pytest.mark.parametrize(("kernel", "density"), [((3, 3), 0.02), ((1, 1), 1.0)], ids=str)
def test_parts_of_tiles(emulated: Backend, kernel: tuple[int, int], density: float) -> None:
    """Few tiles on many multiprocessors: parts added in order, more parts than steps among them."""
    problem = replace(EPILOGUE, kernel=kernel, padding=(kernel[0] // 2,) * 2, density=density)
    outputs = []
    for seed in (1, 2):
        emulated.emulator.set(sms=40, occupancy=1, seed=seed)
        outputs.append(run(emulated, problem, torch.bfloat16))
    assert torch.equal(*outputs)


@pytest.mark.emulated
def test_launches_do_not_depend_on_the_mask(emulated: Backend) -> None:
    """As a replayed CUDA graph needs it: grids, kernels and workspaces are the same."""
    logs = []
    for density in (0.0, 0.3, 1.0):
        run(emulated, replace(EPILOGUE, density=density), torch.bfloat16)
        logs.append(emulated.emulator.text("log"))
    assert logs[0] == logs[1] == logs[2]


@pytest.mark.emulated
def test_older_and_newer_devices_take_the_other_tiles(emulated: Backend) -> None:
    for capability in (80, 86, 89, 100, 120):
        emulated.emulator.set(cc=capability)
        for call in (emulated.forward, emulated.dgrad):
            call(replace(EPILOGUE, out_channels=64), torch.bfloat16, "implicit_gemm")
            assert "implicit_gemm_kernel" in emulated.emulator.text("log"), capability
            assert not launched_tile(emulated)
