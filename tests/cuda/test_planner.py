"""The planner of the CUDA kernels: what it says, and that this is what runs."""

import pytest
import torch
from cuda_backend import Backend
from helpers import Problem

from perfconv import _ext


def explain(
    problem: Problem,
    dtype: str = "bfloat16",
    *,
    allow_tf32: bool = False,
    is_aligned: bool = True,
    expected_density: float | None = None,
    algorithm: str = "auto",
) -> list[tuple[str, bool, str]]:
    input_shape = [problem.batch, problem.in_channels, *problem.size]
    return _ext._C.explain_cuda(
        input_shape, list(problem.weight_shape), list(problem.output_shape), problem.groups, dtype,
        allow_tf32, is_aligned, expected_density, algorithm,
    )  # fmt: skip


def implicit_kernel(*arguments: object, **options: object) -> str:
    """The kernel of implicit_gemm, and why not the ones before it."""
    reasons = {name: reason for name, _, reason in explain(*arguments, **options)}
    return reasons["implicit_gemm"].split("kernel: ")[1]


DEPTHWISE = Problem(in_channels=16, out_channels=16, groups=16)

# What runs, and a word of the reason why the kernel before it in the list does not.
CHOICES = {
    "bfloat16": (Problem(), {}, "tensor cores", ""),
    "float16": (Problem(), {"dtype": "float16"}, "tensor cores", ""),
    "tf32": (Problem(), {"dtype": "float32", "allow_tf32": True}, "tensor cores", ""),
    "float32": (Problem(), {"dtype": "float32"}, "float32 tiles", "permission"),
    "float64": (Problem(), {"dtype": "float64"}, "direct", "float64"),
    "rgb": (Problem(in_channels=3), {}, "few channels", "multiple of 16 bytes"),
    "odd": (Problem(in_channels=12), {}, "few channels", "multiple of 16 bytes"),
    "misaligned": (Problem(), {"is_aligned": False}, "few channels", "does not start"),
    "7x7": (Problem(kernel=(7, 7), padding=(3, 3)), {}, "few channels", "32 taps"),
    "depthwise": (DEPTHWISE, {}, "depthwise", "multiple of 16 bytes"),
    "large": (Problem(batch=2**20, size=(64, 64)), {}, "few channels", "2^31"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_kernel_of_implicit_gemm(name: str) -> None:
    problem, options, kernel, reason = CHOICES[name]
    found = implicit_kernel(problem, **options)
    assert found.startswith(kernel)
    assert reason in found


@pytest.mark.parametrize("algorithm", ["direct", "gather_gemm", "implicit_gemm", "dense"])
def test_by_name(algorithm: str) -> None:
    found = explain(Problem(), algorithm=algorithm)
    assert [name for name, is_chosen, _ in found if is_chosen] == [algorithm] == [found[0][0]]
    assert all(reason for _, _, reason in found)


def test_auto_is_dense_by_expectation_only() -> None:
    assert explain(Problem())[0][0] == "implicit_gemm"
    assert explain(Problem(), expected_density=0.5)[0][0] == "implicit_gemm"
    assert explain(Problem(), expected_density=0.9)[0][0] == "dense"
    assert explain(Problem(), "float64")[0][0] == "direct"


LAUNCHED = {
    "tensor cores": "implicit_gemm_kernel",
    "float32 tiles": "implicit_gemm_kernel",
    "few channels": "forward_few_channels_kernel",
    "depthwise": "forward_depthwise_kernel",
    "direct": "forward_direct_kernel",
}


@pytest.mark.parametrize("name", [name for name in CHOICES if name not in ("misaligned", "large")])
def test_what_it_says_is_what_runs(backend: Backend, name: str) -> None:
    problem, options, kernel, _ = CHOICES[name]
    dtype = getattr(torch, options.get("dtype", "bfloat16"))
    backend.forward(problem, dtype, "implicit_gemm", allow_tf32=options.get("allow_tf32", False))
    if backend.emulator is not None:
        log = backend.emulator.text("log")
        assert [name for name in set(LAUNCHED.values()) if name in log] == [LAUNCHED[kernel]]


def test_weights_need_no_pack(backend: Backend) -> None:
    weight = torch.randn(12, 8, 3, 3, device=backend.device)
    assert backend.ops.pack_weight(weight, 1).shape == (0,)
    with pytest.raises(ValueError, match="groups"):
        backend.ops.pack_weight(weight, 5)
