"""Where the tests of the CUDA operators run them: on a GPU, or its kernels on the CPU emulator.

Both have the same operators, ``backend.ops``, for tensors on ``backend.device``. The emulated ones
are the product's own host code and kernels, linked against the runtime in tests/emulator.
"""

import ctypes
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Problem, expected, relayout
from torch import Tensor

EMULATED_LIBRARY = Path(__file__).parents[1] / "build" / "emulated" / "libperfconv_emulated.so"


class Emulator:
    """The test-side functions of tests/emulator/emulator_api.h."""

    def __init__(self, path: Path = EMULATED_LIBRARY) -> None:
        torch.ops.load_library(str(path))
        self.library = ctypes.CDLL(str(path))
        for name in ("last_error", "log", "report", "launched", "kernels", "places"):
            getattr(self.library, f"emu_{name}").restype = ctypes.c_char_p
        self.library.emu_set.argtypes = [ctypes.c_char_p, ctypes.c_long]
        self.library.emu_mutate.argtypes = [ctypes.c_char_p]
        self.library.emu_count.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
        self.library.emu_places.argtypes = [ctypes.c_char_p, ctypes.c_char_p]

    def set(self, **options: int) -> None:
        """race, bounds, seed, sms, occupancy, resident, async, max_spins."""
        for name, value in options.items():
            assert self.library.emu_set(name.encode(), value) == 0, name

    def mutate(self, spec: str = "") -> None:
        """Applies a mutation to the PTX of the product from now on; none for an empty text."""
        self.library.emu_mutate(spec.encode())

    def count(self, opcode: str, kernel: str = "") -> int:
        return self.library.emu_count(opcode.encode(), kernel.encode())

    def places(self, pattern: str, kernel: str) -> list[tuple[int, int, str]]:
        """What count() counts: runs, times the guard held a lane back, and source line and opcode.

        Runs are counted while set(profile=1) holds.
        """
        text = self.library.emu_places(pattern.encode(), kernel.encode()).decode()
        fields = [line.split(maxsplit=2) for line in text.splitlines()]
        return [(int(runs), int(held), where) for runs, held, where in fields]

    def text(self, name: str) -> str:
        """What emu_<name>() says: last_error, log, report, launched, kernels."""
        return getattr(self.library, f"emu_{name}")().decode()


@dataclass
class Backend:
    """One way to run the CUDA operators."""

    name: str  # "emulated" or "cuda"
    ops: Any  # torch.ops.perfconv, or its emulated twin
    device: torch.device
    emulator: Emulator | None = field(default=None)

    def to(self, *values: Tensor | None) -> list[Tensor | None]:
        return [value if value is None else value.to(self.device) for value in values]

    def forward(
        self,
        problem: Problem,
        dtype: torch.dtype,
        algorithm: str,
        layout: str = "channels_last",
        tensors: dict | None = None,
        **options: object,
    ) -> Tensor:
        """The convolution of a problem (of other tensors, if given), back on the CPU."""
        tensors = expected(problem, dtype, False)[0] if tensors is None else tensors
        input, weight, base, residual = self.to(
            *(relayout(tensors[name], layout) for name in ("input", "weight", "base", "residual"))
        )
        mask, bias = self.to(tensors["mask"], tensors["bias"])
        result = self.ops.perforated_conv2d(
            input,
            weight,
            mask,
            bias,
            base,
            residual,
            **native_geometry(problem),
            fill=problem.fill,
            activation=problem.activation or "none",
            activate_base=problem.activate_base,
            algorithm=algorithm,
            **options,
        )
        return result.cpu()

    def dgrad(
        self, problem: Problem, dtype: torch.dtype, algorithm: str, layout: str = "channels_last",
        **options: object,
    ) -> Tensor:  # fmt: skip
        """The gradient of the input, for a problem without activation and with zero fill."""
        tensors = expected(problem, dtype, False)[0]
        grad, weight = self.to(
            *(relayout(tensors[name], layout) for name in ("grad_output", "weight"))
        )
        (mask,) = self.to(tensors["mask"])
        result = self.ops.perforated_conv2d_dgrad(
            grad, weight, mask, None, None, list(problem.size), layout == "channels_last",
            **native_geometry(problem), algorithm=algorithm, **options,
        )  # fmt: skip
        return result.cpu()

    def wgrad(
        self, problem: Problem, dtype: torch.dtype, algorithm: str, layout: str = "channels_last",
        **options: object,
    ) -> Tensor:  # fmt: skip
        """The gradient of the weight, for a problem without activation and with zero fill."""
        tensors = expected(problem, dtype, False)[0]
        grad, input = self.to(
            *(relayout(tensors[name], layout) for name in ("grad_output", "input"))
        )
        (mask,) = self.to(tensors["mask"])
        result = self.ops.perforated_conv2d_wgrad(
            grad, input, mask, None, None, list(problem.kernel),
            **native_geometry(problem), algorithm=algorithm, **options,
        )  # fmt: skip
        return result.cpu()


def native_geometry(problem: Problem) -> dict:
    """Stride, padding, dilation and groups as the operators take them."""
    assert not isinstance(problem.padding, str)
    vertical, horizontal = problem.padding
    return {
        "stride": list(problem.stride),
        "padding": [vertical, vertical, horizontal, horizontal],
        "dilation": list(problem.dilation),
        "groups": problem.groups,
    }


def open_backend(name: str) -> Backend:
    """A backend, or a skip that says why; a failure where the environment demands this backend."""
    if name == "emulated":
        if not EMULATED_LIBRARY.exists():
            refuse(
                "PERFCONV_REQUIRE_EMULATOR",
                "the emulated library is not built (no nvcc when perfconv was built)",
            )
        emulator = Emulator()
        return Backend(name, torch.ops.perfconv_emulated, torch.device("cpu"), emulator)
    if not torch.cuda.is_available():
        refuse("PERFCONV_REQUIRE_CUDA", "no GPU")
    return Backend(name, torch.ops.perfconv, torch.device("cuda"))


def refuse(variable: str, reason: str) -> None:
    if os.environ.get(variable) == "1":
        pytest.fail(f"{reason}, and {variable}=1")
    pytest.skip(reason)
