"""The command ``doctor``: show what training and serving need, and what of it is missing."""

import argparse
import json
import logging
import sys
import textwrap

from newsrec.console import say
from newsrec.plm_source import DEFAULT_PLM
from newsrec.report.doctor import examine, lines

WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--json", action="store_true", help="print JSON")
    use = "pretrained language model to look for, by folder or by its name on the hub"
    parser.add_argument("--model.plm", default=DEFAULT_PLM, help=use)


def run(args: argparse.Namespace) -> None:
    """Print the findings; exit with 1 if something makes ``fit`` impossible."""
    logging.getLogger("newsrec").setLevel(logging.WARNING)  # the findings say it
    found = examine(args.model.plm)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        for name, text in lines(found):
            wrapped = textwrap.wrap(text, WIDTH - 11, break_long_words=False) or [""]
            say(f"{name:<10}", wrapped[0])
            for more in wrapped[1:]:
                say(f"{'':<10}", more)
        if not found["problems"]:
            say("\nYou can run `python -m newsrec fit --config demo`.")
    if found["problems"]:
        sys.exit(1)
