"""Print the results of ``recommend``."""

from collections.abc import Mapping
from typing import Any

from newsrec.console import printable, say
from newsrec.report.tables import print_tables, table

NAMED = 5
"""Most unknown ids that a message names; JSON has them all."""


def print_recommendations(answer: Mapping[str, Any]) -> None:
    """Print news for one user; messages about unknown ids go to stderr."""
    clicks, read = answer["known_clicks"], answer["read_clicks"]
    _say_unknown(answer["unknown_history"], "of the history", "left out")
    what = "given the score of the mean of all news"
    _say_unknown(answer["unknown_candidates"], "of the candidates", what)
    if answer["history"] and not clicks:
        say(
            "No news item of the history is in the export, so this is the answer for a user "
            "without history. Are the ids in the export's news.parquet?",
            error=True,
        )
    rows = []
    for news in answer["news"]:
        title = (news["title"] or "(no title)") if news["known"] else "(not in the export)"
        score = f"{news['score']:.3f}"
        rows.append((str(news["rank"]), news["news_id"], score, news["category"] or "?", title))
    headings = ("", "news", "score", "category", "title")
    print_tables(table(headings, rows, _title(clicks, read), align="rlrl"))


def _title(clicks: int, read: int) -> str:
    if not clicks:
        return "for a user without history"
    number = f"{clicks:,} click{'s' * (clicks != 1)}"
    return f"for {number}" if read == clicks else f"read the newest {read:,} of {number}"


def _say_unknown(ids: list[str], where: str, what: str) -> None:
    if ids:
        shown = ", ".join(map(printable, ids[:NAMED])) + (", ..." if len(ids) > NAMED else "")
        say(f"{len(ids):,} {where} not in the export, {what}: {shown}", error=True)
