"""Few tiles on compute capability 9.0: parts of a tile that blocks of one cluster make and add.

On a GPU the same problems take what its size gives them; on one of another capability, none.
"""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cuda_backend import EMULATED_LIBRARY, Backend, open_backend
from helpers import Problem, assert_as_exact, expected

DTYPE = torch.bfloat16
# One tile of 128 rows at most, ragged columns, everything that an epilogue does.
PROBLEM = Problem(
    batch=1, in_channels=128, out_channels=72, size=(9, 13), density=0.7, fill="passthrough",
    has_residual=True, activation="hardswish", activate_base=True,
)  # fmt: skip
POINTWISE = replace(PROBLEM, in_channels=320, kernel=(1, 1), padding=(0, 0))
SIZES = [2, 4, 8]


@pytest.fixture
def emulated() -> Backend:
    """For tests that set the device's size or schedule; sound again afterwards."""
    backend = open_backend("emulated")
    assert backend.emulator is not None
    backend.emulator.set(race=1, bounds=1, seed=1, resident=2)
    yield backend
    backend.emulator.set(seed=1, resident=2, neighbours=0, **{"async": 2})


def resize(backend: Backend, multiprocessors: int, **options: int) -> None:
    if backend.emulator is not None:
        backend.emulator.set(sms=multiprocessors, occupancy=1, **options)


def cluster(backend: Backend) -> int:
    """Blocks of a cluster of the wgmma kernel that was launched last."""
    launches = [
        line for line in backend.emulator.text("log").splitlines() if "wgmma_gemm_kernel" in line
    ]
    found = re.search(r" cluster (\d+) ", launches[-1])
    return int(found[1]) if found else 1


def assert_cluster(backend: Backend, size: int) -> None:
    if backend.emulator is not None:
        assert cluster(backend) == size


def run(backend: Backend, problem: Problem, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    _, exact, dense, sums = expected(problem, dtype, False)
    output = backend.forward(problem, dtype, "implicit_gemm")
    assert_as_exact("output", output, exact["output"], dense["output"], sums["output"])
    return output


def run_dgrad(backend: Backend, problem: Problem, dtype: torch.dtype = DTYPE) -> torch.Tensor:
    _, exact, dense, sums = expected(problem, dtype, False)
    result = backend.dgrad(problem, dtype, "implicit_gemm")
    assert_as_exact("input", result, exact["input"], dense["input"], sums["input"])
    return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("channels", [40, 128])
@pytest.mark.parametrize("size", SIZES)
def test_forward(backend: Backend, size: int, channels: int, dtype: torch.dtype) -> None:
    """Parts for every block of a cluster, of both widths of tiles."""
    resize(backend, size)
    run(backend, replace(PROBLEM, out_channels=channels), dtype)
    assert_cluster(backend, size)


@pytest.mark.parametrize("channels", [40, 128])
@pytest.mark.parametrize("size", SIZES)
def test_dgrad(backend: Backend, size: int, channels: int) -> None:
    resize(backend, size)
    run_dgrad(backend, Problem(batch=1, in_channels=channels, out_channels=128, size=(9, 13)))
    assert_cluster(backend, size)


@pytest.mark.parametrize("rows", [1, 127, 128, 129, 256, 257, 385])
@pytest.mark.parametrize("multiprocessors", [16, 24])
def test_rows(backend: Backend, multiprocessors: int, rows: int) -> None:
    """One to four tiles: eight and four parts, five and six in the workspace; blocks of a
    cluster without any."""
    resize(backend, multiprocessors)
    run(backend, replace(POINTWISE, size=(rows, 1), density=1.0))
    assert_cluster(backend, 8)


@pytest.mark.parametrize("density", [0.0, 0.004, 0.3, 0.6, 1.0])
def test_counts_below_the_capacity(backend: Backend, density: float) -> None:
    resize(backend, 16)
    run(backend, replace(PROBLEM, size=(24, 16), density=density))
    assert_cluster(backend, 8)


@pytest.mark.parametrize("depth", [64, 128, 512])
def test_depth(backend: Backend, depth: int) -> None:
    """More parts than steps, as many, and parts of several steps."""
    resize(backend, 8)
    run(backend, replace(POINTWISE, in_channels=depth))
    run(backend, replace(PROBLEM, in_channels=depth, fill="nearest", size=(6, 7)))


def test_packed_weights(backend: Backend) -> None:
    resize(backend, 4)
    tensors = expected(PROBLEM, DTYPE, False)[0]
    packed = backend.ops.pack_weight(tensors["weight"].to(backend.device), 1)
    wanted = run(backend, PROBLEM)
    output = backend.forward(PROBLEM, DTYPE, "implicit_gemm", packed_weight=packed)
    assert torch.equal(output, wanted)


def test_groups(backend: Backend) -> None:
    resize(backend, 24)
    run(backend, replace(PROBLEM, in_channels=192, out_channels=3 * 66, groups=3))
    assert_cluster(backend, 8)


@pytest.mark.parametrize("is_tied", [True, False])
def test_multi_dilation(backend: Backend, is_tied: bool) -> None:
    """Factors are sixteenths: whatever the order of the sums, they are exact."""
    resize(backend, 32)
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        values = torch.randint(-16, 17, shape, generator=generator) / 16
        return values.to(backend.device, DTYPE)

    dilations = [1, 3]
    input = draw(1, 64, 7, 9).contiguous(memory_format=torch.channels_last)
    weight = draw(*([] if is_tied else [2]), 72, 64, 3, 3)
    choice = torch.randint(-1, 2, (1, 1, 7, 9), generator=generator, dtype=torch.int32)
    choice = choice.to(backend.device)
    bias = None if is_tied else draw(2, 72)
    output = backend.ops.multi_dilation_conv2d(
        input, weight, choice, bias, None, dilations, "zero", "none"
    )
    assert_cluster(backend, 8)
    exact = torch.zeros(output.shape, dtype=torch.float64, device=backend.device)
    for branch, dilation in enumerate(dilations):
        branch_weight = weight if is_tied else weight[branch]
        branch_bias = None if bias is None else bias[branch].double()
        dense = F.conv2d(
            input.double(), branch_weight.double(), branch_bias, padding=dilation, dilation=dilation
        )
        exact = torch.where(choice == branch, dense, exact)
    assert torch.equal(output, ((exact * 256).round() / 256).to(DTYPE))


@pytest.mark.emulated
@pytest.mark.parametrize("size", SIZES)
def test_any_schedule(emulated: Backend, size: int) -> None:
    """Whoever runs ahead, copies early or late, clusters one at a time or together."""
    narrow = replace(PROBLEM, out_channels=56)
    gradient = Problem(batch=1, in_channels=72, out_channels=128, size=(9, 13), density=0.6)
    results = []
    for seed in range(1, 6):
        resize(emulated, size, seed=seed, resident=2 + seed % 2 * 16, **{"async": seed % 3})
        results.append(
            [run(emulated, narrow), run(emulated, PROBLEM), run_dgrad(emulated, gradient)]
        )
        assert_cluster(emulated, size)
    for other in results[1:]:
        assert all(torch.equal(*pair) for pair in zip(other, results[0], strict=True))


@pytest.mark.emulated
def test_parts_are_those_of_the_workspace(emulated: Backend) -> None:
    """One tile of eight that the map could have, in eight parts: the same bits where clusters are
    too small for them."""
    problem = replace(PROBLEM, size=(32, 32), density=0.1)
    outputs = []
    for multiprocessors, size in ((8, 2), (16, 4), (32, 8)):
        resize(emulated, multiprocessors)
        outputs.append(run(emulated, problem))
        assert_cluster(emulated, size)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("multiprocessors", "tiles", "size"),
    [
        (32, 8, 8), (31, 8, 4), (16, 8, 4), (15, 8, 2), (8, 8, 2), (7, 8, 1), (3, 1, 2), (1, 1, 1),
        (12, 1, 8), (5, 2, 4),
    ],
)  # fmt: skip
def test_size_of_a_cluster(emulated: Backend, multiprocessors: int, tiles: int, size: int) -> None:
    """By the tiles of a full mask, whatever the mask."""
    resize(emulated, multiprocessors)
    run(emulated, replace(POINTWISE, in_channels=64, size=(16, 8 * tiles), density=0.03))
    assert_cluster(emulated, size)


@pytest.mark.emulated
@pytest.mark.parametrize(
    ("neighbours", "size"),
    [
        (8, 8),  # two clusters of eight, four parts of each tile
        (9, 4),  # one of eight would leave two parts of a tile; three of four leave three
        (6, 4),  # eight do not fit: the runtime calls it an error
        (3, 2), (1, 1),
    ],
)  # fmt: skip
def test_clusters_that_do_not_fit(emulated: Backend, neighbours: int, size: int) -> None:
    """Of neighbouring multiprocessors, which seldom are a multiple: smaller clusters, or none."""
    resize(emulated, 16, neighbours=neighbours)
    run(emulated, replace(POINTWISE, in_channels=64, size=(16, 32), density=0.1))
    assert_cluster(emulated, size)


@pytest.mark.emulated
def test_other_tiles_have_none(emulated: Backend) -> None:
    """Of 256 columns, which are many, and of tf32."""
    resize(emulated, 3)
    run(emulated, replace(POINTWISE, out_channels=256, size=(16, 24), density=0.2))
    assert "Li256E" in emulated.emulator.text("log")
    assert_cluster(emulated, 1)
    resize(emulated, 8)
    emulated.forward(POINTWISE, torch.float32, "implicit_gemm", allow_tf32=True)
    assert_cluster(emulated, 1)


@pytest.mark.emulated
def test_none_by_the_environment() -> None:
    """Read once a process, where it could be read."""
    script = (
        "import ctypes, os, torch\n"
        f"path = {str(EMULATED_LIBRARY)!r}\n"
        "torch.ops.load_library(path)\n"
        "log = ctypes.CDLL(path).emu_log\n"
        "log.restype = ctypes.c_char_p\n"
        "input = torch.zeros(1, 64, 4, 4, dtype=torch.bfloat16)\n"
        "weight = torch.zeros(8, 64, 1, 1, dtype=torch.bfloat16)\n"
        "mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)\n"
        "for value in '20':\n"
        "    os.environ['PERFCONV_CUDA_CLUSTER'] = value\n"
        "    try:\n"
        "        torch.ops.perfconv_emulated.perforated_conv2d(\n"
        "            input, weight, mask, stride=[1, 1], padding=[0] * 4, dilation=[1, 1],\n"
        "            groups=1, algorithm='implicit_gemm')\n"
        "        print(b'wgmma' in log(), b'cluster' in log())\n"
        "    except Exception as error:\n"
        "        print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.splitlines() == [
        "PERFCONV_CUDA_CLUSTER must be 0 or 1, got 2.",
        "True False",
    ], result.stderr
