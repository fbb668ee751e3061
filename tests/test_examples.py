"""The examples run, those of README.md too."""

import re
import runpy
from pathlib import Path

import pytest
from foreign import make_importable

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "torchvision" in path.read_text():
        make_importable("torchvision")
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_readme(number: int) -> None:
    if "torchvision" in BLOCKS[number]:
        make_importable("torchvision")
    exec(compile(BLOCKS[number], f"README.md, example {number + 1}", "exec"), {})
