"""perforated_conv2d_backward: the gradients that dgrad, wgrad and active_sum give one by one."""

import pytest
import torch
from helpers import ALGORITHMS, DTYPES, Problem, relayout
from torch import Tensor

import perfconv
from perfconv.ops.arguments import four_sided_padding

OPS = torch.ops.perfconv
FORMATS = ("contiguous", "channels_last")
PROBLEMS = {
    "plain": Problem(in_channels=36, out_channels=40),
    "wide": Problem(in_channels=130, out_channels=66, density=0.3),
    "stride": Problem(in_channels=16, out_channels=33, stride=(2, 1), dilation=(1, 2)),
    "groups": Problem(in_channels=36, out_channels=40, groups=2),
    "depthwise": Problem(in_channels=24, out_channels=24, groups=24),
    "groups_of_four": Problem(in_channels=32, out_channels=32, groups=8),
    "few": Problem(in_channels=3, out_channels=5, kernel=(2, 3), padding="same"),
    "empty": Problem(in_channels=16, out_channels=16, density=0.0),
    "full": Problem(in_channels=16, out_channels=16, density=1.0),
}


def arguments(problem: Problem, dtype: torch.dtype, layout: str) -> tuple[list[Tensor], list]:
    tensors = problem.tensors(dtype)
    names = ("grad_output", "input", "weight")
    padding = four_sided_padding(
        "test", problem.padding, problem.kernel, problem.dilation, problem.stride
    )
    geometry = [list(problem.stride), padding, list(problem.dilation), problem.groups]
    return [relayout(tensors[name], layout) for name in names] + [tensors["mask"]], geometry


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_same_bits_as_one_by_one(
    name: str, dtype: torch.dtype, algorithm: str, layout: str
) -> None:
    (grad, input, weight, mask), geometry = arguments(PROBLEMS[name], dtype, layout)
    options = (*geometry, algorithm)
    listed = (mask, None, None)
    found = OPS.perforated_conv2d_backward(grad, input, weight, *listed, *geometry, True, algorithm)
    sizes = list(input.shape[2:]), list(weight.shape[2:])
    is_last = layout == "channels_last"
    expected = (
        OPS.perforated_conv2d_dgrad(grad, weight, *listed, sizes[0], is_last, *options),
        OPS.perforated_conv2d_wgrad(grad, input, *listed, sizes[1], *options),
        OPS.active_sum(grad, mask),
    )
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    assert found[0].stride() == input.stride()
    assert found[1].stride() == weight.stride()


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_dense(name: str, layout: str) -> None:
    """torch's convolution_backward of the masked gradient, called once."""
    tensors, geometry = arguments(PROBLEMS[name], torch.float64, layout)
    results = [
        OPS.perforated_conv2d_backward(*tensors, None, None, *geometry, True, algorithm)
        for algorithm in ("dense", "direct")
    ]
    for one, other in zip(*results, strict=True):
        assert one.stride() == other.stride()
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_without_a_bias() -> None:
    tensors, geometry = arguments(PROBLEMS["plain"], torch.float32, "channels_last")
    for algorithm in (*ALGORITHMS, "dense"):
        options = (None, None, *geometry, False, algorithm)
        grads = OPS.perforated_conv2d_backward(*tensors, *options)
        assert grads[2].shape == (0,)


def test_weight_of_another_shape() -> None:
    (grad, input, weight, mask), geometry = arguments(
        PROBLEMS["plain"], torch.float32, "contiguous"
    )
    rest = (mask, None, None, *geometry, True)
    with pytest.raises(ValueError, match=r"perforated_conv2d_backward: weight must be .* Give"):
        OPS.perforated_conv2d_backward(grad, input, weight[0], *rest)
    with pytest.raises(ValueError, match=r"perforated_conv2d_backward: input must have C_in"):
        OPS.perforated_conv2d_backward(grad, input, weight[:, 1:], *rest)
    with pytest.raises(ValueError, match=r"perforated_conv2d_backward: weight must have the dtype"):
        OPS.perforated_conv2d_backward(grad, input, weight.double(), *rest)


def test_the_grad_of_a_channels_last_weight_has_its_layout() -> None:
    layer = perfconv.PerforatedConv2d(24, 40, 3, padding=1).to(memory_format=torch.channels_last)
    image = torch.randn(1, 24, 8, 9).to(memory_format=torch.channels_last).requires_grad_()
    layer(image, torch.rand(1, 1, 8, 9) < 0.5).sum().backward()
    assert layer.weight.grad.stride() == layer.weight.stride()
    assert image.grad.stride() == image.stride()
