"""``perfconv bench``: times this machine, dense and perforated, and reports on it."""

import argparse

from perfconv._bench import command


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    summary = "time dense and perforated convolutions, blocks and networks on this machine"
    command.add_arguments(subparsers.add_parser("bench", help=summary, description=summary))


def run(args: argparse.Namespace) -> int:
    return command.run(args)
