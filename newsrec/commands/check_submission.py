"""The command ``check-submission``: check a file for the leaderboard, and warn of oddities."""

import argparse
from pathlib import Path

from newsrec.commands.common import add_data_root, add_on_bad_line, add_split
from newsrec.data.dataset import open_mind
from newsrec.data.readers.formats import reader_of
from newsrec.errors import UserError
from newsrec.evaluation.check_submission import inspect, open_submission
from newsrec.report.checked_submission import print_checked, refusal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "zip",
        metavar="ZIP",
        help="prediction.zip, or predictions.zip for EB-NeRD, as evaluate writes it",
    )
    add_data_root(parser)
    add_on_bad_line(parser)
    add_split(parser, "split that was ranked; the leaderboard's is test")


def run(args: argparse.Namespace) -> None:
    """Check a submission; refuse it, or print a summary and warnings."""
    path = Path(args.zip)
    name = reader_of(args.data.root).submission
    open_submission(path, name)[0].close()  # fail before the slow compilation of the data
    data = open_mind(args.data.root, args.data.on_bad_line)
    split = data.split(args.split)
    report = inspect(path, split, name)
    if not report.accepted:
        raise UserError(f"{path} would be refused for {split.name}.\n{refusal(report, data)}")
    print_checked(path, report, data, split)
