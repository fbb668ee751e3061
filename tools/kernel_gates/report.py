"""The committed report, a table for each kernel file, and its comparison with what compiles now."""

import re
from itertools import groupby

from kernel_gates.compiled import Kernel
from kernel_gates.occupancy import LIMITS, WARP, resident_blocks

REGISTERS_MAY_GROW_BY = 8
UNBOUNDED_THREADS = 1024

HEAD = """# Kernel report

Written by `make kernels-report` (nvcc {nvcc}); `make kernels-check` compares it with what compiles.
A cell is, for one architecture, *registers of a thread / warps that a multiprocessor holds*.
Threads are those of a block at most, shared memory is what the kernel declares; `+ dynamic`: its
launcher asks for more, so that it holds as many warps as stated or fewer. No kernel spills or has a
stack. Limits of the architectures: `tools/kernel_gates/occupancy.py`.
"""
ROW = re.compile(r"^\| `(?P<name>.+)` \| \d+ \| (?P<shared>[^|]+) \|(?P<cells>.*)\|$")


def resident_warps(kernel: Kernel) -> int:
    threads = kernel.threads or UNBOUNDED_THREADS
    blocks = resident_blocks(kernel.arch, kernel.registers, threads, kernel.static_shared)
    return blocks * -(-threads // WARP)


def row(kernels: list[Kernel], archs: list[str]) -> str:
    """One kernel on every architecture."""
    first = kernels[0]
    by_arch = {kernel.arch: kernel for kernel in kernels}
    cells = (
        f"{by_arch[arch].registers} / {resident_warps(by_arch[arch])}" if arch in by_arch else ""
        for arch in archs
    )
    shared = f"{max(kernel.static_shared for kernel in kernels)}"
    shared += " + dynamic" if first.has_dynamic_shared else ""
    return f"| `{first.name}` | {first.threads} | {shared} | {' | '.join(cells)} |"


def write(kernels: list[Kernel], nvcc_version: str) -> str:
    archs = [arch for arch in LIMITS if any(kernel.arch == arch for kernel in kernels)]
    lines = [HEAD.format(nvcc=nvcc_version)]
    ordered = sorted(kernels, key=lambda kernel: (kernel.file, kernel.name))
    for file, of_file in groupby(ordered, key=lambda kernel: kernel.file):
        lines.append(f"## {file}\n")
        lines.append(f"| kernel | threads | shared bytes | {' | '.join(archs)} |")
        lines.append("|---|---|---|" + "---|" * len(archs))
        for _, same in groupby(of_file, key=lambda kernel: kernel.name):
            lines.append(row(list(same), archs))
        lines.append("")
    return "\n".join(lines)


def read(text: str) -> dict[tuple[str, str, str], tuple[int, str]]:
    """Registers and shared memory by (file, kernel, architecture)."""
    found = {}
    file, archs = "", []
    for line in text.splitlines():
        if line.startswith("## "):
            file = line.removeprefix("## ")
        elif line.startswith("| kernel "):
            archs = line.strip("| ").split(" | ")[3:]
        elif match := ROW.match(line):
            for arch, cell in zip(archs, match["cells"].split("|"), strict=True):
                if cell.strip():
                    registers = int(cell.split("/")[0])
                    found[file, match["name"], arch] = registers, match["shared"]
    return found


def differences(text: str, kernels: list[Kernel], nvcc_version: str) -> list[str]:
    """How the report is out of date: kernels, shared memory, or more registers than it says."""
    reported, current = read(text), read(write(kernels, nvcc_version))
    problems = [
        f"{' '.join(key)}: in the report, but not compiled"
        for key in reported.keys() - current.keys()
    ]
    for key, (registers, shared) in current.items():
        place = " ".join(key)
        if key not in reported:
            problems.append(f"{place}: not in the report")
            continue
        was, shared_was = reported[key]
        if registers > was + REGISTERS_MAY_GROW_BY:
            problems.append(f"{place}: {registers} registers, {was} in the report")
        if shared != shared_was:
            problems.append(f"{place}: {shared} bytes of shared memory, {shared_was} in the report")
    return problems
