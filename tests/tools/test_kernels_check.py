"""The gate around the CUDA kernels notices what it is there to notice."""

import re
from dataclasses import replace
from pathlib import Path

import kernels_check
import pytest
from cuda_backend import refuse
from kernel_gates import compiled, occupancy, report
from kernel_gates.compiled import CheckError, Kernel
from kernel_gates.rules import Rule, broken_rules

PLANTED = """
__global__ void __launch_bounds__(128) add_kernel(float* sum, const float* values) {
  atomicAdd(sum, values[threadIdx.x]);
}
template <int kSize>
__global__ void __launch_bounds__(64) stack_kernel(int* out, int place) {
  int kept[kSize];
  for (int i = 0; i < kSize; ++i) kept[i] = out[i * place];
  for (int i = 0; i < kSize; ++i) out[i] = kept[(i * place) % kSize];
}
template __global__ void stack_kernel<32>(int*, int);
__global__ void unbounded_kernel(int* out) { out[threadIdx.x] = 1; }
"""
CLEAN = """
extern __shared__ int memory[];
namespace perfconv::cuda { namespace {
struct Tile {};
template <class T, int kSize, bool kFlag>
__global__ void __launch_bounds__(kSize) copy_kernel(const int* in, int* out) {
  __shared__ int kept[kSize];
  kept[threadIdx.x] = in[threadIdx.x];
  memory[threadIdx.x] = in[threadIdx.x] + 1;
  __syncthreads();
  out[threadIdx.x] = kept[threadIdx.x ^ 1] + memory[threadIdx.x ^ 2];
}
}  // namespace
void launch(int* data) { copy_kernel<Tile, 96, true><<<1, 96, 384>>>(data, data); }
}  // namespace perfconv::cuda
"""


@pytest.fixture
def compile_text(tmp_path: Path):
    """Compiles a kernel file's text for one architecture and for the host."""
    try:
        compiled.versions()
    except CheckError as error:
        refuse("PERFCONV_REQUIRE_EMULATOR", str(error))

    def run(text: str, name: str = "planted.cu") -> list[compiled.Result]:
        source = tmp_path / name
        source.write_text(text)
        return compiled.compile_all([source], tmp_path, ["80"], tmp_path / "results", 1)

    return run


def test_planted_kernels_are_found(compile_text) -> None:
    rules = (
        Rule("planted.cu", "add_kernel", ("HMMA",), (), "tensor cores"),
        Rule("planted.cu", "stack*", (), (), "any"),
        Rule("absent.cu", "*", (), (), "any"),
    )
    kernels, problems = kernels_check.judge(compile_text(PLANTED), rules)
    names = [kernel.name for kernel in kernels]
    assert names == [
        "add_kernel",
        "stack_kernel<32>",
        "unbounded_kernel",
    ]
    text = "\n".join(problems)
    assert "stack_kernel<32>, sm_80: 128 bytes of stack" in text
    assert re.search(r"stack_kernel<32>, sm_80: \d+ instructions LDL", text)
    assert "add_kernel, sm_80: no HMMA instruction (tensor cores)" in text
    assert "add_kernel, sm_80: 1 instructions (RED|ATOM)" in text
    assert "unbounded_kernel, sm_80: no __launch_bounds__" in text
    assert "unbounded_kernel, sm_80: no rule" in text
    assert "no kernel fits the rule absent.cu" in text


def test_warnings_are_errors(compile_text) -> None:
    with pytest.raises(CheckError, match="declared but never referenced"):
        compile_text("__global__ void __launch_bounds__(32) kernel() { int unused; }")


def test_what_is_read(compile_text) -> None:
    (kernel,) = [kernel for result in compile_text(CLEAN) for kernel in result.kernels]
    assert kernel.name == "copy_kernel<Tile, 96, true>"
    assert (kernel.threads, kernel.static_shared, kernel.has_dynamic_shared) == (96, 384, True)
    assert 8 <= kernel.registers <= 32
    assert kernel.opcodes["STG.E"] == 1
    assert kernels_check.broken_limits(compiled.Result([kernel], [])) == []
    (again,) = [kernel for result in compile_text(CLEAN) for kernel in result.kernels]
    assert again == kernel  # as it was kept


def test_files_of_one_architecture() -> None:
    archs = ["80", "90a", "100"]
    assert compiled.archs_of(Path("product_sm90a.cu"), archs) == ["90a"]
    assert compiled.archs_of(Path("product_sm90a.cu"), ["80"]) == []
    assert compiled.archs_of(Path("product.cu"), archs) == archs


def test_architectures_share_their_ptx(compile_text, tmp_path: Path) -> None:
    """Each is judged by its own instructions; one with a letter has PTX of its own."""
    source = tmp_path / "planted.cu"
    source.write_text(
        "__global__ void __launch_bounds__(32) kernel(int* out) { out[threadIdx.x] = 1; }"
    )
    archs = ["80", "86", "90a", "100", "120"]
    results = compiled.compile_all([source], tmp_path, archs, tmp_path / "results", 1)
    kernels = [kernel for result in results for kernel in result.kernels]
    assert sorted(kernel.arch for kernel in kernels) == sorted(archs)
    assert all(kernel.opcodes["STG.E"] == 1 for kernel in kernels)
    assert [compiled.ptx_version(arch) for arch in archs] == ["80", "80", "90a", "100", "100"]


def including_source(folder: Path) -> tuple[Path, Path]:
    """A kernel file and the header it includes."""
    header = folder / "folder" / "header.cuh"
    header.parent.mkdir()
    header.write_text("// one")
    source = folder / "kernel.cu"
    source.write_text('#include "folder/header.cuh"\n')
    return source, header


def test_headers_are_sources(tmp_path: Path) -> None:
    source, header = including_source(tmp_path)
    assert compiled.sources_of(source, tmp_path) == sorted([source, header])


@pytest.mark.usefixtures("compile_text")  # the hash holds the versions of the tools
def test_a_changed_header_compiles_again(tmp_path: Path) -> None:
    source, header = including_source(tmp_path)
    before = compiled.job_hash(source, tmp_path, ["80"])
    header.write_text("// two")
    assert compiled.job_hash(source, tmp_path, ["80"]) != before


def test_architectures_are_merged() -> None:
    problems = ["a.cu, k, sm_80: bad", "other", "a.cu, k, sm_90a: bad", "a.cu, k, sm_80: worse"]
    expected = ["a.cu, k, sm_80 sm_90a: bad", "other", "a.cu, k, sm_80: worse"]
    assert kernels_check.merged(problems) == expected


def test_remarks_of_ptxas_are_problems() -> None:
    remark = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async are serialized"
    log = f"{remark}\nptxas info    : 0 bytes gmem\n"
    result = compiled.read_kernels("file.cu", "90a", "", log, "")
    assert result.notes == [remark]
    assert "C7510" in kernels_check.broken_limits(result)[0]


SOME = Kernel("file.cu", "80", "kernel<A<1, 2>, true>", 40, 0, 0, 32, 256, True, {"FFMA": 1})


def test_report_is_read_as_written_and_compared() -> None:
    kernels = [SOME, replace(SOME, arch="90a", registers=50), replace(SOME, name="other")]
    text = report.write(kernels, "13.0")
    assert "| `kernel<A<1, 2>, true>` | 256 | 32 + dynamic | 40 / 48 | 50 / 32 |" in text
    assert report.differences(text, kernels, "13.0") == []
    assert report.differences(text, [replace(SOME, registers=48), *kernels[1:]], "13.0") == []
    grown = report.differences(text, [replace(SOME, registers=49), *kernels[1:]], "13.0")
    assert grown == ["file.cu kernel<A<1, 2>, true> 80: 49 registers, 40 in the report"]
    assert len(report.differences(text, kernels[:2], "13.0")) == 1
    assert len(report.differences(text, [*kernels, replace(SOME, name="new")], "13.0")) == 1
    shared = report.differences(text, [replace(SOME, static_shared=64), *kernels[1:]], "13.0")
    assert "64 + dynamic bytes of shared memory" in shared[0]


def test_first_rule_counts() -> None:
    rules = (Rule("f*.cu", "kernel*", ("FFMA",), (), ""), Rule("*", "*", ("HMMA",), (), ""))
    assert broken_rules([SOME, replace(SOME, name="x", opcodes={"HMMA.16816.F32": 2})], rules) == []


def test_redux_is_no_atomic() -> None:
    rules = (Rule("*", "*", (), (), ""),)
    assert broken_rules([replace(SOME, opcodes={"REDUX.SUM": 1, "RED.E.ADD": 1})], rules) == []
    assert broken_rules([replace(SOME, opcodes={"REDG.E.ADD.F32.FTZ.RN": 1})], rules) != []


@pytest.mark.parametrize(
    ("arch", "registers", "threads", "shared", "blocks"),
    [
        ("80", 32, 256, 0, 8),  # all 2048 threads
        ("90a", 126, 256, 66 * 1024, 2),  # registers
        ("80", 255, 256, 0, 1),
        ("80", 40, 128, 100 * 1024, 1),  # shared memory
        ("86", 16, 32, 0, 16),  # the limit of blocks
        ("120", 64, 1024, 0, 1),
        ("80", 168, 32, 0, 12),  # a register file for each scheduler
    ],
)
def test_occupancy(arch: str, registers: int, threads: int, shared: int, blocks: int) -> None:
    assert occupancy.resident_blocks(arch, registers, threads, shared) == blocks


def test_every_shipped_architecture_has_limits() -> None:
    assert set(compiled.shipped_archs()) == set(occupancy.LIMITS)
