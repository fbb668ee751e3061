"""Compiles every CUDA kernel for every shipped architecture and judges what comes out, GPU or not.

    python tools/kernels_check.py            check, and compare with the committed report
    python tools/kernels_check.py --report   check, and write the report

Fails for: a compiler warning; a spill, a stack frame; a kernel without launch bounds; a remark of
ptxas, such as that it serialized wgmma; an instruction that a rule forbids, or lacks; a report that
is out of date. Results are kept in build/kernels-check, by the hash of what they depend on.
"""

import argparse
import os
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from kernel_gates import report
from kernel_gates.compiled import (
    ROOT,
    CheckError,
    Kernel,
    Result,
    compile_all,
    nvcc_version,
    shipped_archs,
)
from kernel_gates.rules import RULES, Rule, broken_rules

REPORT = ROOT / "docs" / "kernel-report.md"


def broken_limits(result: Result) -> list[str]:
    """Spills, stack, absent launch bounds, and remarks of ptxas."""
    problems = [f"ptxas: {note}" for note in result.notes]
    for kernel in result.kernels:
        place = f"{kernel.file}, {kernel.name}, sm_{kernel.arch}"
        if kernel.spills:
            problems.append(f"{place}: {kernel.spills} bytes spilled")
        if kernel.stack:
            problems.append(f"{place}: {kernel.stack} bytes of stack")
        if kernel.threads is None:
            problems.append(f"{place}: no __launch_bounds__")
    return problems


def judge(results: list[Result], rules: tuple[Rule, ...] = RULES) -> tuple[list[Kernel], list[str]]:
    """All kernels, and what is wrong with them."""
    kernels = [kernel for result in results for kernel in result.kernels]
    problems = [problem for result in results for problem in broken_limits(result)]
    return kernels, problems + broken_rules(kernels, rules)


def merged(problems: list[str]) -> list[str]:
    """The same problem on several architectures as one line."""
    archs: dict[tuple[str, str], list[str]] = {}
    for problem in problems:
        match = re.fullmatch(r"(.*), (sm_\w+): (.*)", problem, re.DOTALL)
        place = (match[1], match[3]) if match else (problem, "")
        archs.setdefault(place, []).extend([match[2]] if match else [])
    return [
        f"{place}, {' '.join(found)}: {text}" if found else place
        for (place, text), found in archs.items()
    ]


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="write the report")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time")
    parser.add_argument("--archs", nargs="+", default=None, help="default: all that are shipped")
    parser.add_argument("--filter", default="", help="only kernel files whose name contains this")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse(argv)
    begin = time.monotonic()
    include = ROOT / "csrc"
    sources = [
        path
        for path in (include / "cuda" / "kernels").glob("*.cu")
        if arguments.filter in path.name
    ]
    is_whole = not arguments.archs and not arguments.filter
    try:
        archs = arguments.archs or shipped_archs()
        folder = ROOT / "build" / "kernels-check"
        results = compile_all(sources, include, archs, folder, arguments.jobs)
    except CheckError as error:
        print(f"kernels-check: {error}", file=sys.stderr)
        return 1
    kernels, problems = judge(results)
    if not is_whole:
        problems = [problem for problem in problems if not problem.startswith("no kernel fits")]
        print(report.write(kernels, nvcc_version()))
    elif arguments.report:
        REPORT.write_text(report.write(kernels, nvcc_version()))
    else:
        text = REPORT.read_text() if REPORT.exists() else ""
        outdated = report.differences(text, kernels, nvcc_version())
        problems += [f"{line} (make kernels-report, and say why)" for line in outdated]
    problems = merged(problems)
    print("\n".join(problems), end="\n" if problems else "")
    verdict = f"FAIL: {len(problems)} problems" if problems else "OK"
    print(
        f"{verdict}: {len(kernels)} kernels of {len(sources)} files for {' '.join(archs)}, "
        f"nvcc {nvcc_version()}, {time.monotonic() - begin:.0f} s"
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
