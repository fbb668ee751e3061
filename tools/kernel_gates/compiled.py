"""Compiles the kernel files for every architecture and reads what the compiler and ptxas say.

As in the build, architectures share their PTX. A file and a PTX version make one job: nvcc compiles
to PTX (launch bounds, dynamic shared memory); then for each architecture PTX becomes a cubin
(registers, stack, spills, static shared memory; then the instructions, from nvdisasm). A job's
result is kept under the hash of everything it depends on.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Werror", "all-warnings")
HOST_WARNINGS = "-Xcompiler=-Wall,-Wextra,-Wshadow,-Werror,-fPIC"
INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


class CheckError(Exception):
    """Something is missing or does not compile; the text says what to do."""


@dataclass
class Kernel:
    """One kernel as ptxas made it for one architecture. Memory in bytes."""

    file: str
    arch: str
    name: str  # without namespaces and arguments
    registers: int
    stack: int
    spills: int
    static_shared: int
    threads: int | None  # of a block at most; None without launch bounds
    has_dynamic_shared: bool
    opcodes: dict[str, int] = field(default_factory=dict)


@dataclass
class Result:
    """What one job gave."""

    kernels: list[Kernel]
    notes: list[str]  # what ptxas remarks about serialized wgmma and the like


def shipped_archs() -> list[str]:
    """The default architectures of the build, such as 80 and 90a."""
    text = (ROOT / "build_support/cmake/PerfconvCuda.cmake").read_text()
    listed = re.search(r"set\(PERFCONV_CUDA_ARCHS ((?:\d+[af]?(?:-real)? ?)+)\)", text)
    if listed is None:
        raise CheckError("PerfconvCuda.cmake no longer lists the default architectures as expected")
    return [arch.removesuffix("-real") for arch in listed[1].split()]


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise CheckError(f"no {name} found: put it on PATH")
    return found


@cache
def nvcc() -> str:
    folders = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    places = [Path(folder, "bin/nvcc") for folder in (*folders, "/usr/local/cuda") if folder]
    found = next((str(place) for place in places if place.is_file()), None)
    return shutil.which("nvcc") or found or program("nvcc")


@cache
def nvdisasm() -> str:
    """From the Python package nvidia-cuda-nvdisasm (the dev extra), else on PATH."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for path in sorted(Path(folder).glob("cu*/bin/nvdisasm")):
            return str(path)
    return shutil.which("nvdisasm") or program("nvdisasm (pip install nvidia-cuda-nvdisasm)")


def run(command: list[str]) -> str:
    """Standard output and error together."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        raise CheckError(f"{' '.join(command)}\n{result.stdout}")
    return result.stdout


@cache
def versions() -> str:
    return run([nvcc(), "--version"]) + run([nvdisasm(), "--version"])


def nvcc_version() -> str:
    found = re.search(r"V(\d+\.\d+\.\d+)", versions())
    return found[1] if found else "unknown"


# ---- reading -------------------------------------------------------------------------------------

ENTRY = re.compile(r"\.entry\s+(\w+)\s*\((.*?)(?=\.entry\s|\Z)", re.DOTALL)
MAX_THREADS = re.compile(r"\.maxntid\s+(\d+)(?:\s*,\s*(\d+)\s*,\s*(\d+))?")
DYNAMIC_SHARED = re.compile(r"^\.extern\s+\.shared\s.*?(\w+)\[\];", re.MULTILINE)
PROPERTIES = re.compile(
    r"Function properties for (\w+)\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
    r"(\d+) bytes spill loads\s+ptxas info\s*: Used (\d+) registers(.*)"
)
STATIC_SHARED = re.compile(r"(\d+) bytes smem")
EXPECTED_LINES = re.compile(
    r"Compiling entry function|Function properties for|bytes stack frame|Used \d+ registers"
    r"|bytes gmem|Compile time|^\s*$"
)
SECTION = re.compile(r"^\.text\.(\w+):", re.MULTILINE)
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.a-z]*)", re.M)


def plain_names(mangled: Iterable[str]) -> dict[str, str]:
    """Mangled names and what a reader calls them: no namespaces, no return type, no arguments."""
    names = list(mangled)
    lines = run([program("c++filt"), *names]).splitlines() if names else []
    return {name: plain_name(line) for name, line in zip(names, lines, strict=True)}


def plain_name(demangled: str) -> str:
    text = demangled.replace("(anonymous namespace)::", "").replace("perfconv::cuda::", "")
    text = text.removeprefix("void ")
    depth = 0
    for place, letter in enumerate(text):  # cut at the arguments: the first "(" outside of < >
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return re.sub(r"\((?:int|bool|long|unsigned int|[\w:]+)\)", "", text[:place])
    return text


def launch_bounds(ptx: str) -> dict[str, tuple[int | None, bool]]:
    """Threads of a block at most, and whether dynamic shared memory is used, by mangled name."""
    dynamic = DYNAMIC_SHARED.findall(ptx)
    found = {}
    for name, body in ENTRY.findall(ptx):
        bound = MAX_THREADS.search(body)
        sizes = [int(size) for size in bound.groups() if size] if bound else []
        threads = sizes[0] * (sizes[1] * sizes[2] if len(sizes) == 3 else 1) if sizes else None
        found[name] = threads, any(re.search(rf"\b{symbol}\b", body) for symbol in dynamic)
    return found


def opcode_counts(disassembly: str) -> dict[str, dict[str, int]]:
    """Instructions with their suffixes (LDGSTS.E.BYPASS.128) by mangled kernel name."""
    parts = SECTION.split(disassembly)
    return {
        name: dict(sorted(Counter(INSTRUCTION.findall(body)).items()))
        for name, body in zip(parts[1::2], parts[2::2], strict=True)
    }


def read_kernels(file: str, arch: str, ptx: str, log: str, disassembly: str) -> Result:
    bounds, opcodes = launch_bounds(ptx), opcode_counts(disassembly)
    properties = PROPERTIES.findall(log)
    names = plain_names(row[0] for row in properties)
    kernels = []
    for mangled, stack, stores, loads, registers, rest in properties:
        threads, has_dynamic_shared = bounds[mangled]
        static_shared = STATIC_SHARED.search(rest)
        kernels.append(
            Kernel(
                file=file,
                arch=arch,
                name=names[mangled],
                registers=int(registers),
                stack=int(stack),
                spills=int(stores) + int(loads),
                static_shared=int(static_shared[1]) if static_shared else 0,
                threads=threads,
                has_dynamic_shared=has_dynamic_shared,
                opcodes=opcodes[mangled],
            )
        )
    if len(kernels) != len(bounds):
        raise CheckError(f"{file}, {arch}: {len(bounds)} kernels in the PTX, ptxas: {log}")
    notes = [line for line in log.splitlines() if not EXPECTED_LINES.search(line)]
    return Result(sorted(kernels, key=lambda kernel: kernel.name), notes)


# ---- jobs ----------------------------------------------------------------------------------------


def sources_of(source: Path, include: Path) -> list[Path]:
    """The file and every header of the include folder that it reaches."""
    seen: dict[Path, None] = {}
    todo = [source]
    while todo:
        path = todo.pop()
        if path in seen or not path.exists():
            continue
        seen[path] = None
        todo += [include / name for name in INCLUDE.findall(path.read_text())]
    return sorted(seen)


def ptx_version(arch: str) -> str:
    """What PerfconvCuda.cmake compiles an architecture from."""
    if not arch.isdigit():
        return arch
    return "80" if int(arch) < 100 else "100"


def archs_of(source: Path, archs: Sequence[str]) -> list[str]:
    """The architectures that a file is built for: all of them, or what its name ends in."""
    only = re.search(r"_sm(\d+a)$", source.stem)
    return [arch for arch in archs if only is None or arch == only[1]]


def job_hash(source: Path, include: Path, archs: Sequence[str]) -> str:
    parts = [path.read_bytes() for path in sources_of(source, include)]
    parts += [Path(__file__).read_bytes(), versions().encode(), " ".join(archs).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def compile_ptx(source: Path, include: Path, version: str, folder: Path, with_host: bool) -> Path:
    """The PTX of a file; with_host: its launchers are compiled too, with the host's warnings."""
    common = [nvcc(), *FLAGS, f"-I{include}", str(source), f"-arch=compute_{version}"]
    kept = folder / f"{source.stem}-{version}"
    kept.mkdir(exist_ok=True)
    ptx = kept / f"{source.stem}.ptx"
    if with_host:
        keep = [f"-code=compute_{version}", "--keep", "--keep-dir", str(kept)]
        run([*common, *keep, HOST_WARNINGS, "-c", "-o", os.devnull])
    else:
        run([*common, "-ptx", "-o", str(ptx)])
    return ptx


def compile_job(
    source: Path, include: Path, archs: list[str], folder: Path, with_host: bool
) -> list[Result]:
    """One file for architectures of the same PTX, a result each."""
    stem = f"{source.stem}-{ptx_version(archs[0])}"
    kept = folder / f"{stem}-{job_hash(source, include, archs)}.json"
    if kept.exists():
        found = json.loads(kept.read_text())
        return [Result([Kernel(**row) for row in one["kernels"]], one["notes"]) for one in found]
    ptx = compile_ptx(source, include, ptx_version(archs[0]), folder, with_host)
    results = []
    for arch in archs:
        cubin = ptx.with_name(f"{arch}.cubin")
        real = [f"-arch=sm_{arch}", "-Xptxas", "-v", "-o", str(cubin)]
        log = run([nvcc(), "-cubin", str(ptx), *real])
        disassembly = run([nvdisasm(), "-c", str(cubin)])
        results.append(read_kernels(source.name, arch, ptx.read_text(), log, disassembly))
    shutil.rmtree(ptx.parent)
    for old in folder.glob(f"{stem}-{'?' * 20}.json"):
        old.unlink()
    kept.write_text(json.dumps([asdict(result) for result in results]))
    return results


def compile_all(
    sources: list[Path], include: Path, archs: list[str], folder: Path, jobs: int
) -> list[Result]:
    """Every file for every architecture, in a stable order; its launchers once."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        started = []
        for source in sorted(sources):
            groups: dict[str, list[str]] = {}
            for arch in archs_of(source, archs):
                groups.setdefault(ptx_version(arch), []).append(arch)
            for place, group in enumerate(groups.values()):
                with_host = place == 0
                started.append(pool.submit(compile_job, source, include, group, folder, with_host))
        try:
            return [result for job in started for result in job.result()]
        except CheckError:
            pool.shutdown(cancel_futures=True)
            raise
