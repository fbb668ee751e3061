"""Break-even densities of this machine: what the planner does with them, and the file."""

import json
import subprocess
import sys

import pytest
import torch

import perfconv
from perfconv.ops import tuning

TUNED = perfconv.build_info()["cpu_isa"] != "portable"
pytestmark = pytest.mark.skipif(not TUNED, reason="no tuned kernel on this instruction set")
WIDE = "64 or more channels"


@pytest.fixture(autouse=True)
def shipped_table():
    """Without torch's deterministic mode, which suspends tables; before and after each test."""
    torch.use_deterministic_algorithms(False)
    yield
    tuning.use_shipped_table()


def verdict(density: float, channels: int = 64, dtype: torch.dtype = torch.float32) -> tuple:
    input = torch.randn(1, channels, 10, 10).to(dtype)
    weight = torch.randn(channels, channels, 3, 3).to(dtype)
    mask = torch.zeros(1, 1, 10, 10, dtype=torch.bool)
    mask.view(-1)[: round(100 * density)] = True
    name, _, reason = perfconv.explain(input, weight, mask, padding=1)[0]
    by_name = perfconv.perforated_conv2d(input, weight, mask, padding=1, algorithm=name)
    same = torch.equal(perfconv.perforated_conv2d(input, weight, mask, padding=1), by_name)
    return name, reason, same


def table(density: float, name: str = WIDE) -> dict:
    return {name: {"float32": {"forward": density, "backward": density}}}


def test_the_choice_goes_by_the_table_and_explain_says_so() -> None:
    assert verdict(0.5)[0] == "implicit_gemm"
    assert "shipped table" in verdict(0.5)[1]
    tuning.use_table(table(0.3), "measured here")
    for density, chosen in ((0.3, "implicit_gemm"), (0.4, "dense")):
        name, reason, is_same = verdict(density)
        assert name == chosen
        assert "break-even density 0.3" in reason
        assert "measured here" in reason
        assert is_same, "explain and the operator must go by the same table"
    assert verdict(0.5, channels=32)[1].endswith("shipped table"), "no density for that class"
    tuning.use_shipped_table()
    assert verdict(0.5)[0] == "implicit_gemm"


def test_small_groups_are_a_class_of_their_own() -> None:
    """On kernels of their own: what was measured of few channels does not hold for them."""
    tuning.use_table(table(0.1, "fewer than 16 input channels a group"), "measured here")
    arguments = torch.randn(1, 64, 10, 10), torch.randn(64, 4, 3, 3), torch.rand(1, 1, 10, 10) < 0.5
    reason = perfconv.explain(*arguments, padding=1, groups=16)[0][2]
    assert reason.endswith("shipped table")
    tuning.use_table(table(0.2, "groups of fewer than 16 channels"), "measured here")
    reason = perfconv.explain(*arguments, padding=1, groups=16)[0][2]
    assert "break-even density 0.2" in reason


def test_the_deterministic_mode_takes_the_shipped_table() -> None:
    tuning.use_table(table(0.1), "measured here")
    assert verdict(0.5)[0] == "dense"
    torch.use_deterministic_algorithms(True)
    assert "shipped table" in verdict(0.5)[1]
    torch.use_deterministic_algorithms(False)
    assert verdict(0.5)[0] == "dense"


def test_gradients_have_densities_of_their_own() -> None:
    """Above theirs the gradients are those of torch's dense backward, to the bit."""
    torch.manual_seed(0)
    input = torch.randn(1, 64, 9, 9, requires_grad=True)
    weight = torch.randn(64, 64, 3, 3)
    mask = torch.rand(1, 1, 9, 9) < 0.5

    def gradient(algorithm: str = "auto") -> torch.Tensor:
        out = perfconv.perforated_conv2d(input, weight, mask, padding=1, algorithm=algorithm)
        return torch.autograd.grad(out.square().sum(), input)[0]

    tuning.use_table({WIDE: {"float32": {"forward": 1.0, "backward": 0.0}}}, "measured here")
    mixed = gradient()
    tuning.use_table(table(1.0), "measured here")
    sparse = gradient()
    assert torch.equal(sparse, gradient("implicit_gemm"))
    assert not torch.equal(mixed, sparse)
    torch.testing.assert_close(mixed, sparse, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("densities", "message"),
    [
        (table(1.5), "must be a number in .0, 1., got 1.5"),
        (table(float("nan")), "must be a number in .0, 1., got nan"),
        ({WIDE: {"float32": {"forward": "0.5"}}}, "got '0.5'"),
        (table(0.5, "wide"), "by shape class, dtype and pass, got .'wide'"),
        ({WIDE: {"int8": {"forward": 0.5}}}, "dtypes: float32, bfloat16"),
    ],
)
def test_other_tables_are_refused(densities: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tuning.use_table(densities, "")
    assert verdict(0.5)[0] == "implicit_gemm"


def test_the_native_door_counts() -> None:
    entries = len(tuning.shape_classes()) * len(tuning.DTYPES) * len(tuning.PASSES)
    with pytest.raises(ValueError, match=f"a table has {entries} densities, got 1"):
        perfconv._ext._C.set_break_even([0.5], "")
    with pytest.raises((ValueError, RuntimeError), match="must be in .0, 1. or NaN"):
        perfconv._ext._C.set_break_even([2.0] * entries, "")


def test_the_file_is_read_at_import(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(tuning.DISABLE)
    path = tuning.cache_path()
    assert tmp_path in path.parents
    assert tuning.write_cache(table(0.3), "measured here") == path
    tell = "import perfconv.ops.tuning as t; print(t.tuned.source)"
    found = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True)
    assert found.stdout.strip() == "measured here", found.stderr


def test_the_environment_can_leave_the_shipped_table(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuning.write_cache(table(0.3), "measured here")
    monkeypatch.setenv(tuning.DISABLE, "0")
    tuning.load()
    assert tuning.tuned is None
    monkeypatch.delenv(tuning.DISABLE)
    tuning.load()
    assert tuning.tuned is not None


def test_a_broken_file_is_ignored_with_a_warning(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(tuning.DISABLE)
    path = tuning.write_cache(table(0.3), "measured here")
    content = json.loads(path.read_text())
    for text in (
        "",
        "[]",
        "{",
        json.dumps({"format": 1}),
        json.dumps(content | {"version": "0.0.0"}),
        json.dumps(content | {"densities": 3}),
        json.dumps(content | {"densities": table(7)}),
    ):
        path.write_text(text)
        with pytest.warns(UserWarning, match=r"is ignored: .*perfconv bench --tune"):
            tuning.load()
        assert tuning.tuned is None
    path.write_bytes(b"\xff\xfe")
    with pytest.warns(UserWarning, match="is ignored"):
        tuning.load()


def test_compiled_functions_take_no_notice_of_a_table() -> None:
    """It is looked at outside of graphs only: no break, and the operator goes by it anyway."""
    tuning.use_table(table(0.3), "measured here")
    input, weight = torch.randn(1, 64, 8, 8), torch.randn(64, 64, 3, 3)
    mask = torch.rand(1, 1, 8, 8) < 0.5

    def call() -> torch.Tensor:
        return perfconv.perforated_conv2d(input, weight, mask, padding=1)

    compiled = torch.compile(call, backend="eager", fullgraph=True)
    assert torch.equal(compiled(), call())
