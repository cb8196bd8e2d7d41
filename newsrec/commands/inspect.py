"""The command ``inspect``: say what a data folder has, what is odd, and what to run next."""

import argparse
from pathlib import Path

from newsrec.console import say
from newsrec.data.dataset import open_mind
from newsrec.report.data_folder import print_data
from newsrec.report.inspection import describe, next_command
from newsrec.report.inspection_page import require_output, write_page


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
    data = open_mind(args.folder, "drop")
    lines = describe(data)
    print_data(data, notes=False)
    for line in lines:
        say(line)
    if output is not None:
        write_page(data, lines, output)
        say(f"Written: {output}")
    say(f"Next: {next_command(data)}")
