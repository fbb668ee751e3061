"""Blocks of a kernel that a multiprocessor holds at a time, from registers, threads, shared memory.

Limits: CUDA C++ Programming Guide 13.0, "Technical Specifications per Compute Capability"; units of
allocation: cuda_occupancy.h of the toolkit (registers of a warp in units of 256, a quarter of the
register file for each of four schedulers; shared memory in units of 128 bytes, 1 KiB more for each
block).
"""

from dataclasses import dataclass

WARP = 32
REGISTERS = 64 * 1024
REGISTER_UNIT = 256
SCHEDULERS = 4
SHARED_UNIT = 128
SHARED_RESERVED = 1024


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor."""

    threads: int
    blocks: int
    shared_kib: int


LIMITS = {
    "80": Limits(threads=2048, blocks=32, shared_kib=164),
    "86": Limits(threads=1536, blocks=16, shared_kib=100),
    "89": Limits(threads=1536, blocks=24, shared_kib=100),
    "90a": Limits(threads=2048, blocks=32, shared_kib=228),
    "100": Limits(threads=2048, blocks=32, shared_kib=228),
    "120": Limits(threads=1536, blocks=24, shared_kib=100),
}


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def resident_blocks(arch: str, registers: int, threads: int, shared: int) -> int:
    """Blocks of ``threads`` threads with ``shared`` bytes that fit one multiprocessor."""
    limits = LIMITS[arch]
    warps = -(-threads // WARP)
    of_warp = round_up(max(registers, 1) * WARP, REGISTER_UNIT)
    warps_by_registers = REGISTERS // SCHEDULERS // of_warp * SCHEDULERS
    of_block = round_up(shared, SHARED_UNIT) + SHARED_RESERVED
    return min(
        limits.blocks,
        limits.threads // (warps * WARP),
        warps_by_registers // warps,
        limits.shared_kib * 1024 // of_block,
    )
