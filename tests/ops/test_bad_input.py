"""Every broken rule: the type of the exception, and a message in four parts.

The parts: which operator, the rule, what was given, what to do.
"""

import re

import pytest
import torch
from torch import Tensor

import perfconv

INPUT = torch.randn(2, 8, 9, 11)
WEIGHT = torch.randn(12, 8, 3, 3)
MASK = torch.ones(2, 1, 9, 11, dtype=torch.bool)
OUTPUT = torch.zeros(2, 12, 9, 11)
GATE = torch.randn(2, 8)
ACTIVE = perfconv.compact_mask(MASK)


def conv(input=INPUT, weight=WEIGHT, mask=MASK, bias=None, **options) -> Tensor:
    return perfconv.perforated_conv2d(input, weight, mask, bias, **({"padding": 1} | options))


def assert_four_parts(message: str, op: str) -> None:
    """``op: rule, got what. What to do.``"""
    pattern = rf"{op}: .*\b(must|needs|is required)\b.*\bgot\b.*\. [A-Z][^.]*\b.*\.$"
    assert re.fullmatch(pattern, message, re.DOTALL), message


# Arguments of ``conv`` above, the exception, and a word that its message holds.
CONV = {
    "input_list": ({"input": [1.0]}, TypeError, "Tensor"),
    "input_none": ({"input": None}, TypeError, "Tensor"),
    "input_integer": ({"input": INPUT.int()}, TypeError, "int32"),
    "input_complex": ({"input": INPUT.to(torch.complex64)}, TypeError, "complex64"),
    "input_float8": ({"input": INPUT.to(torch.float8_e4m3fn)}, TypeError, "float8"),
    "input_sparse": ({"input": INPUT.to_sparse()}, TypeError, "to_dense"),
    "input_mkldnn": ({"input": INPUT.to_mkldnn()}, TypeError, "to_dense"),
    "input_2d": ({"input": INPUT[0, 0]}, ValueError, "(N, C_in, H, W)"),
    "input_5d": ({"input": INPUT[None]}, ValueError, "(N, C_in, H, W)"),
    "weight_dtype": ({"weight": WEIGHT.double()}, TypeError, "float64"),
    "weight_3d": ({"weight": WEIGHT[0]}, ValueError, "(C_out, C_in / groups, K_h, K_w)"),
    "weight_channels": ({"weight": WEIGHT[:, :7]}, ValueError, "7 channels, got 8"),
    "weight_empty": ({"weight": WEIGHT[:, :, :0]}, ValueError, "no empty side"),
    "weight_no_output": ({"weight": WEIGHT[:0]}, ValueError, "no empty side"),
    "weight_meta": ({"weight": WEIGHT.to("meta")}, ValueError, "device"),
    "bias_dtype": ({"bias": torch.zeros(12).bfloat16()}, TypeError, "bfloat16"),
    "bias_shape": ({"bias": torch.zeros(11)}, ValueError, "(C_out,) = (12,), got (11,)"),
    "bias_number": ({"bias": 1.0}, TypeError, "Tensor"),
    "bias_meta": ({"bias": torch.zeros(12, device="meta")}, ValueError, "device"),
    "mask_list": ({"mask": [True]}, TypeError, "bool Tensor"),
    "mask_none": ({"mask": None}, TypeError, "bool Tensor"),
    "mask_float": ({"mask": MASK.float()}, TypeError, "mask > 0"),
    "mask_float_grad": ({"mask": MASK.float().requires_grad_()}, TypeError, "mask > 0"),
    "mask_byte": ({"mask": MASK.byte()}, TypeError, "uint8"),
    "mask_sparse": ({"mask": MASK.to_sparse()}, TypeError, "to_dense"),
    "mask_meta": ({"mask": MASK.to("meta")}, ValueError, "device"),
    "mask_on_input_grid": ({"stride": 2}, ValueError, "perfconv.downsample_mask"),
    "mask_2d": ({"mask": MASK[0, 0]}, ValueError, "(2, 1, 9, 11)"),
    "mask_channels": ({"mask": MASK.expand(2, 12, 9, 11)}, ValueError, "(2, 1, 9, 11)"),
    "mask_batch": ({"mask": MASK[:1].expand(3, 1, 9, 11)}, ValueError, "(3, 1, 9, 11)"),
    "stride_zero": ({"stride": 0}, ValueError, "1 or more"),
    "stride_negative": ({"stride": (1, -2)}, ValueError, "(1, -2)"),
    "stride_float": ({"stride": 1.0}, TypeError, "two ints"),
    "stride_bool": ({"stride": True}, TypeError, "True"),
    "stride_bool_pair": ({"stride": (True, 1)}, TypeError, "True"),
    "stride_three": ({"stride": (1, 1, 1)}, TypeError, "two ints"),
    "stride_text": ({"stride": "2"}, TypeError, "two ints"),
    "stride_tensor": ({"stride": torch.tensor(1)}, TypeError, "two ints"),
    "stride_huge": ({"stride": 2**70}, ValueError, "64 bits"),
    "padding_negative": ({"padding": -1}, ValueError, "0 or more"),
    "padding_huge": ({"padding": 2**40}, ValueError, "2^30"),
    "padding_word": ({"padding": "full"}, ValueError, '"same"'),
    "padding_none": ({"padding": None}, TypeError, "two ints"),
    "padding_same_stride": ({"padding": "same", "stride": 2}, ValueError, "stride 1"),
    "dilation_zero": ({"dilation": 0}, ValueError, "1 or more"),
    "dilation_huge": ({"dilation": 2**62}, ValueError, "2^30"),
    "dilation_beyond": ({"dilation": 50}, ValueError, "must fit"),
    "kernel_beyond": ({"weight": torch.randn(12, 8, 30, 3)}, ValueError, "must fit"),
    "too_many_pixels": ({"padding": 2**20}, ValueError, "2^31"),
    "groups_zero": ({"groups": 0}, ValueError, "groups"),
    "groups_negative": ({"groups": -2}, ValueError, "groups"),
    "sides_bool": (
        {"stride": (1, 1), "padding": (1, 1), "dilation": (True, True)}, TypeError, "True"
    ),
    "sides_three": (
        {"stride": (1, 1, 1), "padding": (1, 1), "dilation": (1, 1)}, TypeError, "(1, 1, 1)"
    ),
    "groups_uneven": ({"groups": 5}, ValueError, "groups"),
    "groups_channels": ({"groups": 2}, ValueError, "16 channels, got 8"),
    "groups_bool": ({"groups": True}, TypeError, "bool"),
    "groups_float": ({"groups": 1.0}, TypeError, "float"),
    "fill_unknown": ({"fill": "mean"}, ValueError, "'nearest'"),
    "fill_none": ({"fill": None}, ValueError, "None"),
    "base_missing": ({"fill": "passthrough"}, ValueError, "needs base"),
    "base_unused": ({"base": OUTPUT}, ValueError, "passthrough"),
    "base_shape": ({"fill": "passthrough", "base": INPUT}, ValueError, "(2, 12, 9, 11)"),
    "base_dtype": ({"fill": "passthrough", "base": OUTPUT.half()}, TypeError, "float16"),
    "residual_shape": ({"residual": OUTPUT[:1]}, ValueError, "(2, 12, 9, 11)"),
    "residual_dtype": ({"residual": OUTPUT.double()}, TypeError, "float64"),
    "activation_unknown": ({"activation": "gelu"}, ValueError, "'hardswish'"),
    "activation_function": ({"activation": torch.relu}, ValueError, "'hardswish'"),
    "activate_base_number": ({"activate_base": 1}, TypeError, "bool"),
    "algorithm_unknown": ({"algorithm": "winograd"}, ValueError, "'implicit_gemm'"),
    "density_above": ({"expected_density": 1.5}, ValueError, "[0, 1]"),
    "density_nan": ({"expected_density": float("nan")}, ValueError, "[0, 1]"),
    "density_text": ({"expected_density": "0.5"}, TypeError, "str"),
    "density_tensor": ({"expected_density": torch.tensor(0.5)}, TypeError, "Tensor"),
    "packed_weight_list": ({"packed_weight": [1.0]}, TypeError, "Tensor"),
    "packed_weight_integer": ({"packed_weight": torch.zeros(1).int()}, TypeError, "int32"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONV)
def test_perforated_conv2d(name: str) -> None:
    changes, error, word = CONV[name]
    with pytest.raises(error) as raised:
        conv(**changes)
    assert word in str(raised.value)
    assert_four_parts(str(raised.value), "perforated_conv2d")


OF_EXPLAIN = {"input", "weight", "mask", "stride", "padding", "dilation", "groups", "algorithm"}


@pytest.mark.parametrize("name", [name for name in CONV if OF_EXPLAIN.issuperset(CONV[name][0])])
def test_explain_refuses_the_same(name: str) -> None:
    changes, error, _ = CONV[name]
    arguments = {"input": INPUT, "weight": WEIGHT, "mask": MASK, "padding": 1} | changes
    with pytest.raises(error):
        perfconv.explain(**arguments)


# Function, arguments, options, exception, word.
OTHERS = {
    "compact_mask_float": ("compact_mask", (MASK.float(),), {}, TypeError, "mask > 0"),
    "compact_mask_3d": ("compact_mask", (MASK[0],), {}, ValueError, "(N, 1, H, W)"),
    "compact_mask_channels": ("compact_mask", (MASK.expand(2, 3, 9, 11),), {}, ValueError, "(2, 3"),
    "expand_mask_float": ("expand_mask", (MASK.float(), 3), {}, TypeError, "mask > 0"),
    "expand_mask_3d": ("expand_mask", (MASK[0], 3), {}, ValueError, "(N, 1"),
    "expand_mask_kernel": ("expand_mask", (MASK, 0), {}, ValueError, "kernel_size"),
    "expand_mask_bool": ("expand_mask", (MASK, True), {}, TypeError, "kernel_size"),
    "expand_mask_size": ("expand_mask", (MASK, 3), {"stride": 2}, ValueError, "input_size"),
    "expand_mask_grid": ("expand_mask", (MASK, 3), {"input_size": 99}, ValueError, "(97, 97)"),
    "expand_mask_negative": ("expand_mask", (MASK, 3), {"input_size": -9}, ValueError, "0 or more"),
    "downsample_float": ("downsample_mask", (MASK.float(), 2), {}, TypeError, "mask > 0"),
    "downsample_3d": ("downsample_mask", (MASK[0], 2), {}, ValueError, "(N, 1, H, W)"),
    "downsample_zero": ("downsample_mask", (MASK, 0), {}, ValueError, "1 or more"),
    "downsample_size": ("downsample_mask", (MASK, 2), {"size": (3, 6)}, ValueError, "ceil or"),
    "density_float": ("density", (MASK.float(),), {}, TypeError, "mask > 0"),
    "density_3d": ("density", (MASK[0],), {}, ValueError, "(N, 1, H, W)"),
    "gate_list": ("gate_mask", ([1.0], GATE, None), {}, TypeError, "Tensor"),
    "gate_integer": ("gate_mask", (INPUT.int(), GATE, None), {}, TypeError, "int32"),
    "gate_3d": ("gate_mask", (INPUT[0], GATE, None), {}, ValueError, "(N, C, H, W)"),
    "gate_rows": ("gate_mask", (INPUT, GATE[:1], None), {}, ValueError, "(2, C)"),
    "gate_channels": ("gate_mask", (INPUT, GATE[:, :7], None), {}, ValueError, "C = 8, got (2, 7)"),
    "gate_taps": ("gate_mask", (INPUT, torch.zeros(2, 8, 3, 3), None), {}, ValueError, "(2, C)"),
    "gate_dtype": ("gate_mask", (INPUT, GATE.double(), None), {}, TypeError, "float64"),
    "gate_meta": ("gate_mask", (INPUT, GATE.to("meta"), None), {}, ValueError, "device"),
    "gate_bias": ("gate_mask", (INPUT, GATE, torch.zeros(3)), {}, ValueError, "(2,)"),
    "gate_bias_dtype": ("gate_mask", (INPUT, GATE, torch.zeros(2).half()), {}, TypeError, "16"),
    "gather_mask": ("gather_pixels", (INPUT, MASK), {}, TypeError, "compact_mask"),
    "gather_dtype": ("gather_pixels", (INPUT.int(), ACTIVE), {}, TypeError, "int32"),
    "gather_size": ("gather_pixels", (INPUT[:1], ACTIVE), {}, ValueError, "(99,)"),
    "gather_3d": ("gather_pixels", (INPUT[0], ACTIVE), {}, ValueError, "(N, C, H, W)"),
    "gather_meta": ("gather_pixels", (INPUT.to("meta"), ACTIVE), {}, ValueError, "device"),
    "scatter_mask": ("scatter_pixels", (INPUT.flatten(1), MASK), {}, TypeError, "compact_mask"),
    "scatter_size": ("scatter_pixels", (torch.zeros(5, 3), ACTIVE), {}, ValueError, "(198, 3)"),
    "scatter_1d": ("scatter_pixels", (torch.zeros(198), ACTIVE), {}, ValueError, "(capacity, C)"),
    "scatter_base": (
        "scatter_pixels", (torch.zeros(198, 3), ACTIVE, INPUT), {}, ValueError, "(2, 3, 9, 11)",
    ),
    "scatter_base_dtype": (
        "scatter_pixels", (torch.zeros(198, 8), ACTIVE, INPUT.half()), {}, TypeError, "float16",
    ),
    "pack_integer": ("pack_weight", (WEIGHT.int(),), {}, TypeError, "int32"),
    "pack_3d": ("pack_weight", (WEIGHT[0],), {}, ValueError, "(C_out, C_in / groups"),
    "pack_groups": ("pack_weight", (WEIGHT,), {"groups": 5}, ValueError, "groups"),
    "pack_groups_zero": ("pack_weight", (WEIGHT,), {"groups": 0}, ValueError, "groups"),
    "pack_groups_bool": ("pack_weight", (WEIGHT,), {"groups": True}, TypeError, "groups"),
    "pack_empty": ("pack_weight", (WEIGHT[:0],), {}, ValueError, "got"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions(name: str) -> None:
    function, arguments, options, error, word = OTHERS[name]
    with pytest.raises(error) as raised:
        getattr(perfconv, function)(*arguments, **options)
    assert word in str(raised.value)
    assert_four_parts(str(raised.value), function)


@pytest.mark.parametrize(
    "changes",
    [
        {"active_idx": torch.full((198,), 198, dtype=torch.int32)},
        {"active_idx": torch.full((198,), -1, dtype=torch.int32)},
        {"active_idx": ACTIVE.active_idx.long()},
        {"count": torch.tensor([199], dtype=torch.int32)},
        {"count": torch.tensor([-1], dtype=torch.int32)},
        {"count": torch.tensor(3, dtype=torch.int32)},
    ],
    ids=str,
)
def test_lists_that_compact_mask_did_not_make(changes: dict) -> None:
    """They would read and write outside the images."""
    active = ACTIVE._replace(**changes)
    with pytest.raises(ValueError, match=r"gather_pixels: (active_idx|count)"):
        perfconv.gather_pixels(INPUT, active)
    with pytest.raises(ValueError, match=r"scatter_pixels: (active_idx|count)"):
        perfconv.scatter_pixels(torch.zeros(198, 3), active)


def test_under_autocast_too() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(TypeError, match="bias must be a Tensor"):
            conv(bias=1.0)
        with pytest.raises(TypeError, match="base must be float32"):
            conv(fill="passthrough", base=OUTPUT.int())


def test_forward_mode_is_refused() -> None:
    """It would give zero tangents if it were not."""
    with pytest.raises(NotImplementedError, match=r"forward-mode .* got .* Use reverse mode"):
        torch.func.jvp(lambda value: conv(input=value), (INPUT,), (INPUT,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(WEIGHT, WEIGHT)
        with pytest.raises(NotImplementedError, match="forward-mode"):
            conv(weight=dual)
        assert torch.equal(conv(), perfconv.perforated_conv2d(INPUT, WEIGHT, MASK, padding=1))
