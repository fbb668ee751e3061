"""The planner of the CUDA kernels: what it says, and that this is what runs."""

import os
import subprocess
import sys

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
    capability: int = 80,
    expected_density: float | None = None,
    algorithm: str = "auto",
) -> list[tuple[str, bool, str]]:
    input_shape = [problem.batch, problem.in_channels, *problem.size]
    return _ext._C.explain_cuda(
        input_shape, list(problem.weight_shape), list(problem.output_shape), problem.groups, dtype,
        allow_tf32, is_aligned, capability, expected_density, algorithm,
    )  # fmt: skip


def implicit_kernel(*arguments: object, **options: object) -> str:
    """The kernel of implicit_gemm, and why not the ones before it."""
    reasons = {name: reason for name, _, reason in explain(*arguments, **options)}
    return reasons["implicit_gemm"].split("kernel: ")[1]


HALVES = Problem(in_channels=64)
DEPTHWISE = Problem(in_channels=16, out_channels=16, groups=16)

# What runs, and a word of the reason why the kernel before it in the list does not.
CHOICES = {
    "bfloat16": (Problem(), {}, "tensor cores", ""),
    "wgmma": (HALVES, {"capability": 90}, "wgmma", ""),
    "wgmma float16": (HALVES, {"capability": 90, "dtype": "float16"}, "wgmma", ""),
    "older": (HALVES, {"capability": 89}, "tensor cores", "no GPU of compute capability 9.0"),
    "newer": (HALVES, {"capability": 100}, "tensor cores", "no GPU of compute capability 9.0"),
    "48 channels": (
        Problem(in_channels=48),
        {"capability": 90},
        "tensor cores",
        "no multiple of 64",
    ),
    "wgmma tf32": (
        Problem(in_channels=32),
        {"capability": 90, "dtype": "float32", "allow_tf32": True},
        "wgmma",
        "",
    ),
    "48 channels of tf32": (
        Problem(in_channels=48),
        {"capability": 90, "dtype": "float32", "allow_tf32": True},
        "tensor cores",
        "no multiple of 32",
    ),
    "float32 on 9.0": (
        HALVES,
        {"capability": 90, "dtype": "float32"},
        "float32 tiles",
        "permission",
    ),
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


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ("90", "kernel: wgmma"),
        ("80", "not wgmma (PERFCONV_CUDA_CAPABILITY is below 90)"),
        ("8.0", "must be a compute capability such as 80 or 90, got 8.0."),
    ],
)
def test_kernels_of_an_older_device_by_the_environment(value: str, wanted: str) -> None:
    """Read once a process; the module by itself, as importing torch takes seconds."""
    script = (
        "import importlib.util as u\n"
        f"spec = u.spec_from_file_location('_C', {_ext._C.__file__!r})\n"
        "module = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(module.explain_cuda([1, 64, 9, 9], [8, 64, 3, 3], [1, 8, 9, 9], 1, 'bfloat16', "
        "False, True, 90, None, 'auto')[0][2])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PERFCONV_CUDA_CAPABILITY": value},
        capture_output=True,
        text=True,
    )
    assert wanted in result.stdout + result.stderr


LAUNCHED = {
    "wgmma": "wgmma_gemm_kernel",
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
    if backend.emulator is not None:
        backend.emulator.set(cc=options.get("capability", 80))
    elif "capability" in options:
        pytest.skip("about a device of another capability")
    backend.forward(problem, dtype, "implicit_gemm", allow_tf32=options.get("allow_tf32", False))
    if backend.emulator is not None:
        backend.emulator.set(cc=90)
        log = backend.emulator.text("log")
        assert [name for name in set(LAUNCHED.values()) if name in log] == [LAUNCHED[kernel]]


def test_float32_weights_need_no_pack(backend: Backend) -> None:
    weight = torch.randn(12, 8, 3, 3, device=backend.device)
    assert backend.ops.pack_weight(weight, 1).shape == (0,)
    with pytest.raises(ValueError, match="groups"):
        backend.ops.pack_weight(weight, 5)
