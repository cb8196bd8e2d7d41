"""The command ``prepare``: compile a data folder and print its counts."""

import argparse
import time

from newsrec.commands.common import add_data_root, add_on_bad_line
from newsrec.console import say
from newsrec.data.dataset import open_mind
from newsrec.data.parts import ENGINES, make_engine
from newsrec.data.store import recheck
from newsrec.report.data_folder import print_data


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_data_root(parser)
    add_on_bad_line(parser)
    use = "hash all files and arrays again, and compile again what has changed or is damaged"
    parser.add_argument("--check", action="store_true", help=use)
    use = "how impressions are compiled: by processes of this machine (local), or by actors of Ray "
    use += "on this machine or a cluster (ray)"
    parser.add_argument("--engine", choices=ENGINES, default="local", help=use)
    use = "number of processes or actors; without it 1, with ray one for each CPU"
    parser.add_argument("--jobs", type=int, default=None, metavar="N", help=use)
    use = "address of a Ray cluster, such as auto or 10.0.0.1:6379; its machines need the data "
    use += "folder at the same path; without it Ray starts on this machine"
    parser.add_argument("--ray_address", default=None, metavar="ADDRESS", help=use)


def run(args: argparse.Namespace) -> None:
    """Compile the data folder and print its counts."""
    engine = make_engine(args.engine, args.jobs, args.ray_address)
    start = time.monotonic()
    changed = recheck(args.data.root) if args.check else []
    data = open_mind(args.data.root, args.data.on_bad_line, engine)
    seconds = time.monotonic() - start
    print_data(data)
    if changed:
        say("Hashed again. Changed, and compiled again where needed:", *changed, sep="\n  ")
    elif args.check:
        say("Hashed again: all files and arrays are as compiled.")
    say(f"Compiled into {data.cache} ({seconds:.1f} s).")
