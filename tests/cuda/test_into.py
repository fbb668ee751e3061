"""perforated_conv2d_into on CUDA: the bits of the passthrough fill, written into base."""

import pytest
import torch
from cuda_backend import Backend, native_geometry
from helpers import Problem, relayout

PROBLEMS = {
    "tiles": Problem(in_channels=16, out_channels=24, activation="relu"),
    "odd-channels": Problem(in_channels=5, out_channels=7, activation="silu"),
    "depthwise": Problem(in_channels=16, out_channels=16, groups=16),
    "one-by-one": Problem(kernel=(1, 1), padding=(0, 0), out_channels=32, activation="relu"),
    "full-mask": Problem(out_channels=16, density=1.0, activation="relu"),
    "empty-mask": Problem(out_channels=16, density=0.0, activation="relu"),
}


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("activate_base", [False, True])
@pytest.mark.parametrize("algorithm", ["direct", "gather_gemm", "implicit_gemm", "dense"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_the_passthrough_fill(
    backend: Backend, name: str, algorithm: str, activate_base: bool, layout: str
) -> None:
    problem = PROBLEMS[name]
    tensors = problem.tensors(torch.float32)
    image = relayout(tensors["grad_output"], layout)
    base, weight, mask, bias = backend.to(image, *(tensors[k] for k in ("weight", "mask", "bias")))
    (input,) = backend.to(relayout(tensors["input"], "channels_last"))
    shared = {
        **native_geometry(problem), "activation": problem.activation or "none",
        "activate_base": activate_base, "algorithm": algorithm,
    }  # fmt: skip

    expected = backend.ops.perforated_conv2d(
        input, weight, mask, bias, base, base, fill="passthrough", **shared
    )
    found = base.clone()
    backend.ops.perforated_conv2d_into(found, input, weight, mask, bias, adds_base=True, **shared)
    assert torch.equal(found, expected)
    if not activate_base and name == "tiles":
        with pytest.raises(ValueError, match="base must not share memory"):
            backend.ops.perforated_conv2d_into(
                found, input, weight, mask, found.as_strided((24,), (1,)), **shared
            )
