"""The command ``perfconv``: one file per sub-command, imported only when it is asked for.

A sub-command module has ``add_parser(subparsers)`` and ``run(args) -> int`` (the exit status).
"""

import argparse
import importlib
import sys
from collections.abc import Sequence

from perfconv._ext import build_info

# Sub-command: what it does, and the extra that its packages come with.
COMMANDS = {
    "bench": ("time dense and perforated convolutions, blocks and networks", "bench"),
    "check": ("versions, kernels in use, and a self-test", None),
    "data": ("check a data set's files", "data"),
    "demo": ("perforate a pretrained edge detector and report what it saves", "demo"),
    "evaluate": ("score a trained network on a data set", "train"),
    "train": ("train a named recipe, or go on with a run that was stopped", "train"),
    "predict": ("pictures of a network's predictions", "predict"),
}


def missing_package_message(command: str, package: str | None) -> str:
    extra = COMMANDS[command][1]
    return (
        f"perfconv {command}: the package {package} is needed and not installed. "
        f"Install it: pip install 'perfconv[{extra}]'."
    )


def make_parser(names: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, with the options of those sub-commands that are among ``names``."""
    parser = argparse.ArgumentParser(prog="perfconv", description="Perforated convolution.")
    parser.add_argument("--version", action="version", version=build_info()["version"])
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command, (summary, _) in COMMANDS.items():
        if command in names:
            importlib.import_module(f"perfconv.cli.{command}").add_parser(subparsers)
        else:
            subparsers.add_parser(command, help=summary, add_help=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    command = next((word for word in argv if word in COMMANDS), None)
    try:
        args = make_parser([command] if command else []).parse_args(argv)
        return importlib.import_module(f"perfconv.cli.{args.command}").run(args)
    except ModuleNotFoundError as error:
        is_own = (error.name or "").startswith("perfconv")
        if is_own or command is None or COMMANDS[command][1] is None:
            raise
        print(missing_package_message(command, error.name), file=sys.stderr)
        return 2
