"""allow_tf32: follows torch's setting for convolutions, and changes nothing on the CPU."""

from collections.abc import Iterator

import pytest
import torch
from helpers import Problem

from perfconv.ops.conv import torch_allows_tf32


@pytest.fixture(autouse=True)
def restored_setting() -> Iterator[None]:
    before = torch.backends.cudnn.conv.fp32_precision
    yield
    torch.backends.cudnn.conv.fp32_precision = before


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_follows_torch(precision: str) -> None:
    torch.backends.cudnn.conv.fp32_precision = precision
    assert torch_allows_tf32() == (precision == "tf32")


def test_follows_the_older_switch() -> None:
    with torch.backends.cudnn.flags(allow_tf32=False):
        assert not torch_allows_tf32()
    with torch.backends.cudnn.flags(allow_tf32=True):
        assert torch_allows_tf32()


def test_does_not_break_the_graph() -> None:
    def shifted(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if torch_allows_tf32() else x - 1

    torch.backends.cudnn.conv.fp32_precision = "tf32"
    compiled = torch.compile(shifted, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1)).item() == 1


def test_cpu_ignores_it() -> None:
    tensors = Problem().tensors(torch.float32)
    grad = tensors["grad_output"]
    operands = tensors["input"], tensors["weight"], tensors["mask"]
    geometry = [1, 1], [1, 1, 1, 1], [1, 1], 1
    ops = torch.ops.perfconv
    for allowed in (False, True):
        results = [
            ops.perforated_conv2d(*operands, padding=[1, 1, 1, 1], allow_tf32=allowed),
            ops.perforated_conv2d_dgrad(
                grad, *operands[1:], None, None, [9, 11], False, *geometry, allow_tf32=allowed
            ),
            ops.perforated_conv2d_wgrad(
                grad, operands[0], operands[2], None, None, [3, 3], *geometry, allow_tf32=allowed
            ),
        ]
        if not allowed:
            exact = results
    assert all(torch.equal(found, wanted) for found, wanted in zip(results, exact, strict=True))
