"""The command ``recommend``: rank news for a user by an exported model, without PyTorch."""

import argparse
import json
import re
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from newsrec.errors import UserError
from newsrec.report.recommendations import print_recommendations
from newsrec.serving.answer import answer
from newsrec.serving.recommend import Recommender

LIMITS = (
    *("categories", "skip_repeats", "per_category", "near_duplicates"),
    *("diversity", "calibration", "half_life", "max_age"),
)
"""Options that have no meaning where all candidates are ranked."""
AGED = ("half_life", "max_age")
"""Options that need the times of news."""


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
    use = "hours in which the odds of a news item halve; needs --published"
    add("--half_life", type=float, metavar="HOURS", help=use)
    use = "most hours since a news item was published; needs --published"
    add("--max_age", type=float, metavar="HOURS", help=use)
    use = "Parquet with the columns news_id and published, the time of each news item"
    add("--published", metavar="FILE", help=use)
    use = "time for which to recommend, such as 2019-11-15T12:00; default: now; without a zone: UTC"
    add("--at", metavar="TIME", help=use)
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
    if args.published is not None or args.at is not None or rules.keys() & AGED:
        rules["ages"] = _ages(args.published, args.at, rules)
        if not any(news_id in known for news_id in rules["ages"]):
            raise UserError(
                f"{args.published} has no time of a news item of {args.export_dir}. Give its "
                "column news_id the ids of the export's news.parquet."
            )
    found = answer(recommender, history, args.k, candidates, args.explain, **rules)
    if args.json:
        print(json.dumps(found, indent=1))
    else:
        print_recommendations(found)


def _ages(published: str | None, at: str | None, rules: Mapping[str, Any]) -> dict[str, float]:
    """Return the age of each news item of a file in hours, by news id."""
    by_age = [rule for rule in AGED if rule in rules]
    if published is None or not by_age:
        given = "--at" if published is None else "--published"
        if by_age:
            raise UserError(f"--{by_age[0]} needs the times of the news. Add --published FILE.")
        raise UserError(f"{given} is only for --half_life and --max_age. Leave it out, or add one.")
    now = datetime.now(UTC)
    if at is not None:
        try:
            now = datetime.fromisoformat(at)
        except ValueError:
            raise UserError(f"--at is {at!r}; give a time such as 2019-11-15T12:00.") from None
        now = now if now.tzinfo else now.replace(tzinfo=UTC)
    from newsrec.serving.published import read_published

    times = read_published(Path(published))
    return {news_id: (now - time).total_seconds() / 3600 for news_id, time in times.items()}


def split_ids(words: Sequence[str], known: Container[str]) -> list[str]:
    """Split arguments into news ids at spaces and commas; a known id with a comma stays whole."""
    ids: list[str] = []
    for word in words:
        ids += [word] if word in known else filter(None, re.split(r"[\s,]+", word))
    return ids
