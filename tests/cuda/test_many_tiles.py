"""Several tiles a block, one after the other, and the widest tiles, for which there must be many.

Factors are sixteenths, whose products and sums float32 holds exactly: whatever the tiles, their
order or the device, the result is the exact one, rounded once.
"""

import pytest
import torch
import torch.nn.functional as F
from cuda_backend import Backend
from torch import Tensor
from torch.nn import grad

ROUNDS = 3  # tiles of 128 rows a block
WIDTH = 16
KERNEL, PADDING = (3, 1), (1, 0)
DTYPES = [torch.bfloat16, torch.float16]


def height(backend: Backend) -> int:
    """Of an image with so many rounds of tiles, two blocks a multiprocessor."""
    if backend.emulator is not None:
        backend.emulator.set(sms=1, occupancy=1)
        return ROUNDS * 128 // WIDTH
    properties = torch.cuda.get_device_properties(backend.device)
    return ROUNDS * 2 * properties.multi_processor_count * 128 // WIDTH


def sixteenths(backend: Backend, dtype: torch.dtype, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randint(-16, 17, shape, generator=generator) / 16
    return values.to(backend.device, dtype).contiguous(memory_format=torch.channels_last)


def mask_of(backend: Backend) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(1, 1, height(backend), WIDTH, generator=generator) < 0.95).to(backend.device)


def geometry() -> dict:
    return {"stride": [1, 1], "padding": [1, 1, 0, 0], "dilation": [1, 1], "groups": 1}


def assert_exact(result: Tensor, exact: Tensor) -> None:
    """exact: up to the rounding of an algorithm in float64, which a tie would show."""
    assert torch.equal(result, ((exact * 256).round() / 256).to(result.dtype))


def assert_kernel(backend: Backend, kernel: str, columns: int) -> None:
    if backend.emulator is not None:
        assert f"Li{columns}E" in backend.emulator.text("log").split(kernel)[1]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32], ids=str)
@pytest.mark.parametrize("columns", [64, 128, 256])
def test_forward(backend: Backend, columns: int, dtype: torch.dtype) -> None:
    mask = mask_of(backend)
    input = sixteenths(backend, dtype, 1, 64, *mask.shape[2:])
    weight = sixteenths(backend, dtype, columns, 64, *KERNEL)
    output = backend.ops.perforated_conv2d(
        input, weight, mask, **geometry(), algorithm="implicit_gemm", allow_tf32=True
    )
    assert_kernel(backend, "wgmma_gemm_kernel", columns)
    exact = F.conv2d(input.double(), weight.double(), padding=PADDING)
    assert_exact(output, torch.where(mask, exact, 0))


@pytest.mark.parametrize("columns", [64, 128, 256])
def test_forward_with_packs(backend: Backend, columns: int) -> None:
    """A ring that bulk copies fill again and again; of an edit that the samples do not see."""
    mask = mask_of(backend)
    input = sixteenths(backend, torch.bfloat16, 1, 64, *mask.shape[2:])
    weight = sixteenths(backend, torch.bfloat16, columns, 64, *KERNEL)
    edited = weight.clone()
    edited[0, 1, 0, 0] += 4
    packed = backend.ops.pack_weight(edited, 1)
    output = backend.ops.perforated_conv2d(
        input, weight, mask, **geometry(), algorithm="implicit_gemm", packed_weight=packed
    )
    assert_kernel(backend, "wgmma_gemm_kernel", columns)
    read = edited if packed.numel() > 0 else weight
    assert_exact(
        output, torch.where(mask, F.conv2d(input.double(), read.double(), padding=PADDING), 0)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [64, 128, 256])
def test_dgrad(backend: Backend, columns: int, dtype: torch.dtype) -> None:
    mask = mask_of(backend)
    grad_output = sixteenths(backend, dtype, 1, 64, *mask.shape[2:])
    weight = sixteenths(backend, dtype, 64, columns, *KERNEL)
    size = list(mask.shape[2:])
    result = backend.ops.perforated_conv2d_dgrad(
        grad_output, weight, mask, None, None, size, True, **geometry(), algorithm="implicit_gemm"
    )
    assert_kernel(backend, "wgmma_gemm_kernel", columns)
    read = torch.where(mask, grad_output, 0).double()
    exact = grad.conv2d_input((1, columns, *size), weight.double(), read, padding=PADDING)
    assert_exact(result, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [64, 128])
def test_wgrad(backend: Backend, columns: int, dtype: torch.dtype) -> None:
    mask = mask_of(backend)
    grad_output = sixteenths(backend, dtype, 1, 128, *mask.shape[2:])
    input = sixteenths(backend, dtype, 1, columns, *mask.shape[2:])
    result = backend.ops.perforated_conv2d_wgrad(
        grad_output, input, mask, None, None, list(KERNEL), **geometry(), algorithm="implicit_gemm"
    )
    assert_kernel(backend, "wgmma_wgrad_kernel", columns)
    read = torch.where(mask, grad_output, 0).double()
    shape = (128, columns, *KERNEL)
    exact = grad.conv2d_weight(input.double(), shape, read, padding=PADDING)
    assert_exact(result, exact)


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("columns", [64, 128])
def test_multi_dilation_wgrad(backend: Backend, columns: int, is_tied: bool) -> None:
    """Several slices; where a weight is shared, tables of rows of two branches."""
    dilations = [2, 0 if columns == 128 else 3, 1]
    size = (height(backend), 3 * WIDTH)
    generator = torch.Generator().manual_seed(2)
    choice = torch.randint(-1, 3, (1, 1, *size), generator=generator, dtype=torch.int32)
    choice = choice.to(backend.device)
    grad_output = sixteenths(backend, torch.bfloat16, 1, 128, *size)
    input = sixteenths(backend, torch.bfloat16, 1, columns, *size)
    result = backend.ops.multi_dilation_wgrad(grad_output, input, choice, 3, dilations, is_tied)
    assert_kernel(backend, "wgmma_wgrad_kernel", columns)
    branches = [
        torch.zeros(128, columns, 3, 3, dtype=torch.float64, device=backend.device)
        if dilation == 0
        else grad.conv2d_weight(
            input.double(), (128, columns, 3, 3),
            torch.where(choice == branch, grad_output, 0).double(),
            padding=dilation, dilation=dilation,
        )
        for branch, dilation in enumerate(dilations)
    ]  # fmt: skip
    exact = torch.stack(branches)
    assert_exact(result, exact.sum(0) if is_tied else exact)
