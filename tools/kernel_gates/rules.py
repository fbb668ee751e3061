"""Which instructions a kernel must have and must not have: the table, and the check.

Patterns match the beginning of an opcode of the disassembly, suffixes included
(LDGSTS.E.BYPASS.128). A kernel takes the first rule that fits its file and name; one without a
rule is an error, and so is a rule without a kernel.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from kernel_gates.compiled import Kernel

# In no kernel: memory of a thread (spills, arrays that did not stay in registers), and atomics on
# floating-point numbers (their order, and so the result, changes from run to run).
NOWHERE = (r"LDL", r"STL", r"(RED|ATOM)[GS]?\..*(BF16|F16|F32|F64)")
ATOMICS = r"(RED|ATOM)[GS]?\."


@dataclass(frozen=True)
class Rule:
    """For kernels whose file and name fit the two patterns (of the shell)."""

    file: str
    kernel: str
    needs: tuple[str, ...]
    forbids: tuple[str, ...]
    reason: str


# Multiplications of the readable kernels: in float32, as exact as the dtype allows.
EXACT = (r"FFMA",), (r"[HI]MMA", r"DFMA")
DOUBLE = (r"DFMA",), (r"[HI]MMA",)
# The implicit GEMM: gathered rows arrive by cp.async in 16-byte pieces.
TENSOR_CORES = (r"HMMA", r"LDSM", r"LDGSTS\.E.*\.128", r"BAR", r"STG\.E\.128"), (ATOMICS, "DFMA")
# The same on sm_90a: warpgroups multiply, barriers in shared memory order them (SYNCS), registers
# move between them (USETMAXREG).
WGMMA = (
    (r"HGMMA", r"LDGSTS\.E.*\.128", r"ARRIVES", "SYNCS", "USETMAXREG", r"STG\.E\.128"),
    (ATOMICS, "HMMA", "DFMA"),
)
# With a pack, the weights by bulk copies.
WGMMA_PACKED = ((*WGMMA[0], "UBLKCP"), WGMMA[1])
# Tiles up to 128 columns wide may be split over a cluster of blocks (UCGABAR: its barrier).
CLUSTER = ("UCGABAR_ARV", "UCGABAR_WAIT")
WGMMA_CLUSTER = ((*WGMMA[0], *CLUSTER), WGMMA[1])
WGMMA_PACKED_CLUSTER = ((*WGMMA_PACKED[0], *CLUSTER), WGMMA_PACKED[1])
WGMMA_WGRAD = (
    (r"HGMMA", r"LDGSTS\.E.*\.128", r"ARRIVES", "SYNCS", "USETMAXREG"),
    (ATOMICS, "HMMA", "DFMA"),
)
SIMT = (r"FFMA", r"LDGSTS\.E.*\.128", r"BAR", r"STG\.E\.128"), (ATOMICS, r"[HI]MMA", "DFMA")

# The weight gradient: copies as the implicit GEMM; sums go to the workspace.
WGRAD_TENSOR_CORES = (r"HMMA", r"LDGSTS\.E.*\.128", r"BAR"), (ATOMICS, "DFMA")
WGRAD_SIMT = (r"FFMA", r"LDGSTS\.E.*\.128", r"BAR"), (ATOMICS, r"[HI]MMA", "DFMA")

RULES = (
    Rule("*_implicit.cu", "implicit_gemm_kernel<GemmTile<float, 1,*", *SIMT, "float32 as it is"),
    Rule("*_implicit.cu", "implicit_gemm_kernel*", *TENSOR_CORES, "tensor cores"),
    Rule("dgrad_*_sm90a.cu", "wgmma_gemm_kernel<*, 256, *", *WGMMA, "tensor cores, by warpgroups"),
    Rule("dgrad_*_sm90a.cu", "wgmma_gemm_kernel*", *WGMMA_CLUSTER, "the same, and clusters"),
    Rule("*_sm90a.cu", "wgmma_gemm_kernel<WgmmaTile<float*", *WGMMA, "tf32, by warpgroups"),
    Rule("*_sm90a.cu", "wgmma_gemm_kernel<*, 256, *", *WGMMA_PACKED, "packed weights"),
    Rule("*_sm90a.cu", "wgmma_gemm_kernel*", *WGMMA_PACKED_CLUSTER, "the same, and clusters"),
    Rule(
        "pack_weight_sm90a.cu",
        "*",
        (r"LDG\.E\.128", r"STG\.E\.128"),
        (ATOMICS,),
        "16 bytes at a time",
    ),
    Rule("*_sm90a.cu", "wgmma_wgrad_kernel*", *WGMMA_WGRAD, "tensor cores, by warpgroups"),
    Rule("*_sm90a.cu", "round_weight_kernel*", (r"STG\.E\.128",), (ATOMICS,), "16 bytes at a time"),
    Rule("*_sm90a.cu", "finish_kernel*", (r"STG\.E\.128",), (ATOMICS,), "parts in one order"),
    Rule("*_implicit.cu", "finish_kernel*", (r"STG\.E\.128",), (ATOMICS,), "parts in one order"),
    Rule(
        "forward_depthwise.cu",
        "*",
        ("FFMA", r"LDG\.E\.128", r"STG\.E\.128"),
        (ATOMICS, "HMMA"),
        "16 bytes at a time",
    ),
    Rule(
        "forward_few_channels.cu",
        "*",
        ("FFMA", r"LDS\.128", "BAR"),
        (ATOMICS, "HMMA"),
        "float32 products of shared tiles",
    ),
    Rule("blend_dense.cu", "blend_active_kernel<*, 1>", (), (ATOMICS,), "element by element"),
    Rule("blend_dense.cu", "*", (r"STG\.E\.128",), (ATOMICS,), "16 bytes at a time"),
    Rule("active_sum.cu", "*<double>", ("DADD",), (ATOMICS,), "sums in float64, in order"),
    Rule("active_sum.cu", "*", ("FADD",), (ATOMICS, "DADD"), "sums in float32, in order"),
    Rule("compact_mask.cu", "write_kernel*", ("BAR",), (), "image counts: atomics on integers"),
    Rule("compact_mask.cu", "*", ("BAR",), (ATOMICS,), "counts by barriers"),
    Rule("expand_mask.cu", "*", (), (ATOMICS, "BAR"), "every pixel on its own"),
    Rule("gather_pixels.cu", "*Elements*", (r"STG\.E\.128",), (ATOMICS,), "16 bytes at a time"),
    Rule("gather_pixels.cu", "*", (), (ATOMICS,), "copies"),
    Rule(
        "gate_mask.cu", "*<double*", ("DFMA", "SHFL"), (), "counts of sections: atomics on integers"
    ),
    Rule("gate_mask.cu", "*", ("FFMA", "SHFL"), ("DFMA",), "the same; sums in float32"),
    Rule("im2col.cu", "*", (), (ATOMICS, "HMMA"), "sums tap by tap"),
    Rule("row_gemm.cu", "*<double*", ("DFMA", "BAR"), (ATOMICS, "HMMA"), "sums in float64"),
    Rule("row_gemm.cu", "*", ("FFMA", "BAR"), (ATOMICS, "HMMA", "DFMA"), "exact products"),
    Rule("finish_rows.cu", "*", (), (ATOMICS, "HMMA"), "every element on its own"),
    Rule("nearest_fill.cu", "fill_kernel<*Elements*", (r"STG\.E\.128",), (), "16 bytes at a time"),
    Rule("nearest_fill.cu", "column_kernel*", ("BAR",), (ATOMICS,), "segments by a barrier"),
    Rule("nearest_fill.cu", "*", (), (ATOMICS,), "sums in one order"),
    Rule("branch_sums.cu", "*", (r"STG\.E.*(128|256)",), (ATOMICS, "HMMA"), "16 bytes or more"),
    Rule("multi_dilation_implicit.cu", "branch_key_kernel*", (), (ATOMICS,), "each pixel its own"),
    Rule("multi_dilation_direct.cu", "chosen_mask_kernel*", (), (ATOMICS,), "each pixel its own"),
    Rule("*_direct.cu", "*<double>", *DOUBLE, "sums in float64"),
    Rule("*_direct.cu", "*", *EXACT, "sums in float32"),
    Rule("counting_sort.cu", "sort_scan_kernel*", ("BAR",), (ATOMICS,), "sums by barriers"),
    Rule("counting_sort.cu", "*", ("ATOMS",), (r"(RED|ATOM)G?\.",), "counts in shared memory only"),
    Rule("tap_patterns.cu", "*", (), (ATOMICS,), "each pixel its own"),
    Rule("*", "wgrad_reduce_kernel*", ("FADD",), (ATOMICS,), "slices in order"),
    Rule("grad_depthwise.cu", "*", *EXACT, "sums in float32"),
    Rule("*_implicit.cu", "wgrad_gemm_kernel<WgradTile<float, 1,*", *WGRAD_SIMT, "float32"),
    Rule("*_implicit.cu", "wgrad_gemm_kernel*", *WGRAD_TENSOR_CORES, "tensor cores"),
)


def count(kernel: Kernel, pattern: str) -> int:
    return sum(n for opcode, n in kernel.opcodes.items() if re.match(pattern, opcode))


def rule_of(kernel: Kernel, rules: Iterable[Rule]) -> Rule | None:
    for rule in rules:
        if fnmatchcase(kernel.file, rule.file) and fnmatchcase(kernel.name, rule.kernel):
            return rule
    return None


def broken_by(kernel: Kernel, rule: Rule | None) -> list[str]:
    """What is wrong with the instructions of one kernel."""
    place = f"{kernel.file}, {kernel.name}, sm_{kernel.arch}"
    if rule is None:
        return [f"{place}: no rule in tools/kernel_gates/rules.py fits it; add one"]
    problems = [
        f"{place}: no {pattern} instruction ({rule.reason})"
        for pattern in rule.needs
        if count(kernel, pattern) == 0
    ]
    for pattern in (*NOWHERE, *rule.forbids):
        if found := count(kernel, pattern):
            problems.append(f"{place}: {found} instructions {pattern} ({rule.reason})")
    return problems


def broken_rules(kernels: list[Kernel], rules: tuple[Rule, ...] = RULES) -> list[str]:
    taken = [rule_of(kernel, rules) for kernel in kernels]
    problems = [
        problem
        for kernel, rule in zip(kernels, taken, strict=True)
        for problem in broken_by(kernel, rule)
    ]
    idle = (rule for rule in rules if rule not in taken)
    return problems + [f"no kernel fits the rule {rule.file}, {rule.kernel}" for rule in idle]
