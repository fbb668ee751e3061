"""Problems for the operators' tests, layouts to put them in, and the rule that compares results.

A result is held against float64 and may err twice as much as dense PyTorch in the same dtype.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

import perfconv
from perfconv.ops import reference

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ALGORITHMS = ("direct", "gather_gemm", "implicit_gemm")  # the ones that compute active pixels only
LAYOUTS = ("contiguous", "channels_last", "strided", "transposed", "expanded", "offset")
OPERANDS = ("input", "weight", "bias", "base", "residual")

# Every comparison with the oracle counts here; the terminal summary prints it (conftest.py).
algorithms_run: Counter[str] = Counter()


@dataclass(frozen=True)
class Problem:
    """One perforated convolution. Sizes in pixels and channels, (h, w) order."""

    batch: int = 2
    in_channels: int = 8
    out_channels: int = 12
    size: tuple[int, int] = (9, 11)
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    density: float = 0.4
    is_mask_shared: bool = False
    has_bias: bool = True
    has_residual: bool = False
    fill: str = "zero"
    activation: str | None = None
    activate_base: bool = False
    seed: int = 0

    @property
    def is_depthwise(self) -> bool:
        return self.groups == self.in_channels == self.out_channels

    @property
    def output_shape(self) -> tuple[int, ...]:
        """(N, C_out, H_out, W_out), as torch computes it."""
        input = torch.empty(self.batch, self.in_channels, *self.size, device="meta")
        weight = torch.empty(self.weight_shape, device="meta")
        return tuple(F.conv2d(input, weight, **self.geometry).shape)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def geometry(self) -> dict:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def options(self) -> dict:
        """The keyword arguments of the operator that are not tensors."""
        return {
            **self.geometry,
            "fill": self.fill,
            "activation": self.activation,
            "activate_base": self.activate_base,
        }

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor | None]:
        """Operands rounded to ``dtype``, the mask, and the gradient of the output."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = self.output_shape

        def normal(wanted: bool, *sizes: int) -> Tensor | None:
            values = torch.randn(*sizes, generator=generator)  # drawn even if not wanted
            return values.to(dtype) if wanted else None

        mask_batch = 1 if self.is_mask_shared else self.batch
        return {
            "mask": torch.rand(mask_batch, 1, *shape[2:], generator=generator) < self.density,
            "input": normal(True, self.batch, self.in_channels, *self.size),
            "weight": normal(True, *self.weight_shape),
            "bias": normal(self.has_bias, self.out_channels),
            "base": normal(self.fill == "passthrough", *shape),
            "residual": normal(self.has_residual, *shape),
            "grad_output": normal(True, *shape),
        }


def random_mask(*shape: int, density: float = 0.4, seed: int = 0) -> Tensor:
    """Bool, True with the probability ``density``; the same for the same seed."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def relayout(value: Tensor | None, layout: str) -> Tensor | None:
    """The same values (``expanded``: the first image repeated) in other memory."""
    if value is None or layout == "contiguous":
        return value
    if layout == "channels_last":
        return value.contiguous(memory_format=torch.channels_last)
    if layout == "strided":
        wide = value.new_full((*value.shape[:-1], 2 * value.size(-1) + 1), torch.nan)
        wide[..., 1::2] = value
        return wide[..., 1::2]
    if layout == "transposed":
        return value.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "expanded":
        return value[:1].expand_as(value)
    assert layout == "offset", layout
    storage = value.new_full((value.numel() + 1,), torch.nan)  # off every alignment but its own
    storage[1:] = value.flatten()
    return storage[1:].view(value.shape)


def gate_operands(
    channels: int,
    dtype: torch.dtype,
    size: tuple[int, int, int] = (2, 9, 11),
    has_bias: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Input, weight and bias of a gate; size is (N, H, W)."""
    generator = torch.Generator().manual_seed(channels)
    shapes = (size[0], channels, *size[1:]), (2, channels), (2,)
    input, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return input, weight, bias if has_bias else None


def assert_gated(
    found: Sequence[Tensor], input: Tensor, weight: Tensor, bias: Tensor | None
) -> None:
    """Mask, list, counts and, if it is not empty, soft of a gate against the oracle.

    A pixel whose logits are as close as rounded sums may bring them can go either way.
    """
    soft, mask, active_idx, count, image_counts = (value.cpu() for value in found)
    operands = [None if value is None else to_double(value) for value in (input, weight, bias)]
    logits, exact = reference.gate_mask(*operands)
    sizes = [None if value is None else value.abs() for value in operands]
    wide = torch.promote_types(input.dtype, torch.float32)
    rounding = 64 * torch.finfo(wide).eps * reference.gate_mask(*sizes)[0].sum(1, keepdim=True)
    margin = logits[:, 1:] - logits[:, :1]
    is_clear = margin.abs() > rounding
    assert mask.dtype == torch.bool
    assert mask.shape == margin.shape
    assert torch.equal(mask & is_clear, (margin > 0) & is_clear)
    assert is_clear.double().mean() > 0.9 or mask.numel() < 20  # the exception stays one
    positions = reference.active_positions(mask)
    assert active_idx.dtype == count.dtype == image_counts.dtype == torch.int32
    assert active_idx.tolist() == positions + [-1] * (mask.numel() - len(positions))
    assert count.tolist() == [len(positions)]
    assert image_counts.tolist() == mask.flatten(1).sum(1).tolist()
    if soft.shape == (0,):
        return
    assert soft.dtype == input.dtype
    error = (soft.double() - exact).abs()  # a slope of 1/4 at most, and one rounding
    assert (error <= rounding / 4 + torch.finfo(input.dtype).eps * exact).all()


def run(function: Callable[..., Tensor], tensors: dict, problem: Problem, **options) -> dict:
    """The output of ``function`` and the gradient of every operand."""
    leaves = {name: tensors[name] for name in OPERANDS if tensors[name] is not None}
    leaves = {name: value.detach().requires_grad_() for name, value in leaves.items()}
    output = function(mask=tensors["mask"], **leaves, **problem.options, **options)
    if problem.fill == "none":  # inactive pixels hold anything
        output = torch.where(tensors["mask"], output, 0)
    grads = torch.autograd.grad(output, list(leaves.values()), tensors["grad_output"])
    return {"output": output.detach(), **dict(zip(leaves, grads, strict=True))}


KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0), "hardswish": (-3.0, 3.0)}


def away_from_kinks(problem: Problem, tensors: dict) -> Tensor:
    """The gradient of the output, zero where rounding alone decides the slope of the activation."""
    double = {name: to_double(tensors[name]) for name in (*OPERANDS, "mask")}
    options = {**problem.options, "activation": None}
    values = reference.perforated_conv2d(**double, **options)  # under the fill, as the slopes
    values = torch.nan_to_num(values)
    grad = tensors["grad_output"]
    distance = 4 * torch.finfo(grad.dtype).eps * largest(values)
    for kink in KINKS.get(problem.activation, ()):
        grad = grad.masked_fill((values - kink).abs() < distance, 0)
    return grad


@lru_cache(maxsize=8)
def expected(problem: Problem, dtype: torch.dtype, is_expanded: bool) -> tuple[dict, ...]:
    """Operands, the exact results, those of dense PyTorch in ``dtype``, and sums of magnitudes.

    The last, in float64, say what one rounding of a sum is worth for each result.
    """
    tensors = problem.tensors(dtype)
    if is_expanded:
        tensors["input"] = relayout(tensors["input"], "expanded")
    tensors["grad_output"] = away_from_kinks(problem, tensors)
    dense = run(reference.perforated_conv2d, tensors, problem, dtype=dtype)
    double = {name: to_double(value) for name, value in tensors.items()}
    exact = run(reference.perforated_conv2d, double, problem)
    sizes = {
        name: None if value is None or name == "mask" else value.abs()
        for name, value in double.items()
    }
    sizes["mask"] = double["mask"]
    linear = replace(problem, activation=None, activate_base=False)
    sums = run(reference.perforated_conv2d, sizes, linear)
    if problem.activation in ("silu", "hardswish"):
        # A rounding of the output's sum moves the slope, by at most half as much; and the sum
        # itself is kept in dtype, rounded by half an eps (allowed_error counts four of float32).
        eps = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
        kept = max(1.0, eps / 8) if dtype != torch.float64 else 1.0
        slopes = 1 + largest(sums["output"]) / 2 * kept
        sums = {name: value if name == "output" else value * slopes for name, value in sums.items()}
    return tensors, exact, dense, sums


def to_double(value: Tensor | None) -> Tensor | None:
    return value.double() if value is not None and value.is_floating_point() else value


def largest(values: Tensor) -> float:
    """The largest magnitude; NaN if there is one; 0 if empty."""
    return values.double().abs().max().item() if values.numel() else 0.0


def allowed_error(exact: Tensor, dense: Tensor, sums: Tensor) -> float:
    """Twice the error of dense PyTorch, plus a floor where that error is small by luck.

    Dense PyTorch has been seen to give NaN for a weight gradient, now and then: such entries count
    as without error, which allows less.

    The floor: one rounding to the dtype before the activation and one after it, and four of the
    float32 sums; 64 in float64, where the exact result itself is rounded.
    """
    return (
        2 * largest(torch.nan_to_num(dense.double() - exact))
        + torch.finfo(dense.dtype).eps * largest(exact)
        + roundings_of_sums(dense.dtype) * largest(sums)
    )


def roundings_of_sums(dtype: torch.dtype) -> float:
    """Of results of that dtype, as a share of the sum of the magnitudes that were added."""
    is_double = dtype == torch.float64
    return (64 if is_double else 4) * torch.finfo(torch.float64 if is_double else torch.float32).eps


def assert_as_exact(name: str, result: Tensor, exact: Tensor, dense: Tensor, sums: Tensor) -> None:
    """The tolerance rule; NaN anywhere fails."""
    assert result.shape == exact.shape, f"{name}: {result.shape} instead of {exact.shape}"
    assert result.dtype == dense.dtype, f"{name}: {result.dtype} instead of {dense.dtype}"
    error, allowed = largest(result.double() - exact), allowed_error(exact, dense, sums)
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def assert_no_row_missing(
    name: str, result: Tensor, exact: Tensor, dense: Tensor, sums: Tensor | None = None
) -> None:
    """Relative norm over the whole gradient, and a bound on each row of it.

    One lost row of many would hardly change the norm of all. ``sums``, as in ``assert_as_exact``:
    no norm is asked to be smaller than what the roundings of its largest entry may come to, which
    matters only for gradients of an entry or two whose sums cancel.
    """
    error = (result.double() - exact).norm()
    eps = torch.finfo(dense.dtype).eps
    allowed = 2 * (torch.nan_to_num(dense.double() - exact)).norm() + 64 * eps * exact.norm()
    if sums is not None:
        allowed = max(float(allowed), roundings_of_sums(dense.dtype) * largest(sums))
    assert error <= allowed, f"{name}: norm of the error {error:.3g}, allowed {allowed:.3g}"
    if exact.dim() < 2 or exact.numel() == 0:
        return
    rows, found, dense_rows = (
        values.double().movedim(1, -1).flatten(0, -2)  # pixels of an image, taps of a weight
        for values in (exact, result, dense)
    )
    norms = rows.norm(dim=1)
    allowed_rows = 0.5 * norms + 2 * torch.nan_to_num(dense_rows - rows).norm(dim=1).max()
    lost = (norms > 0.2 * norms.mean()) & ((found - rows).norm(dim=1) > allowed_rows)
    assert not lost.any(), f"{name}: rows {lost.nonzero()[:5, 0].tolist()} are wrong or missing"


def check(
    problem: Problem,
    dtype: torch.dtype,
    algorithm: str,
    layout: str = "contiguous",
    with_gradients: bool = True,
) -> None:
    """Compares the operator, and its gradients, with the oracle."""
    operands, exact, dense, sums = expected(problem, dtype, is_expanded=layout == "expanded")
    tensors = dict(operands)
    for name in ("input", "base", "residual", "grad_output"):
        is_repeated = layout == "expanded" and name != "input"
        tensors[name] = relayout(tensors[name], "contiguous" if is_repeated else layout)
    weight_layout = layout if layout in ("channels_last", "strided", "offset") else "contiguous"
    tensors["weight"] = relayout(tensors["weight"], weight_layout)
    count_run(problem, algorithm)
    if not with_gradients:
        arguments = {name: value for name, value in tensors.items() if name != "grad_output"}
        output = perfconv.perforated_conv2d(**arguments, **problem.options, algorithm=algorithm)
        if problem.fill == "none":
            output = torch.where(tensors["mask"], output, 0)
        assert_as_exact("output", output, exact["output"], dense["output"], sums["output"])
        return
    results = run(perfconv.perforated_conv2d, tensors, problem, algorithm=algorithm)
    assert results.keys() == exact.keys()
    for name, result in results.items():
        assert_as_exact(name, result, exact[name], dense[name], sums[name])
        if name != "output":
            assert_no_row_missing(name, result, exact[name], dense[name], sums[name])


def count_run(problem: Problem, algorithm: str) -> None:
    is_own_path = problem.is_depthwise and algorithm == "implicit_gemm"
    algorithms_run[f"{algorithm}, depthwise" if is_own_path else algorithm] += 1


def histogram() -> list[str]:
    """One line for each algorithm that was compared with the oracle."""
    most = max(algorithms_run.values(), default=1)
    return [
        f"{name:<26}{count:6d}  {'#' * round(40 * count / most)}"
        for name, count in sorted(algorithms_run.items())
    ]
