"""perforated_conv2d_into: the bits of the passthrough fill, in memory that is there already."""

import pytest
import torch
from helpers import ALGORITHMS, DTYPES, Problem, relayout
from torch import Tensor

import perfconv
from perfconv.ops import perforated_conv2d_into

PROBLEMS = {
    "plain": Problem(fill="passthrough"),
    "relu": Problem(fill="passthrough", activation="relu"),
    "pointwise": Problem(
        fill="passthrough", kernel=(1, 1), padding=(0, 0), in_channels=33, out_channels=70,
        activation="relu",
    ),
    "stride": Problem(fill="passthrough", size=(13, 16), stride=(2, 3), activation="silu"),
    "depthwise": Problem(fill="passthrough", in_channels=24, out_channels=24, groups=24),
    "groups_of_four": Problem(
        fill="passthrough", in_channels=20, out_channels=20, groups=5, activation="relu"
    ),
    "shared_mask": Problem(fill="passthrough", is_mask_shared=True, activation="relu"),
    "empty_mask": Problem(fill="passthrough", density=0.0, activation="relu"),
    "full_mask": Problem(fill="passthrough", density=1.0, activation="relu"),
    "no_image": Problem(fill="passthrough", batch=0),
}  # fmt: skip


def operands(problem: Problem, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    tensors = problem.tensors(dtype)
    return {name: tensors[name] for name in ("base", "input", "weight", "mask", "bias")}


@pytest.mark.parametrize("layout", ["channels_last", "contiguous", "strided"])
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "dense", "auto"])
@pytest.mark.parametrize("adds_base", [False, True])
@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_the_passthrough_fill(
    name: str, adds_base: bool, algorithm: str, layout: str
) -> None:
    problem = PROBLEMS[name]
    activate_base = adds_base and problem.activation is not None and name != "relu"
    for dtype in DTYPES if layout == "channels_last" else DTYPES[:1]:
        tensors = operands(problem, dtype)
        options = {**problem.geometry, "activation": problem.activation, "algorithm": algorithm}
        expected = perfconv.perforated_conv2d(
            tensors["input"].contiguous(memory_format=torch.channels_last), tensors["weight"],
            tensors["mask"], tensors["bias"], residual=tensors["base"] if adds_base else None,
            base=tensors["base"], fill="passthrough", activate_base=activate_base, **options,
        )  # fmt: skip
        tensors["base"] = base = relayout(tensors["base"], layout).clone()
        tensors["input"] = relayout(tensors["input"], "channels_last")
        strides, place, edits = base.stride(), base.data_ptr(), base._version
        found = perforated_conv2d_into(
            **tensors, adds_base=adds_base, activate_base=activate_base, **options
        )
        assert found is base
        assert (base.stride(), base.data_ptr()) == (strides, place)
        assert torch.equal(found, expected)
        assert base._version > edits  # autograd notices the edit of what it may have kept


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_inactive_pixels_are_not_touched(algorithm: str) -> None:
    """Every bit of them stays, that of a NaN's payload too."""
    tensors = operands(PROBLEMS["pointwise"])
    mask = tensors["mask"]
    base = tensors["base"].contiguous(memory_format=torch.channels_last)
    bits = base.view(torch.int32)
    bits.copy_(torch.where(mask, bits, 0x7FC01234))
    tensors["base"] = base
    perforated_conv2d_into(**tensors, algorithm=algorithm)
    assert torch.equal(base.view(torch.int32) == 0x7FC01234, ~mask.expand_as(base))


def test_active_pixels_as_the_mask() -> None:
    tensors = operands(PROBLEMS["relu"])
    other = {**tensors, "base": tensors["base"].clone()}
    other["mask"] = perfconv.compact_mask(other["mask"])
    found = perforated_conv2d_into(**tensors, padding=1)
    assert torch.equal(found, perforated_conv2d_into(**other, padding=1))


def test_compiled() -> None:
    """Functionalised: an intermediate is overwritten, an argument is copied back."""

    def run(base: Tensor, input: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        made = 2 * base
        perforated_conv2d_into(made, input, weight, mask, padding=1, adds_base=True)
        perforated_conv2d_into(base, input, weight, mask, padding=1, activation="relu")
        return made

    tensors = operands(PROBLEMS["plain"])
    tensors.pop("bias")
    again = {name: value.clone() for name, value in tensors.items()}
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(*tensors.values()), run(*again.values()))
    assert torch.equal(tensors["base"], again["base"])
    torch._dynamo.reset()


BAD = {
    "dtype": ({"input": torch.zeros(2, 8, 9, 11).double()}, TypeError, "input must have the dtype"),
    "base_dtype": ({"base": torch.zeros(2, 12, 9, 11).int()}, TypeError, "base must be float32"),
    "base_shape": ({"base": torch.zeros(2, 12, 9, 10)}, ValueError, r"base must be .*\(2, 12, 9"),
    "mask": ({"mask": torch.zeros(2, 1, 9, 11)}, TypeError, "mask must be bool"),
    "weight": ({"weight": torch.zeros(12, 8)}, ValueError, "weight must be"),
    "activation": ({"activation": "gelu"}, ValueError, "activation must be one of"),
    "algorithm": ({"algorithm": "fast"}, ValueError, "algorithm must be one of"),
    "density": ({"expected_density": 2.0}, ValueError, "expected_density must be in"),
    "expanded": ({"base": torch.zeros(1, 12, 9, 11).expand(2, -1, -1, -1)}, ValueError, "expanded"),
    "gradient": ({"bias": torch.zeros(12, requires_grad=True)}, RuntimeError, "no gradient can"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    changes, error, message = BAD[name]
    tensors = operands(PROBLEMS["plain"])
    before = tensors["base"].clone()
    with pytest.raises(error, match=message):
        perforated_conv2d_into(**{**tensors, "padding": 1, **changes})
    assert torch.equal(tensors["base"], before)


def test_shared_memory() -> None:
    image = torch.zeros(3, 8, 9, 11)
    mask = torch.ones(2, 1, 9, 11, dtype=torch.bool)
    weight = torch.zeros(8, 8, 3, 3)
    for input in (image[:2], image[1:]):
        with pytest.raises(ValueError, match="base must not share memory with input"):
            perforated_conv2d_into(image[:2], input, weight, mask, padding=1)
    perforated_conv2d_into(image[:1], image[1:2], weight, mask[:1], padding=1)  # neighbours


def test_forward_mode_is_refused() -> None:
    """Base would keep its own tangent."""
    base, weight = torch.zeros(1, 8, 4, 4), torch.zeros(8, 8, 1, 1)
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)

    def run(input: Tensor) -> Tensor:
        return perforated_conv2d_into(base, input, weight, mask)

    with pytest.raises(NotImplementedError, match=r"forward-mode .* got .* Use"):
        torch.func.jvp(run, (torch.ones(1, 8, 4, 4),), (torch.ones(1, 8, 4, 4),))


def test_flops() -> None:
    problem = PROBLEMS["plain"]
    tensors = operands(problem)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        perforated_conv2d_into(**tensors, padding=1)
    active = int(tensors["mask"].sum())
    assert counter.get_total_flops() == 2 * active * tensors["weight"].numel()
