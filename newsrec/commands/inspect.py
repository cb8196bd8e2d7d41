"""The command ``inspect``: say what a data folder has, what is odd, and what to run next."""

import argparse
import re
from pathlib import Path

from newsrec.console import say
from newsrec.data.dataset import open_mind
from newsrec.errors import UserError
from newsrec.report.data_folder import print_data
from newsrec.report.inspection import describe, next_command
from newsrec.report.inspection_page import require_output, write_page

COMMAND_OR_OPTION = re.compile(r"(?P<command>`[^`]*`)|(?P<set>set )?--data\.root(?P<value> )?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    about = "data folder in any format: MIND, EB-NeRD, xMIND, or own data as Parquet"
    parser.add_argument("folder", metavar="DIR", help=about)
    use = "also write pictures: a .png, a .html page with the pictures, or a folder for both"
    parser.add_argument("--output", help=use)


def run(args: argparse.Namespace) -> None:
    """Compile the folder without the lines that cannot be read, and print what it has."""
    output = None if args.output is None else Path(args.output)
    if output is not None:
        require_output(output)
    try:
        data = open_mind(args.folder, "drop")
    except UserError as error:
        error.args = (COMMAND_OR_OPTION.sub(_in_words, str(error)),)
        raise
    lines = describe(data)
    print_data(data, notes=False)
    for line in lines:
        say(line)
    if output is not None:
        write_page(data, lines, output)
        say(f"Written: {output}")
    say(f"Next: {next_command(data)}")


def _in_words(found: re.Match[str]) -> str:
    """Return a command as it is, and the option ``--data.root`` as this command's argument."""
    if found["command"] or found["value"]:
        return found["command"] or ""
    return "give it as DIR" if found["set"] else "DIR"
