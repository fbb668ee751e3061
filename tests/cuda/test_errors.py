"""Broken rules on CUDA: the same exception and message as on the CPU, from the same checks.

Each tensor of a valid call is damaged in turn; the CPU says what must come of it. Lists of active
pixels are left whole: the CPU does not read them.
"""

import pytest
import torch
from cuda_backend import Backend
from helpers import random_mask
from torch import Tensor

GEOMETRY = {"stride": [1, 1], "padding": [1, 1, 1, 1], "dilation": [1, 1], "groups": 1}
IMAGE = torch.randn(2, 8, 5, 7)
OUTPUT = torch.randn(2, 12, 5, 7)
WEIGHT = torch.randn(12, 8, 3, 3)
MASK = random_mask(2, 1, 5, 7)
IDX, COUNT, _ = torch.ops.perfconv.compact_mask(MASK)
NO_LIST = {"active_idx": None, "count": None}

CALLS = {
    "compact_mask": {"mask": MASK},
    "expand_mask": {
        "mask": MASK, "kernel_size": [3, 3], "stride": [1, 1], "padding": [1, 1, 1, 1],
        "dilation": [1, 1], "input_size": [5, 7],
    },
    "gate_mask": {
        "input": IMAGE, "weight": torch.randn(2, 8), "bias": torch.randn(2), "wants_soft": True,
    },
    "gather_pixels": {"input": IMAGE, "active_idx": IDX, "count": COUNT},
    "scatter_pixels": {
        "rows": torch.randn(70, 8), "mask": MASK, "active_idx": IDX, "count": COUNT, "base": IMAGE,
    },
    "perforated_conv2d": {
        "input": IMAGE, "weight": WEIGHT, "mask": MASK, "bias": torch.randn(12), "base": OUTPUT,
        "residual": OUTPUT, "fill": "passthrough", **GEOMETRY,
    },
    "perforated_conv2d_dgrad": {
        "grad_output": OUTPUT, "weight": WEIGHT, "mask": MASK, **NO_LIST, "input_size": [5, 7],
        "channels_last": False, **GEOMETRY,
    },
    "perforated_conv2d_wgrad": {
        "grad_output": OUTPUT, "input": IMAGE, "mask": MASK, **NO_LIST, "kernel_size": [3, 3],
        **GEOMETRY,
    },
    "active_sum": {"values": IMAGE, "mask": MASK},
    "nearest_fill": {"values": IMAGE, "mask": MASK},
    "nearest_fill_grad": {"grad": IMAGE, "mask": MASK},
}  # fmt: skip
VALUES = {
    "stride": [0, 1], "padding": [-1, 1, 1, 1], "dilation": [1, 0], "groups": 3,
    "input_size": [5, 6], "kernel_size": [5, 3], "fill": "cubic", "activation": "tanh",
    "algorithm": "winograd",
}  # fmt: skip
DAMAGES = {
    "flat": lambda value: value.flatten(),
    "short": lambda value: value[..., :-1],
    "few-channels": lambda value: value[:, :-1] if value.dim() > 1 else value[:-1],
    "batch": lambda value: torch.cat([value, value[:1]]),
    "integer": lambda value: value.int(),
    "double": lambda value: value.double(),
}
UNREAD = {"active_idx", "count"}


def broken_calls() -> list[tuple[str, str, str]]:
    tensors = [
        (op, name, damage)
        for op, arguments in CALLS.items()
        for name, value in arguments.items()
        if isinstance(value, Tensor) and name not in UNREAD
        for damage in DAMAGES
    ]
    others = [
        (op, name, "value")
        for op, arguments in CALLS.items()
        for name in VALUES
        if name in arguments or (op == "perforated_conv2d" and name in ("activation", "algorithm"))
    ]
    return tensors + others


def outcome(op: object, arguments: dict) -> tuple[type, str] | str:
    try:
        op(**arguments)
    except Exception as error:
        return type(error), str(error).replace("perfconv_emulated::", "perfconv::")
    return "accepted"


@pytest.mark.parametrize(("op", "name", "damage"), broken_calls(), ids=str)
def test_as_on_the_cpu(backend: Backend, op: str, name: str, damage: str) -> None:
    arguments = dict(CALLS[op])
    if damage == "value":
        arguments[name] = VALUES[name]
    else:
        arguments[name] = DAMAGES[damage](arguments[name])
    expected = outcome(getattr(torch.ops.perfconv, op), arguments)
    on_device = {
        key: value.to(backend.device) if isinstance(value, Tensor) else value
        for key, value in arguments.items()
    }
    found = outcome(getattr(backend.ops, op), on_device)
    if found[0] is NotImplementedError:
        pytest.skip("no CUDA kernel")
    assert found == expected


@pytest.mark.parametrize("op", CALLS)
def test_the_calls_are_valid(op: str) -> None:
    assert outcome(getattr(torch.ops.perfconv, op), CALLS[op]) == "accepted"
