"""The command ``recommend``: what an exported model would show a user, without PyTorch."""

import json
import re
from collections.abc import Container, Sequence
from typing import TYPE_CHECKING, Any

from newsrec.console import printable, say, terminal
from newsrec.errors import UserError
from newsrec.serving.recommend import Recommender

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

NAMED = 5
"""Unknown ids that a message names; JSON has them all."""


def add_arguments(parser: "ArgumentParser") -> None:
    """Add the command's options."""
    parser.add_argument("export_dir", help="folder that export wrote")
    parser.add_argument(
        "--history",
        nargs="*",
        default=[],
        metavar="N1",
        help="ids of the news that the user clicked, oldest first, with spaces or commas between; "
        "none is a new user",
    )
    parser.add_argument("-k", type=int, default=10, help="news to recommend")
    parser.add_argument(
        "--candidates",
        nargs="+",
        metavar="N2",
        help="rank these, all of them, instead of looking for the k best of the export",
    )
    parser.add_argument(
        "--categories", nargs="+", metavar="NAME", help="recommend from these categories alone"
    )
    parser.add_argument(
        "--exclude_history", type=bool, default=True, help="leave out what the user has clicked"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: "Namespace") -> None:
    """Recommend, and print the news."""
    if args.candidates is not None and args.categories is not None:
        raise UserError("Give either --candidates, which are ranked as they are, or --categories.")
    recommender = Recommender.load(args.export_dir)
    known = recommender.known_ids
    history = split_ids(args.history, known)
    unknown_candidates: list[str] = []
    if args.candidates is not None:
        ranking = recommender.rank(history, split_ids(args.candidates, known))
        ids, scores = ranking.ranked_ids, ranking.ranked_scores
        unknown_history, unknown_candidates = ranking.unknown_history, ranking.unknown_candidates
    else:
        ids, scores, unknown_history = recommender.recommend(
            history, args.k, args.exclude_history, args.categories
        )
    best = zip(ids, scores, recommender.describe(ids), strict=True)
    stories = [
        {
            "rank": rank,
            "news_id": news_id,
            "score": round(float(score), 6),
            "known": news_id in known,
            **texts,
        }
        for rank, (news_id, score, texts) in enumerate(best, start=1)
    ]
    unknown = set(unknown_history)  # holds each once, however often it was clicked
    clicks = sum(news_id not in unknown for news_id in history)
    read = min(clicks, recommender.folder.manifest["max_history"])
    if args.json:
        answer = {
            "model_hash": recommender.folder.manifest["model_hash"],
            "history": history,
            "known_clicks": clicks,
            "read_clicks": read,
            "unknown_history": unknown_history,
            "unknown_candidates": unknown_candidates,
            "stories": stories,
        }
        print(json.dumps(answer, indent=1))
        return
    _say_unknown(unknown_history, "of the history", "left out")
    _say_unknown(unknown_candidates, "of the candidates", "given the user's mean score of all news")
    if history and not clicks:
        say(
            "Nothing of the history is in the export: these are the news for a user without "
            "history. Are the ids those of the export's news.parquet?",
            error=True,
        )
    _print_table(stories, _title(clicks, read))


def split_ids(words: Sequence[str], known: Container[str]) -> list[str]:
    """Return the ids in what was written, with spaces or commas between.

    Args:
        words: What was written, the shell's spaces taken out.
        known: Ids of the catalogue; one that holds a comma stays whole.
    """
    ids: list[str] = []
    for word in words:
        ids += [word] if word in known else filter(None, re.split(r"[\s,]+", word))
    return ids


def _title(clicks: int, read: int) -> str:
    if not clicks:
        return "for a user without history"
    number = f"{clicks:,} click{'s' * (clicks != 1)}"
    return f"for {number}" if read == clicks else f"read the newest {read:,} of {number}"


def _say_unknown(ids: list[str], where: str, what: str) -> None:
    if ids:
        shown = ", ".join(map(printable, ids[:NAMED])) + (", ..." if len(ids) > NAMED else "")
        say(f"{len(ids):,} {where} not in the export, {what}: {shown}", error=True)


def _print_table(stories: list[dict[str, Any]], title: str) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", justify="right")
    table.add_column("news", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("category")
    table.add_column("title", ratio=1)
    for story in stories:
        title = (story["title"] or "(no title)") if story["known"] else "(not in the export)"
        table.add_row(
            str(story["rank"]),
            Text(printable(story["news_id"])),
            f"{story['score']:.3f}",
            Text(printable(story["category"] or "?")),
            Text(printable(title)),
        )
    terminal().print(table)
