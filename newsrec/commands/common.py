"""Options that several commands share, and the parsing of all commands except ``fit``.

LightningCLI parses the options of ``fit``.
"""

import argparse
import re
from functools import cache
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from newsrec.commands.parser_messages import explain
from newsrec.commands.written_options import written_options
from newsrec.data.readers.source import SPLITS
from newsrec.errors import UserError


def add_data_root(parser: argparse.ArgumentParser, use: str = "", required: bool = True) -> None:
    """Add ``--data.root``; ``use`` tells what the command does with the folder, if not obvious."""
    about = "data folder with any of train, dev, test: MIND's files or zips, EB-NeRD, xMIND, or "
    about += "Parquet, which may lie at an address such as s3://bucket/data"
    about += f"; {use}" if use else ""
    parser.add_argument("--data.root", required=required, help=about)


def add_on_bad_line(
    parser: argparse.ArgumentParser,
    name: str = "--data.on_bad_line",
    default: str | None = "error",
    of: str = "the data",
) -> None:
    """Add ``--data.on_bad_line``, or the same option under another name."""
    use = f"what to do with a line or row of {of} that cannot be read: stop, or leave it out and "
    use += "count it"
    parser.add_argument(name, choices=("error", "drop"), default=default, help=use)


def add_split(parser: argparse.ArgumentParser, use: str, *more: str) -> None:
    """Add ``--split``; ``use`` is its help text, ``more`` are splits without a folder on disk."""
    parser.add_argument("--split", choices=(*SPLITS, *more), required=True, help=use)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--output``."""
    parser.add_argument("--output", required=True, help="folder to write, absent or empty")


def parse(module: Any, name: str, summary: str, argv: list[str]) -> Namespace:
    """Parse the options of a command by its module's ``add_arguments``."""
    parser = _parser(module, name, summary)
    try:
        return parser.parse_args(argv)
    except argparse.ArgumentError as error:
        known, message = [], str(error)
        for action in parser._actions:
            known += [option.lstrip("-") for option in action.option_strings]
            if not action.option_strings:  # a positional argument is shown by its metavar
                shown = str(action.metavar or action.dest).upper()
                message = re.sub(rf"(required: .*)\b{action.dest}\b", rf"\1{shown}", message)
        raise UserError(explain(message, written_options(argv), known, name)) from error


@cache
def _parser(module: Any, name: str, summary: str) -> ArgumentParser:
    """Build a command's parser, once for a program that runs many commands."""
    parser = ArgumentParser(
        prog=f"newsrec {name}", description=f"{name}: {summary}.", exit_on_error=False
    )
    module.add_arguments(parser)
    return parser
