"""The tensors of a convolution problem, its dense and perforated calls, and whether they agree."""

from collections.abc import Callable, Mapping
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

import perfconv
from perfconv._bench.problems import Problem, make_mask

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
GRADIENTS = ("input", "weight", "bias")
BOUNDS = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 5e-2}  # of what is compared, as a share

TF32_BOUND = 2e-2  # torch may multiply float32 in tf32 on a GPU


def rounding_bound(values: Tensor) -> float:
    """By how much two ways to ``values`` may differ, as a share of the largest, or of the norm."""
    bound = BOUNDS[str(values.dtype).removeprefix("torch.")]
    return bound if values.device.type == "cpu" else max(bound, TF32_BOUND)


class ConvCase:
    """Weights are packed beforehand for forward passes, as perfconv.prepack does for inference."""

    def __init__(self, problem: Problem, device: torch.device | str = "cpu") -> None:
        self.problem = problem
        self.device = torch.device(device)
        generator = torch.Generator().manual_seed(problem.seed)
        dtype = getattr(torch, problem.dtype)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(self.device, dtype)

        size = (problem.batch, problem.channels, problem.height, problem.width)
        weight = (problem.out_channels, problem.channels // problem.groups, *[problem.kernel] * 2)
        self.mask = make_mask(problem).to(self.device)
        self.density = self.mask.float().mean().item()
        self.inputs = self.both_layouts(normal(*size))
        self.weights = self.both_layouts(normal(*weight) * 0.05)
        self.bias = normal(problem.out_channels)
        self.grads = self.both_layouts(normal(problem.batch, problem.out_channels, *size[2:]))
        self.packed = perfconv.pack_weight(self.weights["nchw"], groups=problem.groups)
        self.options = {
            "padding": problem.padding,
            "dilation": problem.dilation,
            "groups": problem.groups,
        }

    @staticmethod
    def both_layouts(value: Tensor) -> dict[str, Tensor]:
        return {name: value.contiguous(memory_format=kind) for name, kind in LAYOUTS.items()}

    @property
    def input(self) -> Tensor:
        return self.inputs["channels_last"]

    @property
    def weight(self) -> Tensor:
        return self.weights["channels_last"]

    def learns(self) -> None:
        for value in (*self.inputs.values(), *self.weights.values(), self.bias):
            value.requires_grad_()

    # ---- the calls that are compared -------------------------------------------------------------

    def dense(self, layout: str) -> Tensor:
        return F.conv2d(self.inputs[layout], self.weights[layout], self.bias, **self.options)

    def perforated(self, algorithm: str, packed: Tensor | None) -> Tensor:
        return perfconv.perforated_conv2d(
            self.input,
            self.weight,
            self.mask,
            self.bias,
            algorithm=algorithm,
            packed_weight=packed,
            **self.options,
        )

    def step(self, output: Tensor, layout: str) -> tuple[Tensor, ...]:
        wanted = (self.inputs[layout], self.weights[layout], self.bias)
        return torch.autograd.grad(output, wanted, self.grads[layout])

    def dense_gradient(self, layout: str, wanted: tuple[bool, bool, bool]) -> object:
        values = self.grads[layout], self.inputs[layout], self.weights[layout]
        return self._backward(*values, wanted)

    def _backward(
        self, grad: Tensor, input: Tensor, weight: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor, ...]:
        """torch's own, of a dense convolution."""
        p = self.problem
        return torch.ops.aten.convolution_backward(
            grad,
            input,
            weight,
            [p.out_channels],
            [1, 1],
            [p.padding] * 2,
            [p.dilation] * 2,
            False,
            [0, 0],
            p.groups,
            wanted,
        )

    def gradient(self, of: str, algorithm: str) -> Callable[[], tuple[Tensor, ...]]:
        """dgrad or wgrad alone, by the gradient of an output that was made beforehand."""
        input, weight = self.input.detach(), self.weight.detach()
        asked = input if of == "dgrad" else weight
        asked.requires_grad_()
        output = perfconv.perforated_conv2d(
            input, weight, self.mask, algorithm=algorithm, **self.options
        )
        grad = self.grads["channels_last"]
        return lambda: torch.autograd.grad(output, asked, grad, retain_graph=True)

    # ---- are they right --------------------------------------------------------------------------

    @cached_property
    def expected(self) -> Tensor:
        with torch.no_grad():
            exact = F.conv2d(
                self.inputs["nchw"].float(),
                self.weights["nchw"].float(),
                self.bias.float(),
                **self.options,
            )
            return torch.where(self.mask, exact, 0)

    def check(self, name: str, found: Tensor) -> None:
        """Active pixels equal the dense result in float32, up to the rounding of the dtype."""
        self._check_near(name, found, self.expected)

    def check_active_inputs(self, name: str, rows: Tensor) -> None:
        """(M, C_out), another function: without bias, and of the active inputs alone."""
        with torch.no_grad():
            active = torch.where(self.mask, self.inputs["nchw"].float(), 0)
            exact = F.conv2d(active, self.weights["nchw"].float(), None, **self.options)
        image, _, y, x = self.mask.nonzero(as_tuple=True)
        self._check_near(name, rows, exact.permute(0, 2, 3, 1)[image, y, x])

    @cached_property
    def expected_gradients(self) -> dict[str, Tensor]:
        """Those of the dense convolution in float32, inactive outputs without a gradient."""
        with torch.no_grad():
            grad = torch.where(self.mask, self.grads["nchw"].float(), 0)
            values = self.inputs["nchw"].float(), self.weights["nchw"].float()
            found = self._backward(grad, *values, (True, True, True))
        return dict(zip(GRADIENTS, found, strict=True))

    def check_gradients(self, name: str, found: Mapping[str, Tensor]) -> None:
        """Gradients of "input", "weight" and "bias", or some of them, as ``check`` does."""
        for of, value in found.items():
            self._check_near(f"the {of} gradient of {name}", value, self.expected_gradients[of])

    def _check_near(self, what: str, found: Tensor, expected: Tensor) -> None:
        bound = rounding_bound(self.input) * max(1.0, expected.abs().max().item())
        error = (found.detach().float() - expected).abs().max().item()
        if not error <= bound:
            raise AssertionError(f"{self.problem.name}: {what} is off by {error}")
