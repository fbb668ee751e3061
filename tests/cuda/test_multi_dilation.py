"""Multi-dilation convolution on CUDA against dense branches in float64."""

import pytest
import torch
from cuda_backend import Backend
from helpers import DTYPES, assert_as_exact, assert_no_row_missing, relayout
from torch import Tensor

from perfconv.ops import reference

# name: input channels, output channels, kernel, dilations, tied, shared bias, size
CASES = {
    "tied": (8, 8, 3, (0, 1, 2, 4), True, True, (6, 7)),
    "untied": (8, 8, 3, (1, 0, 2), False, False, (6, 7)),
    "tied-branch-bias": (16, 24, 3, (2, 1), True, False, (9, 10)),
    "untied-tiles": (24, 72, 3, (1, 3, 2), False, True, (11, 9)),
    "narrow-tiles": (24, 40, 3, (1, 2), True, True, (11, 13)),
    "wide-weight": (72, 80, 3, (2, 1), False, True, (5, 6)),
    "ragged": (5, 7, 3, (1, 3), False, True, (5, 6)),
    "beyond-map": (8, 8, 3, (1, 30), True, False, (5, 5)),
    "one-by-one": (8, 8, 1, (0, 1), True, True, (5, 5)),
    "five": (4, 4, 5, (2,), False, True, (5, 6)),
}
# Tiles of compute capability 9.0, 64, 128 and 256 columns, in 16 bits.
WGMMA_CASES = {
    "tied-64": (64, 64, 3, (0, 1, 2, 4), True, False, (9, 10)),
    "untied-128": (64, 128, 3, (1, 3), False, True, (11, 9)),
    "untied-256": (192, 192, 3, (2, 0), False, False, (8, 9)),
}
# The weight gradient alone: 64 and 128 input channels a tile, ragged ones, 1 and 25 taps.
WGMMA_WGRAD_CASES = {
    "tied-wgrad": (128, 128, 3, (1, 0, 2, 4), True, True, (9, 10)),
    "untied-wgrad": (192, 192, 3, (2, 0, 1), False, True, (6, 9)),
    "tied-wgrad-64": (64, 192, 1, (3, 1), True, True, (11, 13)),
    "untied-wgrad-five": (64, 128, 5, (1, 40), False, True, (5, 6)),
}
# The input gradient alone: every tile, its last rows, one tap and more than nine.
DGRAD_CASES = {
    "wide-gradient": (72, 8, 3, (1, 2), False, True, (9, 9)),
    "tile-1": (8, 8, 1, (1,), True, True, (7, 9)),
    "tile": (8, 8, 1, (1,), True, True, (8, 8)),
    "tile+1": (8, 8, 1, (1,), True, True, (5, 13)),
    "taps-25": (8, 8, 5, (0, 1, 7), False, True, (7, 6)),
}


ALL_CASES = {**CASES, **WGMMA_CASES, **WGMMA_WGRAD_CASES, **DGRAD_CASES}


def dilations_of(name: str) -> tuple[int, ...]:
    return ALL_CASES[name][3]


def tensors(name: str, dtype: torch.dtype, batch: int = 2, lowest: int = -1) -> dict[str, Tensor]:
    inputs, outputs, side, dilations, is_tied, is_shared, size = ALL_CASES[name]
    generator = torch.Generator().manual_seed(3)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(dtype)

    branches = len(dilations)
    shape = (batch, 1, *size)
    choice = torch.randint(lowest, branches, shape, generator=generator, dtype=torch.int32)
    return {
        "input": normal(batch, inputs, *size),
        "weight": normal(*([] if is_tied else [branches]), outputs, inputs, side, side),
        "choice": choice,
        "bias": normal(*([] if is_shared else [branches]), outputs),
        "base": normal(batch, outputs, *size),
        "grad_output": normal(batch, outputs, *size),
    }


def forward(backend: Backend, name: str, values: dict, fill: str, activation: str | None) -> Tensor:
    input, weight, choice, bias, base = backend.to(
        relayout(values["input"], "channels_last"), values["weight"], values["choice"],
        values["bias"], values["base"] if fill == "passthrough" else None,
    )  # fmt: skip
    dilations = list(dilations_of(name))
    return backend.ops.multi_dilation_conv2d(
        input, weight, choice, bias, base, dilations, fill, activation or "none"
    ).cpu()


def results(name: str, values: dict, dtype: torch.dtype, **options: object) -> dict:
    """The output and the gradients of input and weight, of the oracle."""
    names = ("input", "weight", "bias", "base", "grad_output")
    cast = {key: values[key].to(dtype) for key in names}
    leaves = [cast["input"].requires_grad_(), cast["weight"].requires_grad_()]
    fill = options.get("fill", "zero")
    output = reference.multi_dilation_conv2d(
        *leaves, values["choice"], cast["bias"], dilations=dilations_of(name), dtype=dtype,
        base=cast["base"] if fill == "passthrough" else None, **options,
    )  # fmt: skip
    grads = torch.autograd.grad(output, leaves, cast["grad_output"], materialize_grads=True)
    return {"output": output.detach(), "input": grads[0], "weight": grads[1]}


def magnitudes(values: dict) -> dict:
    return {
        key: value.abs() if value.is_floating_point() else value for key, value in values.items()
    }


def with_chosen(name: str, values: dict, chosen: str) -> dict:
    """The values with another choice, a word for which."""
    copies = dilations_of(name).index(0)
    choice = values["choice"].clone()
    if chosen == "one-image":
        choice[0] = -1
    else:
        choice.fill_({"one-branch": 2, "copies": copies}.get(chosen, -1))
    if chosen == "one-pixel":
        choice[1, 0, 3, 3] = 2
    return {**values, "choice": choice}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fill", ["zero", "passthrough", "nearest"])
@pytest.mark.parametrize("name", CASES)
def test_forward(backend: Backend, name: str, fill: str, dtype: torch.dtype) -> None:
    values = tensors(name, dtype)
    activation = {"zero": None, "passthrough": "relu", "nearest": "hardswish"}[fill]
    options = {"fill": fill, "activation": activation}
    exact = results(name, values, torch.float64, **options)["output"]
    dense = results(name, values, dtype, **options)["output"]
    sums = results(name, magnitudes(values), torch.float64, fill=fill)["output"]
    output = forward(backend, name, values, fill, activation)
    assert_as_exact("output", output, exact, dense, sums)
    assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", WGMMA_CASES)
def test_tiles_of_warpgroups(backend: Backend, name: str, dtype: torch.dtype) -> None:
    values = tensors(name, dtype)
    exact, dense = results(name, values, torch.float64), results(name, values, dtype)
    sums = results(name, magnitudes(values), torch.float64)
    output = forward(backend, name, values, "zero", None)
    if backend.emulator is not None:
        kernels = backend.emulator.text("log")
        columns = name.split("-")[1]
        assert f"Li{columns}E" in kernels.split("wgmma_gemm_kernel")[1].split("BranchRows")[0]
    assert_as_exact("output", output, exact["output"], dense["output"], sums["output"])
    grad, weight, choice = backend.to(
        relayout(values["grad_output"], "channels_last"), values["weight"], values["choice"]
    )
    result = backend.ops.multi_dilation_dgrad(
        grad, weight, choice, list(dilations_of(name)), False
    ).cpu()
    assert backend.emulator is None or "wgmma_gemm_kernel" in backend.emulator.text("log")
    assert_as_exact("input", result, exact["input"], dense["input"], sums["input"])
    assert_no_row_missing("input", result, exact["input"], dense["input"])


def wgrad(backend: Backend, name: str, values: dict) -> Tensor:
    _, _, side, dilations, is_tied, _, _ = ALL_CASES[name]
    grad, input, choice = backend.to(*(values[k] for k in ("grad_output", "input", "choice")))
    result = backend.ops.multi_dilation_wgrad(grad, input, choice, side, list(dilations), is_tied)
    return result.cpu()


def check_wgrad_of_warpgroups(
    backend: Backend, name: str, values: dict, dtype: torch.dtype
) -> None:
    exact, dense = results(name, values, torch.float64), results(name, values, dtype)
    sums = results(name, magnitudes(values), torch.float64)
    result = wgrad(backend, name, values)
    if backend.emulator is not None:
        columns = 64 if ALL_CASES[name][0] <= 64 else 128
        log = backend.emulator.text("log")
        assert f"Li{columns}E" in log.split("wgmma_wgrad_kernel")[1].split("BranchPixels")[0]
    assert_as_exact("weight", result, exact["weight"], dense["weight"], sums["weight"])
    assert_no_row_missing("weight", result, exact["weight"], dense["weight"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", WGMMA_WGRAD_CASES)
def test_wgrad_of_warpgroups(backend: Backend, name: str, dtype: torch.dtype) -> None:
    check_wgrad_of_warpgroups(backend, name, tensors(name, dtype), dtype)


@pytest.mark.parametrize("name", ["tied-wgrad", "untied-wgrad"])
@pytest.mark.parametrize("chosen", ["nothing", "one-branch", "copies", "one-pixel", "one-image"])
def test_wgrad_of_few_branches(backend: Backend, name: str, chosen: str) -> None:
    """Densities 0 and 1 of a branch, and images with different counts."""
    values = with_chosen(name, tensors(name, torch.bfloat16), chosen)
    check_wgrad_of_warpgroups(backend, name, values, torch.bfloat16)


@pytest.mark.parametrize("name", ["tied-wgrad", "untied-wgrad"])
def test_wgrad_reads_nothing_else(backend: Backend, name: str) -> None:
    """Gradients at inactive pixels and at those that copy are NaN."""
    values = tensors(name, torch.bfloat16)
    copies = dilations_of(name).index(0)
    is_row = (values["choice"] >= 0) & (values["choice"] != copies)
    values["grad_output"] = torch.where(is_row, values["grad_output"], torch.nan)
    assert wgrad(backend, name, values).isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_gradients(backend: Backend, name: str, dtype: torch.dtype) -> None:
    values = tensors(name, dtype)
    exact, dense = results(name, values, torch.float64), results(name, values, dtype)
    sums = results(name, magnitudes(values), torch.float64)
    _, _, side, dilations, is_tied, _, _ = CASES[name]
    grad, input, weight, choice = backend.to(
        *(values[key] for key in ("grad_output", "input", "weight", "choice"))
    )
    dgrad = backend.ops.multi_dilation_dgrad(grad, weight, choice, list(dilations), False)
    wgrad = backend.ops.multi_dilation_wgrad(grad, input, choice, side, list(dilations), is_tied)
    for key, result in (("input", dgrad.cpu()), ("weight", wgrad.cpu())):
        assert result.is_contiguous()
        assert_as_exact(key, result, exact[key], dense[key], sums[key])
        assert_no_row_missing(key, result, exact[key], dense[key])


def dgrad(backend: Backend, name: str, values: dict, allow_tf32: bool = False) -> Tensor:
    grad, weight, choice = backend.to(*(values[k] for k in ("grad_output", "weight", "choice")))
    return backend.ops.multi_dilation_dgrad(
        grad, weight, choice, list(dilations_of(name)), True, allow_tf32
    ).cpu()


def check_dgrad(backend: Backend, name: str, values: dict, dtype: torch.dtype) -> None:
    exact, dense = results(name, values, torch.float64), results(name, values, dtype)
    sums = results(name, magnitudes(values), torch.float64)
    result = dgrad(backend, name, values)
    assert_as_exact("input", result, exact["input"], dense["input"], sums["input"])
    assert_no_row_missing("input", result, exact["input"], dense["input"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", DGRAD_CASES)
def test_dgrad_by_tiles(backend: Backend, name: str, dtype: torch.dtype) -> None:
    """Of the tails every pixel of one image is a row."""
    is_tail = name.startswith("tile")
    values = tensors(name, dtype, batch=1 if is_tail else 2, lowest=0 if is_tail else -1)
    check_dgrad(backend, name, values, dtype)


@pytest.mark.parametrize("name", ["tied", "untied"])
@pytest.mark.parametrize("chosen", ["nothing", "one-branch", "copies", "one-pixel", "one-image"])
def test_dgrad_of_few_branches(backend: Backend, name: str, chosen: str) -> None:
    """Densities 0 and 1 of a branch, and images with different counts."""
    check_dgrad(
        backend, name, with_chosen(name, tensors(name, torch.bfloat16), chosen), torch.bfloat16
    )


TF32_NAMES = ["tied", "narrow-tiles", "untied-tiles", "wide-weight", *WGMMA_CASES]


@pytest.mark.parametrize("name", TF32_NAMES)
def test_tf32(backend: Backend, name: str) -> None:
    """With factors that tf32 holds exactly, the tensor cores are as exact as float32."""
    values = {
        key: value.float() if value.is_floating_point() else value
        for key, value in tensors(name, torch.bfloat16).items()
    }
    exact, dense = results(name, values, torch.float64), results(name, values, torch.float32)
    sums = results(name, magnitudes(values), torch.float64)
    _, _, side, dilations, is_tied, _, _ = ALL_CASES[name]
    names = ("input", "weight", "choice", "bias", "grad_output")
    input, weight, choice, bias, grad = backend.to(*(values[key] for key in names))
    output = backend.ops.multi_dilation_conv2d(
        input, weight, choice, bias, None, list(dilations), "zero", "none", True
    )
    if backend.emulator is not None:
        assert ("wgmma_gemm_kernel" in backend.emulator.text("log")) == (name in WGMMA_CASES)
    wgrad = backend.ops.multi_dilation_wgrad(
        grad, input, choice, side, list(dilations), is_tied, True
    )
    found = {
        "output": output.cpu(),
        "input": dgrad(backend, name, values, True),
        "weight": wgrad.cpu(),
    }
    for key, result in found.items():
        assert_as_exact(key, result, exact[key], dense[key], sums[key])


def test_values_that_are_no_branch_are_inactive(backend: Backend) -> None:
    """The device cannot raise: such pixels take the fill and have no part in a gradient."""
    values = tensors("tied", torch.float32)
    values["choice"][0, 0, :2] = 4
    values["choice"][1, 0, 2] = -7
    inactive = {**values, "choice": values["choice"].clone()}
    inactive["choice"][(values["choice"] > 3) | (values["choice"] < -1)] = -1
    for fill in ("zero", "nearest", "passthrough"):
        found = forward(backend, "tied", values, fill, None)
        assert torch.equal(found, forward(backend, "tied", inactive, fill, None))
    for operator in (dgrad_of, wgrad_of):
        assert torch.equal(operator(backend, values), operator(backend, inactive))


def dgrad_of(backend: Backend, values: dict) -> Tensor:
    return dgrad(backend, "tied", values)


def wgrad_of(backend: Backend, values: dict) -> Tensor:
    return wgrad(backend, "tied", values)


@pytest.mark.parametrize("lowest", [-1, 0])
def test_nothing_else_is_read(backend: Backend, lowest: int) -> None:
    """Gradients at inactive pixels are NaN."""
    values = tensors("tied", torch.float32, lowest=lowest)
    values["grad_output"] = torch.where(values["choice"] < 0, torch.nan, values["grad_output"])
    assert dgrad_of(backend, values).isfinite().all()
    assert wgrad_of(backend, values).isfinite().all()


@pytest.mark.emulated
def test_wgrad_of_other_devices(backend: Backend) -> None:
    """The tiles of other capabilities give what warpgroups give, to the rounding of the sums."""
    if backend.emulator is None:
        pytest.skip("the emulator has every capability")
    values = tensors("tied-wgrad", torch.bfloat16)
    wanted = wgrad(backend, "tied-wgrad", values)
    for capability in (80, 100):
        backend.emulator.set(cc=capability)
        found = wgrad(backend, "tied-wgrad", values)
        backend.emulator.set(cc=90)
        assert "wgmma" not in backend.emulator.text("log")
        torch.testing.assert_close(found, wanted)


TILES = ("implicit_gemm_kernel", "round_sums_kernel", "wgrad_gemm_kernel")
IN_PLACE = ("implicit_gemm_kernel", "implicit_gemm_kernel", "wgrad_gemm_kernel")
DIRECT = tuple(f"multi_dilation_{which}_kernel" for which in ("forward", "dgrad", "wgrad"))


@pytest.mark.parametrize(
    ("name", "dtype", "kernels"),
    [("tied", torch.bfloat16, TILES), ("untied", torch.float32, IN_PLACE),
     ("tied", torch.float64, DIRECT), ("ragged", torch.float32, DIRECT)],
    ids=str,
)  # fmt: skip
def test_the_kernels_that_run(
    backend: Backend, name: str, dtype: torch.dtype, kernels: tuple
) -> None:
    if backend.emulator is None:
        pytest.skip("the emulator keeps a log of kernels")
    values = tensors(name, dtype)
    forward(backend, name, values, "zero", None)
    assert kernels[0] in backend.emulator.text("log")
    dgrad(backend, name, values)
    assert kernels[1] in backend.emulator.text("log")
    _, _, side, dilations, is_tied, _, _ = CASES[name]
    backend.ops.multi_dilation_wgrad(
        values["grad_output"], values["input"], values["choice"], side, list(dilations), is_tied
    )
    assert kernels[2] in backend.emulator.text("log")


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_same_bits_in_any_schedule(backend: Backend, name: str) -> None:
    values = tensors(name, torch.bfloat16)
    output, grad = forward(backend, name, values, "zero", "relu"), dgrad(backend, name, values)
    if backend.emulator is not None:
        backend.emulator.set(seed=9)
    assert torch.equal(forward(backend, name, values, "zero", "relu"), output)
    assert torch.equal(dgrad(backend, name, values), grad)


@pytest.mark.parametrize("name", ["tied-wgrad", "untied-wgrad-five"])
def test_same_wgrad_on_any_device(backend: Backend, name: str) -> None:
    """Whatever copies early or late and however many multiprocessors there are."""
    values = tensors(name, torch.bfloat16)
    first = wgrad(backend, name, values)
    for seed, mode, multiprocessors in ((2, 0, 1), (3, 1, 40)):
        if backend.emulator is not None:
            backend.emulator.set(seed=seed, sms=multiprocessors, **{"async": mode})
        again = wgrad(backend, name, values)
        if backend.emulator is not None:
            backend.emulator.set(**{"async": 2})
        assert torch.equal(again, first)


def test_no_image(backend: Backend) -> None:
    values = tensors("tied", torch.float32, batch=0)
    assert forward(backend, "tied", values, "nearest", "relu").shape == (0, 8, 6, 7)
    assert dgrad_of(backend, values).shape == (0, 8, 6, 7)
    assert not wgrad_of(backend, values).any()


def test_refused_as_on_the_cpu(backend: Backend) -> None:
    image, choice = torch.zeros(1, 4, 5, 5), torch.zeros(1, 1, 5, 5, dtype=torch.int32)
    image, choice, weight = backend.to(image, choice, torch.zeros(4, 4, 2, 2))
    with pytest.raises(ValueError, match="multi_dilation_conv2d: the kernel must be square"):
        backend.ops.multi_dilation_conv2d(image, weight, choice, None, None, [1], "zero", "none")
    with pytest.raises(ValueError, match="multi_dilation_dgrad: there must be at most 64 dil"):
        backend.ops.multi_dilation_dgrad(
            image, torch.zeros_like(image)[:, :, :3, :3].expand(4, -1, -1, -1).contiguous(),
            choice, [1] * 65, True,
        )  # fmt: skip
