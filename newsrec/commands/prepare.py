"""The command ``prepare``: compile a data folder and print its counts."""

import argparse
import time

from newsrec.commands.common import add_data_root, add_on_bad_line
from newsrec.console import say
from newsrec.data.dataset import open_mind
from newsrec.data.store import recheck
from newsrec.report.data_folder import print_data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_data_root(parser)
    add_on_bad_line(parser)
    use = "hash all files and arrays again, and compile again what has changed or is damaged"
    parser.add_argument("--check", action="store_true", help=use)


def run(args: argparse.Namespace) -> None:
    """Compile the data folder and print its counts."""
    start = time.monotonic()
    changed = recheck(args.data.root) if args.check else []
    data = open_mind(args.data.root, args.data.on_bad_line)
    seconds = time.monotonic() - start
    print_data(data)
    if changed:
        say("Hashed again. Changed, and compiled again where needed:", *changed, sep="\n  ")
    elif args.check:
        say("Hashed again: all files and arrays are as compiled.")
    say(f"Compiled into {data.cache} ({seconds:.1f} s).")
