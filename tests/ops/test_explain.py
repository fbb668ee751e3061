"""explain: which algorithm runs and why; what it says is what perforated_conv2d does."""

import pytest
import torch
from helpers import ALGORITHMS, DTYPES, Problem, random_mask

import perfconv

NAMES = {*ALGORITHMS, "dense"}
TUNED = perfconv.build_info()["cpu_isa"] != "portable"


def verdicts(problem: Problem, dtype: torch.dtype = torch.float32, **options) -> list[tuple]:
    tensors = problem.tensors(dtype)
    arguments = tensors["input"], tensors["weight"], tensors["mask"]
    return perfconv.explain(*arguments, **problem.geometry, **options)


@pytest.mark.parametrize("algorithm", sorted(NAMES))
def test_by_name(algorithm: str) -> None:
    found = verdicts(Problem(), algorithm=algorithm)
    assert {name for name, _, _ in found} == NAMES
    assert [name for name, is_chosen, _ in found if is_chosen] == [algorithm] == [found[0][0]]
    assert all(reason for _, _, reason in found)


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_auto_runs_what_explain_says(dtype: torch.dtype, density: float) -> None:
    """The same bits as the algorithm named first."""
    problem = Problem(in_channels=64, out_channels=64, density=density)
    tensors = problem.tensors(dtype)
    arguments = tensors["input"], tensors["weight"], tensors["mask"]
    chosen = verdicts(problem, dtype)[0][0]
    by_name = perfconv.perforated_conv2d(*arguments, **problem.geometry, algorithm=chosen)
    assert torch.equal(perfconv.perforated_conv2d(*arguments, **problem.geometry), by_name)


@pytest.mark.skipif(not TUNED, reason="no tuned kernel on this instruction set")
@pytest.mark.parametrize("channels", [64, 128, 256])
@pytest.mark.parametrize("density", [0.02, 0.25, 0.5])
def test_auto_is_sparse_where_it_pays(channels: int, density: float) -> None:
    problem = Problem(
        batch=1, in_channels=channels, out_channels=channels, size=(30, 40), density=density * 0.98
    )
    assert verdicts(problem)[0][0] == "implicit_gemm"


def test_full_masks_run_densely_and_empty_ones_never() -> None:
    assert verdicts(Problem(in_channels=64, out_channels=64, density=1.0))[0][0] == "dense"
    assert verdicts(Problem(in_channels=64, out_channels=64, density=0.0))[0][0] != "dense"


@pytest.mark.skipif(
    not perfconv.build_info()["cpu_isa"].startswith("avx512"), reason="measured on AVX-512 only"
)
def test_full_masks_of_1x1_layers() -> None:
    """Sparse where that was measured to be faster even so."""
    pointwise = {"kernel": (1, 1), "padding": (0, 0), "density": 1.0, "size": (3, 4)}
    chosen = {
        (inner, outer, dtype): verdicts(
            Problem(in_channels=inner, out_channels=outer, **pointwise), dtype
        )[0][0]
        for inner, outer, dtype in (
            (64, 1024, torch.float32),
            (1024, 64, torch.float32),
            (1025, 64, torch.float32),
            (64, 63, torch.float32),
            (64, 64, torch.bfloat16),
        )
    }
    # bfloat16 multiplied as float is faster than oneDNN's at every density.
    is_float = perfconv.build_info()["cpu_isa"] == "avx512"
    of_bfloat16 = "implicit_gemm" if is_float else "dense"
    assert list(chosen.values()) == ["implicit_gemm"] * 2 + ["dense"] * 2 + [of_bfloat16]


def test_shared_masks_and_unbatched_images() -> None:
    problem = Problem(in_channels=64, out_channels=64, is_mask_shared=True, density=0.6)
    alone = Problem(in_channels=64, out_channels=64, batch=1, density=0.6)
    assert verdicts(problem)[0] == verdicts(alone)[0]
    tensors = alone.tensors(torch.float32)
    arguments = tensors["input"][0], tensors["weight"], tensors["mask"][0]
    assert perfconv.explain(*arguments, padding=1)[0] == verdicts(alone)[0]
    active = perfconv.compact_mask(tensors["mask"])
    assert perfconv.explain(tensors["input"], tensors["weight"], active, padding=1) == verdicts(
        alone
    )


def test_under_autocast() -> None:
    """What would run is the kernel of the dtype that autocast takes."""
    input, weight = torch.randn(1, 64, 12, 12), torch.randn(64, 64, 3, 3)
    mask = random_mask(1, 1, 12, 12)
    low = input.bfloat16(), weight.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = perfconv.explain(input, weight, mask, padding=1)
        mixed = perfconv.explain(low[0], weight, mask, padding=1)
    assert found == mixed == perfconv.explain(*low, mask, padding=1)
    if perfconv.build_info()["cpu_isa"] in ("avx2", "avx512"):  # elsewhere as float32
        assert found != perfconv.explain(input, weight, mask, padding=1)


def test_every_option_of_the_convolution() -> None:
    """As perforated_conv2d takes and refuses them; they do not change the choice."""
    problem = Problem(
        in_channels=64, out_channels=64, fill="passthrough", has_residual=True, activation="relu"
    )
    tensors = problem.tensors(torch.float32)
    operands = {name: value for name, value in tensors.items() if name != "grad_output"}
    assert perfconv.explain(**operands, **problem.options) == verdicts(problem)
    alone = {name: value[0] for name, value in operands.items() if name not in ("weight", "bias")}
    shared = {name: operands[name] for name in ("weight", "bias")}
    assert perfconv.explain(**alone, **shared, **problem.options)[0][1]
    with pytest.raises(ValueError, match="needs base"):
        perfconv.explain(*(operands[n] for n in ("input", "weight", "mask")), padding=1,
                         fill="passthrough")  # fmt: skip
