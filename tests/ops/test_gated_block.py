"""gated_block: a branch computed at active pixels, against dense layers and a mask."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from helpers import DTYPES, random_mask, relayout
from torch import Tensor

import perfconv
from perfconv.ops import BlockStages, gated_block, gated_block_into

ACTIVATIONS = {
    None: lambda value: value,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
}


@dataclass(frozen=True)
class Stage:
    """One convolution; sizes in channels and pixels."""

    in_channels: int
    out_channels: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1

    @property
    def padding(self) -> int:
        return self.dilation * (self.kernel // 2)


BRANCHES = {
    "bottleneck": (Stage(24, 16), Stage(16, 16, 3), Stage(16, 24)),
    "dilated": (Stage(24, 16), Stage(16, 16, 3, dilation=2), Stage(16, 24)),
    "stride": (Stage(24, 16), Stage(16, 16, 3, stride=2), Stage(16, 40)),
    "stride_first": (Stage(24, 16, stride=2), Stage(16, 16, 3), Stage(16, 40)),
    "basic": (Stage(24, 17, 3), Stage(17, 24, 3)),
    "grouped": (Stage(24, 16), Stage(16, 16, 3, groups=4), Stage(16, 24)),
    "depthwise": (Stage(24, 48), Stage(48, 48, 5, groups=48), Stage(48, 24)),
    "wide": (Stage(128, 64), Stage(64, 64, 3), Stage(64, 128)),
}
IDENTITY = [name for name in BRANCHES if not name.startswith("stride")]


def numbers(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> BlockStages:
    """Random layers, not packed."""
    branch = BRANCHES[name]
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return BlockStages(
        [
            normal(s.out_channels, s.in_channels // s.groups, s.kernel, s.kernel)
            / (s.in_channels // s.groups * s.kernel**2) ** 0.5
            for s in branch
        ],
        [normal(s.out_channels) for s in branch],
        [],
        [s.stride for s in branch for _ in range(2)],
        [s.padding for s in branch for _ in range(2)],
        [s.dilation for s in branch for _ in range(2)],
        [s.groups for s in branch],
        "relu",
        "relu",
    )


def packed(stages: BlockStages) -> BlockStages:
    packs = [
        perfconv.ops.pack_weight(weight, groups=groups)
        for weight, groups in zip(stages.weights, stages.groups, strict=True)
    ]
    return stages._replace(packed_weights=packs)


def image(channels: int, size: tuple[int, int] = (9, 11), seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)


def dense_branch(input: Tensor, stages: BlockStages) -> Tensor:
    for i, weight in enumerate(stages.weights):
        pair = slice(2 * i, 2 * i + 2)
        input = F.conv2d(
            input, weight, stages.biases[i], stages.stride[pair], stages.padding[pair],
            stages.dilation[pair], stages.groups[i],
        )  # fmt: skip
        if i + 1 < len(stages.weights):
            input = ACTIVATIONS[stages.activation](input)
    return input


def oracle(input: Tensor, stages: BlockStages, mask: Tensor, shortcut: Tensor | None) -> Tensor:
    """Dense layers and the mask, in plain torch."""
    activate = ACTIVATIONS[stages.sum_activation]
    skipped = input if shortcut is None else activate(shortcut)
    summed = dense_branch(input, stages) + (input if shortcut is None else shortcut)
    return torch.where(mask, activate(summed), skipped)


def problem(name: str, density: float = 0.3) -> tuple[Tensor, BlockStages, Tensor, Tensor | None]:
    """Input, layers, mask and shortcut in float64."""
    stages = numbers(name)
    input = image(stages.weights[0].size(1) * stages.groups[0])
    output = dense_branch(input, stages)
    mask = random_mask(2, 1, *output.shape[2:], density=density, seed=4)
    shortcut = None if name in IDENTITY else image(output.size(1), output.shape[2:], seed=2)
    return input, stages, mask, shortcut


def cast(
    dtype: torch.dtype, input: Tensor, stages: BlockStages, *others: Tensor | None
) -> tuple[Tensor, BlockStages, list]:
    converted = stages._replace(
        weights=[weight.to(dtype) for weight in stages.weights],
        biases=[bias.to(dtype) for bias in stages.biases],
    )
    return input.to(dtype), converted, [o if o is None else o.to(dtype) for o in others]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", BRANCHES)
def test_equals_dense_layers_times_a_mask(name: str, density: float, dtype: torch.dtype) -> None:
    """Packed or not, new or in place; rounding no worse than twice that of torch's layers."""
    input, stages, mask, shortcut = problem(name, density)
    input, stages, (shortcut,) = cast(dtype, input, stages, shortcut)
    input = relayout(input, "channels_last")
    wide_input, wide_stages, (wide_shortcut,) = cast(torch.float64, input, stages, shortcut)
    exact = oracle(wide_input, wide_stages, mask, wide_shortcut)
    theirs = oracle(input, stages, mask, shortcut).double()
    floor = 8 * torch.finfo(dtype).eps * exact.norm()
    found = gated_block(input, stages, mask, shortcut=shortcut)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found.double() - exact).norm() <= 2 * (theirs - exact).norm() + floor
    inactive = ~mask.expand_as(found)
    skipped = input if shortcut is None else F.relu(shortcut)
    assert torch.equal(found[inactive], skipped[inactive])
    assert torch.equal(gated_block(input, packed(stages), mask, shortcut=shortcut), found)
    base = (input if shortcut is None else shortcut).clone(memory_format=torch.preserve_format)
    given = None if shortcut is None else input
    assert gated_block_into(base, stages, mask, input=given) is base
    assert torch.equal(base, found)


@pytest.mark.parametrize("name", ["bottleneck", "basic", "stride", "wide"])
def test_bits_of_the_stages(name: str) -> None:
    """perforated_conv2d stage by stage gives the same bits."""
    input, stages, mask, shortcut = problem(name, 0.4)
    input, stages, (shortcut,) = cast(torch.float32, input, stages, shortcut)
    features = input = relayout(input, "channels_last")
    masks = [mask]
    for i in range(len(stages.weights) - 1, 0, -1):
        size = dense_branch(input, _first(stages, i)).shape[2:]
        masks.insert(0, perfconv.expand_mask(
            masks[0], stages.weights[i].size(2), stride=stages.stride[2 * i],
            padding=stages.padding[2 * i], dilation=stages.dilation[2 * i], input_size=size,
        ))  # fmt: skip
    base = input if shortcut is None else shortcut
    for i, (weight, bias) in enumerate(zip(stages.weights, stages.biases, strict=True)):
        is_last = i + 1 == len(stages.weights)
        features = perfconv.perforated_conv2d(
            features, weight, masks[i], bias, stride=stages.stride[2 * i],
            padding=stages.padding[2 * i], dilation=stages.dilation[2 * i], activation="relu",
            fill="passthrough" if is_last else "zero", base=base if is_last else None,
            residual=base if is_last else None, activate_base=is_last and shortcut is not None,
        )  # fmt: skip
    assert torch.equal(gated_block(input, stages, mask, shortcut=shortcut), features)


def _first(stages: BlockStages, count: int) -> BlockStages:
    return stages._replace(weights=stages.weights[:count], biases=stages.biases[:count])


@pytest.mark.parametrize(("activation", "sum_activation"), list(product(ACTIVATIONS, repeat=2)))
def test_activations(activation: str | None, sum_activation: str | None) -> None:
    for name in ("bottleneck", "stride"):
        input, stages, mask, shortcut = problem(name)
        stages = stages._replace(activation=activation, sum_activation=sum_activation)
        found = gated_block(input, stages, mask, shortcut=shortcut)
        torch.testing.assert_close(found, oracle(input, stages, mask, shortcut))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("name", ["bottleneck", "stride"])
def test_layouts(name: str, layout: str) -> None:
    input, stages, mask, shortcut = problem(name)
    expected = oracle(input, stages, mask, shortcut)
    placed = relayout(input, layout)
    beside = None if shortcut is None else relayout(shortcut, layout)
    found = gated_block(placed, stages, mask, shortcut=beside)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous() == (layout != "channels_last")
    base = (placed if beside is None else beside).clone(memory_format=torch.preserve_format)
    edits = base._version
    gated_block_into(base, stages, mask, input=None if beside is None else placed)
    torch.testing.assert_close(base, expected)
    assert base._version > edits


@pytest.mark.parametrize("name", ["bottleneck", "stride", "stride_first", "basic"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gate_decides_as_gate_mask(name: str, dtype: torch.dtype) -> None:
    input, stages, _, shortcut = problem(name)
    input, stages, (shortcut,) = cast(dtype, input, stages, shortcut)
    gate = torch.randn(2, input.size(1), 1, 1).to(dtype), torch.tensor([0.1, 0.0], dtype=dtype)
    step = 1 if shortcut is None else 2
    active, _ = perfconv.gate_mask(input[:, :, ::step, ::step], *gate)
    assert 0.2 < float(active.mask.float().mean()) < 0.8
    expected = gated_block(input, stages, active, shortcut=shortcut)
    assert torch.equal(gated_block(input, stages, gate=gate, shortcut=shortcut), expected)
    base = (input if shortcut is None else shortcut).clone()
    gated_block_into(base, stages, gate=gate, input=None if shortcut is None else input)
    assert torch.equal(base, expected)


def test_masks() -> None:
    """ActivePixels, one mask for every image, no image at all, a mask that is a view."""
    input, stages, mask, _ = problem("bottleneck")
    found = gated_block(input, stages, mask)
    assert torch.equal(gated_block(input, stages, perfconv.compact_mask(mask)), found)
    shared = gated_block(input, stages, mask[:1])
    assert torch.equal(shared, gated_block(input, stages, mask[:1].expand(2, -1, -1, -1)))
    flipped = mask.transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(gated_block(input, stages, flipped), found)
    assert gated_block(input[:0], stages, mask[:0]).shape == (0, *input.shape[1:])
    gate = torch.randn(2, 24).double(), None
    assert gated_block(input[:0], stages, gate=gate).shape == (0, *input.shape[1:])


@pytest.mark.parametrize("name", ["bottleneck", "wide", "basic"])
def test_only_what_is_active_is_read_and_written(name: str) -> None:
    """NaN outside the receptive field changes nothing; inactive pixels keep every bit."""
    input, stages, mask, _ = problem(name, 0.04)
    input, stages, _ = cast(torch.float32, input, stages)
    input = relayout(input, "channels_last")
    kernel = 5 if name == "basic" else 3
    reached = F.max_pool2d(mask.float(), kernel, 1, kernel // 2) > 0
    assert 0 < int(mask.sum()) < int(reached.sum()) < mask.numel()
    expected = gated_block(input, stages, mask)
    base = torch.where(reached, input, torch.nan)
    base = relayout(base, "channels_last")
    gated_block_into(base, stages, mask)
    assert torch.equal(torch.where(mask, base, 0), torch.where(mask, expected, 0))
    assert torch.equal(base.isnan(), ~reached.expand_as(base))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(threads: int) -> None:
    input, stages, mask, _ = problem("wide")
    input, stages, _ = cast(torch.float32, input, stages)
    gate = torch.randn(2, 128, generator=torch.Generator().manual_seed(0)), None
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = gated_block(input, stages, mask), gated_block(input, stages, gate=gate)
    torch.set_num_threads(threads)
    found = gated_block(input, stages, mask), gated_block(input, stages, gate=gate)
    torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(alone, found, strict=True))


def test_compiled() -> None:
    """Functionalised: an intermediate is overwritten, an argument is copied back."""
    input, stages, mask, _ = problem("bottleneck")

    def run(base: Tensor, mask: Tensor) -> Tensor:
        made = 2 * base
        gated_block_into(made, stages, mask)
        gated_block_into(base, stages, mask)
        return made + gated_block(base, stages, mask)

    again = input.clone()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(input, mask), run(again, mask))
    assert torch.equal(input, again)
    torch._dynamo.reset()


def test_flops() -> None:
    input, stages, mask, _ = problem("bottleneck")
    halo = F.max_pool2d(mask.float(), 3, 1, 1).sum()
    own = mask.sum()
    expected = 2 * int(24 * 16 * halo + 9 * 16 * 16 * own + 16 * 24 * own)
    for run in (gated_block, gated_block_into):
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            run(input.clone(), stages, mask)
        assert counter.get_total_flops() == expected
    gate = torch.zeros(2, 24).double(), torch.tensor([0.0, 1.0]).double()
    pixels = 2 * 9 * 11
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        gated_block_into(input.clone(), stages, gate=gate)
    assert counter.get_total_flops() == 2 * pixels * (24 * 16 + 9 * 16 * 16 + 16 * 24 + 2 * 24)


def changed(name: str, index: int, value: object) -> dict:
    stages = numbers("bottleneck")
    values = list(getattr(stages, name))
    values[index] = value
    return {"stages": stages._replace(**{name: values})}


ZEROS = torch.zeros(2, 24, 9, 11).double()
BAD = {
    "input_rank": ({"input": ZEROS[0]}, ValueError, "(input|base) must be"),
    "input_dtype": ({"input": ZEROS.int()}, TypeError, "input must be float32"),
    "input_other": ({"input": ZEROS.float()}, TypeError, "must have the dtype of input"),
    "channels": ({"input": ZEROS[:, :20]}, ValueError, "channels, got 20"),
    "mask_dtype": ({"mask": ZEROS[:, :1]}, TypeError, "mask must be bool"),
    "mask_shape": ({"mask": ZEROS[:, :1, :8] > 0}, ValueError, "mask must be .* = .2, 1, 9, 11"),
    "mask_type": ({"mask": 1}, TypeError, "mask must be a bool Tensor"),
    "no_mask": ({"mask": None}, ValueError, "either mask or gate_weight .* got neither"),
    "both": ({"gate": (torch.zeros(2, 24).double(), None)}, ValueError, "got both"),
    "gate_shape": (
        {"mask": None, "gate": (torch.zeros(1, 24).double(), None)},
        ValueError,
        "gate_weight must be",
    ),
    "gate_bias": (
        {"mask": None, "gate": (torch.zeros(2, 24).double(), torch.zeros(3).double())},
        ValueError,
        "gate_bias must be",
    ),
    "gate_dtype": (
        {"mask": None, "gate": (torch.zeros(2, 24), None)},
        TypeError,
        "gate weight must have the dtype",
    ),
    "shortcut": ({"shortcut": ZEROS[:, :, :8]}, ValueError, "shortcut must be"),
    "shortcut_dtype": ({"shortcut": ZEROS.float()}, TypeError, "shortcut must have the dtype"),
    "no_shortcut": (
        changed("weights", 2, torch.zeros(25, 16, 1, 1).double())
        | {"stages": changed("weights", 2, torch.zeros(25, 16, 1, 1).double())["stages"]._replace(
            biases=[*numbers("bottleneck").biases[:2], torch.zeros(25).double()])},
        ValueError,
        "input, which is the shortcut, must be",
    ),
    "weight_rank": (changed("weights", 0, torch.zeros(16, 24).double()), ValueError, "each weight"),
    "weight_fit": (
        changed("weights", 1, torch.zeros(16, 15, 3, 3).double()), ValueError, "channels, got 16"
    ),
    "bias": (changed("biases", 0, torch.zeros(15).double()), ValueError, "each bias must be"),
    "bias_dtype": (changed("biases", 0, torch.zeros(16)), TypeError, "each bias must have the"),
    "groups": (changed("groups", 1, 3), ValueError, "groups must be"),
    "groups_type": (changed("groups", 1, True), TypeError, "each of groups must be an int"),
    "stride": (changed("stride", 0, 0), ValueError, "stride must be 1 or more"),
    "dilation": (changed("dilation", 2, -1), ValueError, "dilation must be 1 or more"),
    "padding": (changed("padding", 2, -1), ValueError, "padding must be 0 or more"),
    "length": (
        {"stages": numbers("bottleneck")._replace(stride=[1, 1])}, ValueError, "stride must have 6"
    ),
    "lists": (
        {"stages": numbers("bottleneck")._replace(biases=[])}, ValueError, "lists of one length"
    ),
    "no_stage": (
        {"stages": numbers("bottleneck")._replace(weights=[], biases=[])},
        ValueError,
        "2 or more",
    ),
    "packs": (
        {"stages": numbers("bottleneck")._replace(packed_weights=[torch.zeros(3)])},
        ValueError,
        "packed_weights must be as many",
    ),
    "pack_type": (
        {"stages": numbers("bottleneck")._replace(packed_weights=[3])}, TypeError, "each packed"
    ),
    "activation": (
        {"stages": numbers("bottleneck")._replace(activation="gelu")}, ValueError, "activation must"
    ),
    "sum": (
        {"stages": numbers("bottleneck")._replace(sum_activation="x")}, ValueError, "sum_activation"
    ),
    "gradient": ({"input": ZEROS.clone().requires_grad_()}, RuntimeError, "has no gradient"),
}  # fmt: skip


@pytest.mark.parametrize("is_into", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str, is_into: bool) -> None:
    changes, error, message = BAD[name]
    input, stages, mask, _ = problem("bottleneck")
    options = {"input": input, "stages": stages, "mask": mask, **changes}
    before = options["input"].detach().clone()
    run = gated_block
    if is_into:
        run = gated_block_into
        if "shortcut" in options:
            options["base"] = options.pop("shortcut")
            message = message.replace("shortcut must have", "must have")
        else:
            options["base"] = options.pop("input")
            message = message.replace("input must be float32", "base must be float32")
    with pytest.raises(error, match=message):
        run(**options)
    assert torch.equal((options.get("input", options.get("base"))).detach(), before)


def test_a_pack_that_does_not_fit_is_ignored() -> None:
    input, stages, mask, _ = problem("wide")
    input, stages, _ = cast(torch.float32, input, stages)
    packs = packed(numbers("wide", torch.float32, seed=9)).packed_weights
    found = gated_block(input, stages._replace(packed_weights=packs), mask)
    assert torch.equal(found, gated_block(input, stages, mask))


def test_shared_and_missing_memory() -> None:
    input, stages, mask, _ = problem("stride")
    base = torch.zeros(2, 40, 5, 6).double()
    for options in (
        {"stages": stages._replace(biases=[*stages.biases[:2], base.flatten()[:40]])},
        {"input": base.flatten()[: 24 * 99].reshape(1, 24, 9, 11), "mask": mask[:1]},
    ):
        images = base[: options.get("input", input).size(0)]
        arguments = {"stages": stages, "mask": mask, "input": input, **options}
        with pytest.raises(ValueError, match="base must not share memory"):
            gated_block_into(images, **arguments)
    with pytest.raises(ValueError, match="must have memory for each of its elements"):
        gated_block_into(base[:1].expand(2, -1, -1, -1), stages, mask, input=input)


def test_forward_mode_is_refused() -> None:
    input, stages, mask, _ = problem("bottleneck")
    with pytest.raises(NotImplementedError, match=r"forward-mode .* got .* Use"):
        torch.func.jvp(lambda value: gated_block(value, stages, mask), (input,), (input,))
