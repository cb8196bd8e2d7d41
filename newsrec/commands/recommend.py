"""The command ``recommend``: rank news for a user by an exported model, without PyTorch."""

import argparse
import json
import re
from collections.abc import Container, Sequence

from newsrec.errors import UserError
from newsrec.report.recommendations import print_recommendations
from newsrec.serving.answer import answer
from newsrec.serving.recommend import Recommender

LIMITS = (
    *("categories", "skip_repeats", "per_category", "near_duplicates"),
    *("diversity", "calibration"),
)
"""Options that have no meaning where all candidates are ranked."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("export_dir", help="folder that export wrote")
    use = (
        "ids of the news that the user clicked, oldest first, with spaces or commas between; no "
        "ids for a new user"
    )
    add("--history", nargs="*", default=[], metavar="N1", help=use)
    add("-k", type=int, default=10, help="number of news items to recommend")
    use = "rank all of these instead of finding the k best news items of the export"
    add("--candidates", nargs="+", metavar="N2", help=use)
    add("--categories", nargs="+", metavar="NAME", help="recommend only from these categories")
    add("--exclude_history", type=bool, default=True, help="leave out what the user has clicked")
    use = (
        "leave out news whose vector has at least this cosine, up to 1, with the vector of a "
        "clicked news item"
    )
    add("--skip_repeats", type=float, metavar="COSINE", help=use)
    add("--per_category", type=int, metavar="N", help="at most this many of one category")
    use = "of two news whose vectors have at least this cosine, up to 1, keep only the better one"
    add("--near_duplicates", type=float, metavar="COSINE", help=use)
    use = (
        "how much each news item must differ from those above it: 0 ranks by score alone; 1 ranks "
        "by difference alone, except the first"
    )
    add("--diversity", type=float, metavar="SHARE", help=use)
    use = "how much the categories must match those of the history, from 0 to 1"
    add("--calibration", type=float, metavar="SHARE", help=use)
    use = "say for each news item how much each click of the history adds to its score"
    add("--explain", action="store_true", help=use)
    add("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> None:
    """Rank news and print them."""
    for rule in LIMITS:
        if args.candidates is not None and getattr(args, rule) is not None:
            raise UserError(f"Give either --candidates, which are all ranked, or --{rule}.")
    recommender = Recommender.load(args.export_dir)
    known = recommender.known_ids
    history = split_ids(args.history, known)
    candidates = None if args.candidates is None else split_ids(args.candidates, known)
    given = {rule: getattr(args, rule) for rule in ("exclude_history", *LIMITS)}
    rules = {rule: value for rule, value in given.items() if value is not None}
    found = answer(recommender, history, args.k, candidates, args.explain, **rules)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print_recommendations(found)


def split_ids(words: Sequence[str], known: Container[str]) -> list[str]:
    """Split arguments into news ids at spaces and commas; a known id with a comma stays whole."""
    ids: list[str] = []
    for word in words:
        ids += [word] if word in known else filter(None, re.split(r"[\s,]+", word))
    return ids
