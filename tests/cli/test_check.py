"""``perfconv check``: what it says, and that it notices a wrong result."""

import pytest
import torch

import perfconv
from perfconv.cli import check, main


def test_everything_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    output = capsys.readouterr().out
    info = perfconv.build_info()
    for text in (info["version"], info["cpu_isa"], info["torch_build"], torch.__version__):
        assert text in output
    assert output.splitlines()[-1] == "OK: perfconv works on this machine"
    assert "FAIL" not in output
    for dtype in ("float32", "bfloat16", "float16", "float64"):
        assert f"cpu {dtype} implicit_gemm, random mask" in output


def test_absent_cuda_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(check.describe())
    assert ("absent" in text) is not (perfconv.has_cuda() and torch.cuda.is_available())


@pytest.mark.parametrize("damage", [1.01, float("nan")], ids=["wrong", "nan"])
def test_wrong_results_fail(
    damage: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def damaged(*args: object, **options: object) -> torch.Tensor:
        return perfconv.perforated_conv2d(*args, **options) * damage

    monkeypatch.setattr(check, "perforated_conv2d", damaged)
    monkeypatch.setattr(check, "DTYPES", (torch.float32,))
    assert main(["check"]) == 1
    assert "FAIL cpu float32 auto" in capsys.readouterr().out
