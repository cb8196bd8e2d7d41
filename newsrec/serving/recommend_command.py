"""The command ``recommend``: what an exported model would show a reader, without PyTorch."""

import json
import sys
from typing import TYPE_CHECKING, Any

from newsrec.errors import UserError
from newsrec.serving.recommend import Recommender
from newsrec.serving.results import Ranking, Recommendations

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def add_arguments(parser: "ArgumentParser") -> None:
    """Add the command's options."""
    parser.add_argument("export_dir", help="folder that export wrote")
    parser.add_argument(
        "--history",
        nargs="*",
        default=[],
        metavar="N1",
        help="ids of the stories that the reader clicked, oldest first; none is a new reader",
    )
    parser.add_argument("-k", type=int, default=10, help="stories to recommend")
    parser.add_argument(
        "--candidates",
        nargs="+",
        metavar="N2",
        help="rank these stories, all of them, instead of looking for the k best of the export",
    )
    parser.add_argument(
        "--categories", nargs="+", metavar="NAME", help="recommend from these categories alone"
    )
    parser.add_argument(
        "--exclude_history", type=bool, default=True, help="leave out what the reader has clicked"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: "Namespace") -> None:
    """Recommend, and print the stories."""
    if args.candidates is not None and args.categories is not None:
        raise UserError("Give either --candidates, which are ranked as they are, or --categories.")
    recommender = Recommender.load(args.export_dir)
    found: Ranking | Recommendations
    if args.candidates is not None:
        found = recommender.rank(args.history, args.candidates)
    else:
        found = recommender.recommend(args.history, args.k, args.exclude_history, args.categories)
    unknown_candidates = found.unknown_candidates if isinstance(found, Ranking) else []
    best = zip(found.news_ids, found.scores, recommender.describe(found.news_ids), strict=True)
    stories = [
        {"rank": rank, "news_id": news_id, "score": round(float(score), 6), **texts}
        for rank, (news_id, score, texts) in enumerate(best, start=1)
    ]
    if args.json:
        answer = {
            "model_hash": recommender.folder.manifest["model_hash"],
            "history": args.history,
            "unknown_history": found.unknown_history,
            "unknown_candidates": unknown_candidates,
            "stories": stories,
        }
        print(json.dumps(answer, indent=1))
        return
    _say_unknown(found.unknown_history, "of the history", "left out")
    _say_unknown(unknown_candidates, "of the candidates", "ranked as the unknown story")
    unknown = set(found.unknown_history)  # holds each once, however often it was clicked
    _print_table(stories, sum(news_id not in unknown for news_id in args.history))


def _say_unknown(ids: list[str], where: str, what: str) -> None:
    if ids:
        shown = ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
        print(f"{len(ids)} {where} not in the export, {what}: {shown}", file=sys.stderr)


def _print_table(stories: list[dict[str, Any]], clicks: int) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    reader = f"{clicks} click{'s' * (clicks != 1)}" if clicks else "a reader without history"
    table = Table(title=f"for {reader}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("", justify="right")
    table.add_column("story", no_wrap=True)
    table.add_column("score", justify="right", no_wrap=True)
    table.add_column("category")
    table.add_column("title", ratio=1)
    for story in stories:
        table.add_row(
            str(story["rank"]),
            Text(story["news_id"]),
            f"{story['score']:.3f}",
            Text(story["category"] or "?"),
            Text(story["title"] if story["title"] is not None else "not in the export"),
        )
    Console().print(table)
