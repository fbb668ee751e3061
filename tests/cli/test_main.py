"""The command line's dispatcher: which sub-commands there are, and that each is imported alone."""

import subprocess
import sys

import pytest

from perfconv import cli


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert all(command in output for command in cli.COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == "0.1.0\n"


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "perfconv", "--version"]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "0.1.0\n"


@pytest.mark.parametrize("arguments", [[], ["chekc"]], ids=["nothing", "unknown"])
def test_unknown_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_help_imports_no_command() -> None:
    code = (
        "import sys; from perfconv import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(any(name in sys.modules for name in ('perfconv.cli.demo', 'h5py', 'matplotlib')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def import_without_h5py(name: str) -> None:
        raise ModuleNotFoundError("No module named 'h5py'", name="h5py")

    monkeypatch.setattr(cli.importlib, "import_module", import_without_h5py)
    assert cli.main(["demo"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("perfconv demo: the package h5py is needed")
    assert "pip install 'perfconv[demo]'" in message


def test_our_own_missing_module_is_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_nothing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(cli.importlib, "import_module", import_nothing)
    with pytest.raises(ModuleNotFoundError, match=r"perfconv\.cli\.demo"):
        cli.main(["demo"])
