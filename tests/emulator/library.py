"""Runs the kernels of features/ and conformance.cu by name, on the emulator."""

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from cuda_backend import Emulator
from torch import Tensor

LIBRARY = Path(__file__).parents[2] / "build" / "emulated" / "libemulator_features.so"
GAP = 1 << 16  # unregistered bytes around every tensor, so that overruns land in nothing
ALIGNMENT = 256


class KernelError(RuntimeError):
    """What the emulator reports."""


@dataclass
class In:
    """A tensor that kernels must not write."""

    tensor: Tensor


@dataclass
class Undefined:
    """A tensor whose contents no kernel may read before it has written them."""

    tensor: Tensor


class Arguments(ctypes.Structure):
    _fields_ = (
        ("pointer", ctypes.c_void_p * 8),
        ("number", ctypes.c_int * 8),
        ("stream", ctypes.c_void_p),
    )


class Staged:
    """A copy of a tensor in registered memory, with gaps before and after it."""

    def __init__(self, library: ctypes.CDLL, argument: Tensor | In | Undefined) -> None:
        self.library = library
        self.tensor = argument if isinstance(argument, Tensor) else argument.tensor
        self.is_written = not isinstance(argument, In)
        rights = 1 if isinstance(argument, In) else 2 if isinstance(argument, Undefined) else 0
        assert self.tensor.is_contiguous()
        self.bytes = self.tensor.numel() * self.tensor.element_size()
        self.memory = torch.empty(self.bytes + 2 * GAP + ALIGNMENT, dtype=torch.uint8)
        begin = self.memory.data_ptr() + GAP
        self.begin = (begin + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT
        ctypes.memmove(self.begin, self.tensor.data_ptr(), self.bytes)
        library.emu_register_range(self.begin, self.bytes, rights)

    def end(self) -> None:
        self.library.emu_unregister_range(self.begin)
        if self.is_written:
            ctypes.memmove(self.tensor.data_ptr(), self.begin, self.bytes)


class Features(Emulator):
    def __init__(self) -> None:
        super().__init__(LIBRARY)
        self.library.run_feature.argtypes = [ctypes.c_char_p, ctypes.POINTER(Arguments)]
        self.library.emu_register_range.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self.library.emu_unregister_range.argtypes = [ctypes.c_void_p]

    def reset(self) -> None:
        self.mutate("")
        self.set(
            race=1, bounds=1, registers=1, profile=0, seed=1, sms=2, occupancy=2, resident=2, cc=90
        )
        self.set(max_spins=200_000, max_instructions=100_000_000)
        self.set(**{"async": 2})

    def run(self, name: str, *arguments: Tensor | In | Undefined | int) -> None:
        """Tensors are the feature's pointers and integers its numbers, in order."""
        self.library.emu_clear()
        staged = [Staged(self.library, a) for a in arguments if not isinstance(a, int)]
        packed = Arguments()
        for place, tensor in enumerate(staged):
            packed.pointer[place] = tensor.begin
        for place, number in enumerate(a for a in arguments if isinstance(a, int)):
            packed.number[place] = number
        try:
            code = self.library.run_feature(name.encode(), ctypes.byref(packed))
        finally:
            for tensor in staged:
                tensor.end()
        message = self.text("last_error")
        if code or message:
            raise KernelError(f"{name}: error {code}: {message}")
