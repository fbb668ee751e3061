"""Faults planted in the product's kernels are noticed: by the emulator's report, or by wrong bits.

Each kernel is damaged where a call of planted_faults.py went: every barrier, wait and commit is
left out once, and a sample of other instructions is dropped, shifted, swapped or unguarded.
"""

from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
from cuda_backend import Backend, open_backend
from planted_faults import CALLS, OTHER_WAYS, Fault, faults, kernel_of, summary, template_of
from torch import Tensor

pytestmark = pytest.mark.emulated

LEAST_FAULTS = 3  # of a kernel
WANTED_SHARE = 0.95  # caught, of those that are not equivalent
SETTINGS = (
    {"seed": 1, "sms": 2, "occupancy": 1},
    {"seed": 2, "sms": 1, "occupancy": 1},
    {"seed": 3, "sms": 3, "occupancy": 2},
)

DEVICE = Path(__file__).parents[2] / "csrc" / "cuda" / "device"


def place_of(name: str, text: str) -> str:
    """How the emulator names the only line of a header that holds a text."""
    lines = (DEVICE / name).read_text().splitlines()
    (number,) = (number for number, line in enumerate(lines, 1) if text in line)
    return f"inlined at {name}:{number},"


# (kind, part of the place): why the damaged kernel is as good as the sound one.
EQUIVALENT = {
    (kind, place): "every copy was waited for in the loop: the groups still open are empty"
    for kind in ("drop cp.async.wait_group", "wait + 1")
    for place in (
        place_of("implicit_gemm.cuh", "ptx::wait_copies<0>();"),
        place_of("wgrad_gemm.cuh", "ptx::wait_copies<0>();"),
    )
}

EQUIVALENT |= {
    ("drop barrier.cluster", place_of("wgmma_gemm.cuh", line)): (
        "the other warpgroups wait as well: the block does not exit"
    )
    for line in ("ptx::sync_cluster();  // and have been read", "// parts read: blocks may exit")
}
# Faults that are equivalent in one call only.
EQUIVALENT_IN = {
    "wgmma cluster": {
        (
            "drop mbarrier.init",
            place_of("wgmma_gemm.cuh", "start_barrier(ptx::shared_address(&shared.table_full"),
        ): "one tile needs one table",
        (
            "drop mbarrier.init",
            place_of("wgmma_gemm.cuh", "start_barrier(ptx::shared_address(&shared.table_empty"),
        ): "one tile needs one table",
        (
            "drop mbarrier.arrive",
            place_of("wgmma_pipeline.cuh", "if (steps > 0 && is_first_lane)"),
        ): "no stage is filled again after the last step of the only tile",
    }
}

planted: Counter[str] = Counter()  # by kernel
caught: Counter[str] = Counter()
survivors: list[str] = []


@cache
def backend() -> Backend:
    return open_backend("emulated")


def launched() -> Counter[str]:
    assert backend().emulator is not None
    lines = backend().emulator.text("launched").splitlines()
    return Counter({line.split()[0]: int(line.split()[1]) for line in lines})


@cache
def kernels_of_calls() -> dict[str, list[str]]:
    """The kernels, as mangled names, that each call is the first to launch, or another way."""
    seen: set[str] = set()
    result: dict[str, list[str]] = {}
    for name, call in CALLS.items():
        before = launched()
        call(backend())
        new = {kernel_of(kernel): kernel for kernel in launched() - before}
        again = OTHER_WAYS.get(name)
        result[name] = [
            kernel for kind, kernel in new.items() if kind not in seen or (again and again in kind)
        ]
        seen |= new.keys()
    return result


def bits(results: list[Tensor]) -> list[Tensor]:
    return [value.contiguous().reshape(-1).view(torch.uint8) for value in results]


def is_caught(fault: Fault, name: str, sound: list[list[Tensor]]) -> bool:
    emulator = backend().emulator
    assert emulator is not None
    for setting, expected in zip(SETTINGS, sound, strict=True):
        emulator.set(**setting)
        emulator.mutate(fault.spec)
        try:
            found = bits(CALLS[name](backend()))
        except RuntimeError:  # the emulator's report
            return True
        finally:
            emulator.mutate("")
        if not all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)):
            return True
    return False


def is_equivalent(fault: Fault, name: str) -> bool:
    known = [*EQUIVALENT, *EQUIVALENT_IN.get(name, {})]
    return any(fault.kind == kind and place in fault.where for kind, place in known)


@pytest.mark.parametrize("name", CALLS)
def test_faults_are_caught(name: str) -> None:
    emulator = backend().emulator
    assert emulator is not None
    kernels = kernels_of_calls()[name]
    if not kernels:
        pytest.skip("every kernel of this call belongs to an earlier one")
    emulator.set(race=1, bounds=1, resident=2, max_instructions=2_000_000, max_spins=20_000)
    sound = []
    for setting in SETTINGS:
        emulator.set(**setting)
        sound.append(bits(CALLS[name](backend())))
    emulator.set(**SETTINGS[0], profile=1)
    CALLS[name](backend())
    found = [fault for kernel in kernels for fault in faults(emulator, kernel, 1)]
    emulator.set(profile=0)
    for fault in found:
        kernel = kernel_of(fault.kernel)
        is_known = is_equivalent(fault, name)
        if is_caught(fault, name, sound):
            planted[kernel] += 1
            caught[kernel] += 1
        elif not is_known:
            planted[kernel] += 1
            survivors.append(f"{kernel}: {fault.kind} at {fault.where}")


def test_enough_of_all_faults() -> None:
    """After the others: at least three a kernel, and the share that is caught."""
    if not planted:
        pytest.skip("no faults were planted in this run")
    few = [kernel for kernel, count in planted.items() if count < LEAST_FAULTS]
    share = sum(caught.values()) / sum(planted.values())
    head = f"{sum(planted.values())} faults in {len(planted)} kernels, {100 * share:.1f} % caught"
    summary.extend([f"{head}; survivors:", *survivors])
    assert not few, f"fewer than {LEAST_FAULTS} faults in {few}"
    assert share >= WANTED_SHARE, "\n".join(summary)


def test_every_kernel_has_a_call() -> None:
    kernels_of_calls()
    emulator = backend().emulator
    assert emulator is not None
    there = {template_of(line.split()[0]) for line in emulator.text("kernels").splitlines()}
    ran = {template_of(kernel) for kernel in launched()}
    assert there == ran, f"give these a call in planted_faults.py: {sorted(there - ran)}"
