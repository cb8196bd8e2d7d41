"""The command ``compare``: differences of two results of ``evaluate``, with intervals."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from newsrec.console import say
from newsrec.errors import UserError
from newsrec.evaluation.compare import compare
from newsrec.evaluation.power import MARGIN
from newsrec.evaluation.runs import METRICS, read_run
from newsrec.files import require_empty
from newsrec.report.comparison_page import RESULT_FILE, write_comparison
from newsrec.report.differences import print_differences
from newsrec.report.terminal import PAGE_FILE, page_link


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    use = "folders that evaluate wrote: A B, or several seeds on each side: A1 A2 -- B1 B2"
    add("folders", nargs="+", metavar="A", help=use)
    add("--against", nargs="+", metavar="B", help="the other side's folders; the same as --")
    add("--metric", choices=METRICS, default="auc", help="what to compare in each group")
    use = "difference of a metric up to which A and B count as equal, for the test of equivalence"
    add("--margin", type=float, default=MARGIN, help=use)
    use = f"folder to write, absent or empty: {PAGE_FILE}, a page with pictures, and {RESULT_FILE}"
    add("--output", help=use)
    add("--json", action="store_true", help="print all numbers as JSON in place of tables")


def name_separator(args: Sequence[str]) -> list[str]:
    """Replace ``--`` on the command line by the option ``--against``; refuse a third side."""
    named = ["--against" if arg == "--" else arg for arg in args]
    if sum(arg.split("=")[0] == "--against" for arg in named) > 1:
        raise UserError("There are two sides: A1 A2 -- B1 B2. Give -- or --against once.")
    return named


def run(args: argparse.Namespace) -> None:
    """Compare two sides and print the differences."""
    folders, against = args.folders, args.against
    if not 0 < args.margin < 1:
        raise UserError(
            f"--margin is {args.margin:g}; give a difference of metrics between 0 and 1, such as "
            f"{MARGIN:g}."
        )
    if against is None:
        if len(folders) != 2:
            number = "One folder is" if len(folders) == 1 else f"{len(folders)} folders are"
            raise UserError(
                f"{number} given. Give two, A B, or several seeds on each side: A1 A2 -- B1 B2."
            )
        folders, against = folders[:1], folders[1:]
    if args.output is not None:
        require_empty(Path(args.output))
    a, b = ([read_run(Path(folder)) for folder in side] for side in (folders, against))
    result = compare(a, b, args.metric, args.margin)
    if args.output is not None:
        write_comparison(result, Path(args.output))
    if args.json:
        print(json.dumps(result, indent=1))
        return
    print_differences(result)
    if args.output is not None:
        say(page_link(Path(args.output) / PAGE_FILE))
