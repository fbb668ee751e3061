"""perforated_conv2d and its gradients against the oracle: named problems, every dtype and layout.

Every algorithm is forced by name. Uninitialised memory is NaN (tests/conftest.py), so a pixel that
nobody writes fails too.
"""

import numpy
import pytest
import torch
import torch.nn.functional as F
from helpers import ALGORITHMS, DTYPES, Problem, check, relayout

import perfconv

PROBLEMS = {
    "plain": Problem(),
    "pointwise": Problem(kernel=(1, 1), padding=(0, 0)),
    "wide": Problem(in_channels=40, out_channels=72, size=(13, 14), fill="nearest"),
    "tall_kernel": Problem(kernel=(5, 1), padding=(2, 0)),
    "even_kernel_same": Problem(kernel=(2, 4), padding="same"),
    "valid": Problem(padding="valid", has_bias=False),
    "stride": Problem(size=(13, 16), stride=(2, 3)),
    "stride_over_kernel": Problem(size=(13, 16), kernel=(2, 2), stride=(3, 4), padding=(0, 1)),
    "dilation": Problem(size=(14, 12), dilation=(2, 3), padding=(2, 3)),
    "padding_beyond": Problem(size=(3, 4), padding=(4, 3)),
    "groups": Problem(in_channels=24, out_channels=36, groups=3),
    "depthwise": Problem(in_channels=37, out_channels=37, groups=37),
    "depthwise_stride": Problem(in_channels=16, out_channels=16, groups=16, stride=(2, 2)),
    "depthwise_many": Problem(in_channels=40, out_channels=40, groups=40, density=0.7),
    "depthwise_far_taps": Problem(
        in_channels=32, out_channels=32, groups=32, size=(3, 4), dilation=(17, 12), padding=(17, 12)
    ),
    "depthwise_relu_many": Problem(
        in_channels=16, out_channels=16, groups=16, kernel=(5, 5), padding=(2, 2), density=0.6,
        activation="relu",
    ),
    "depthwise_twice": Problem(in_channels=10, out_channels=20, groups=10),
    "groups_of_two": Problem(in_channels=24, out_channels=48, groups=12, stride=(2, 1)),
    "groups_of_four": Problem(
        in_channels=36, out_channels=36, groups=9, dilation=(1, 2), padding=(1, 2),
        activation="silu",
    ),
    "groups_of_four_stride": Problem(
        in_channels=32, out_channels=32, groups=8, size=(13, 16), stride=(2, 3), density=0.7
    ),
    "groups_of_eight": Problem(
        in_channels=24, out_channels=24, groups=3, has_residual=True, fill="passthrough"
    ),
    "rgb_few_pixels": Problem(in_channels=3, out_channels=20, size=(20, 15), density=0.03),
    "rgb": Problem(in_channels=3, out_channels=20, size=(12, 15), kernel=(7, 7), padding=(3, 3)),
    "few_to_few": Problem(in_channels=8, out_channels=8, size=(12, 15)),
    "few_to_fewer": Problem(in_channels=3, out_channels=5, size=(12, 15), activation="relu"),
    "narrow": Problem(in_channels=32, out_channels=7),
    "one_output": Problem(in_channels=33, out_channels=1),
    "nearest": Problem(fill="nearest", density=0.1),
    "passthrough": Problem(fill="passthrough"),
    "residual_relu": Problem(has_residual=True, activation="relu"),
    "relu6_nearest": Problem(activation="relu6", fill="nearest"),
    "none": Problem(fill="none"),
    "none_residual_relu": Problem(fill="none", has_residual=True, activation="relu"),
    "silu_residual": Problem(activation="silu", has_residual=True, has_bias=False),
    "hardswish_base": Problem(activation="hardswish", fill="passthrough", activate_base=True),
    "everything": Problem(
        in_channels=32, out_channels=64, stride=(2, 1), groups=2, is_mask_shared=True,
        has_residual=True, activation="relu", fill="passthrough", activate_base=True,
    ),
    "many_pixels": Problem(in_channels=16, out_channels=24, size=(24, 30), density=0.8),
    "no_image": Problem(batch=0),
    "empty_mask": Problem(density=0.0, fill="nearest"),
    "full_mask": Problem(density=1.0),
    "one_pixel": Problem(batch=1, size=(1, 1), density=1.0),
}  # fmt: skip


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "dense", "auto"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", PROBLEMS)
def test_against_oracle(name: str, dtype: torch.dtype, algorithm: str, layout: str) -> None:
    check(PROBLEMS[name], dtype, algorithm, layout)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "dense", "auto"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_output_has_layout_of_input(algorithm: str, layout: str) -> None:
    tensors = PROBLEMS["plain"].tensors(torch.float32)
    input = tensors["input"]
    if layout == "channels_last":
        input = input.to(memory_format=torch.channels_last)
    output = perfconv.perforated_conv2d(
        input, tensors["weight"], tensors["mask"], padding=1, algorithm=algorithm
    )
    format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert output.is_contiguous(memory_format=format)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_padding_beyond_memory(algorithm: str) -> None:
    """Two columns of outputs, far apart: the left one reads nothing but padding."""
    far = 1 << 29
    input, weight = torch.randn(8, 3, 8, 1), torch.randn(5, 3, 1, 2)
    output = perfconv.perforated_conv2d(
        input, weight, torch.ones(1, 1, 8, 2, dtype=torch.bool),
        stride=(1, far), padding=(0, far), algorithm=algorithm,
    )  # fmt: skip
    assert torch.equal(output[..., 0], torch.zeros(8, 5, 8))
    torch.testing.assert_close(output[..., 1:], F.conv2d(input, weight[..., :1]))


def test_without_batch_dimension() -> None:
    problem = Problem(batch=1, fill="passthrough", has_residual=True)
    tensors = problem.tensors(torch.float32)
    tensors.pop("grad_output")
    images = perfconv.perforated_conv2d(**tensors, **problem.options)
    for name in ("input", "base", "residual"):
        tensors[name] = tensors[name][0]
    assert torch.equal(perfconv.perforated_conv2d(**tensors, **problem.options), images[0])
    tensors["mask"] = tensors["mask"][0]
    assert torch.equal(perfconv.perforated_conv2d(**tensors, **problem.options), images[0])


def test_mask_as_active_pixels() -> None:
    tensors = PROBLEMS["plain"].tensors(torch.float32)
    arguments = tensors["input"], tensors["weight"]
    by_mask = perfconv.perforated_conv2d(*arguments, tensors["mask"], padding=1)
    active = perfconv.compact_mask(tensors["mask"])
    assert torch.equal(perfconv.perforated_conv2d(*arguments, active, padding=1), by_mask)


def test_integers_of_numpy() -> None:
    problem = Problem(in_channels=8, out_channels=12, groups=2, stride=(2, 2), padding=(1, 1))
    tensors = problem.tensors(torch.float32)
    operands = [tensors[name] for name in ("input", "weight", "mask")]
    one, two = numpy.int64(1), numpy.int32(2)
    found = perfconv.perforated_conv2d(
        *operands, stride=two, padding=(one, 1), dilation=one, groups=numpy.int64(2)
    )
    wanted = perfconv.perforated_conv2d(*operands, stride=2, padding=1, groups=2)
    assert torch.equal(found, wanted)
    with pytest.raises(TypeError, match="two ints"):
        perfconv.perforated_conv2d(*operands, stride=2, padding=numpy.bool_(True), groups=2)


def test_negated_and_conjugated_views() -> None:
    """Views that carry a pending operation are resolved before a kernel reads memory."""
    tensors = PROBLEMS["plain"].tensors(torch.float32)
    input, weight, mask = tensors["input"], tensors["weight"], tensors["mask"]
    negated = torch.complex(input, input).conj().imag
    assert negated.is_neg()
    expected = perfconv.perforated_conv2d(-input, weight, mask, padding=1)
    assert torch.equal(perfconv.perforated_conv2d(negated, weight, mask, padding=1), expected)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "dense"])
def test_masks_in_other_memory(algorithm: str) -> None:
    """Views of larger masks, transposed ones, one image for all."""
    tensors = PROBLEMS["plain"].tensors(torch.float32)
    arguments = tensors["input"], tensors["weight"]
    options = {"padding": 1, "algorithm": algorithm}
    mask = tensors["mask"]
    expected = perfconv.perforated_conv2d(*arguments, mask, **options)
    views = [relayout(mask.float(), layout).bool() for layout in ("transposed", "channels_last")]
    wide = torch.zeros(2, 3, 9, 25, dtype=torch.bool)
    wide[:, 1:2, :, 2:24:2] = mask
    views.append(wide[:, 1:2, :, 2:24:2])
    for view in views:
        assert torch.equal(perfconv.perforated_conv2d(*arguments, view, **options), expected)
    first = perfconv.perforated_conv2d(*arguments, mask[:1].expand(2, 1, 9, 11), **options)
    assert torch.equal(first, perfconv.perforated_conv2d(*arguments, mask[:1], **options))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_silu_of_huge_values(algorithm: str, dtype: torch.dtype) -> None:
    """Nothing is left of a large negative number, however large."""
    bias = torch.tensor([-1e4, -1e30, -3e38, 3e38], dtype=dtype)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    out = perfconv.perforated_conv2d(
        torch.zeros(1, 16, 3, 3, dtype=dtype), torch.zeros(4, 16, 1, 1, dtype=dtype), mask, bias,
        activation="silu", algorithm=algorithm,
    )  # fmt: skip
    assert torch.equal(out[0, :, 1, 1], torch.stack([0 * bias[0]] * 3 + [bias[3]]))
