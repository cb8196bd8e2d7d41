"""Print the results of ``recommend``."""

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from newsrec.console import counted, printable, say
from newsrec.report.tables import Cell, print_tables, table

EXPLAINED = 3
"""Most clicks that are named for each news item; JSON has them all."""
REASONS = {
    "age": "for its age",
    "other": "by a rule for age or repeats, by re-ranking, or by rounding",
}
SMALLEST = 0.0005
"""A term that would be shown as 0.000 is left out."""
NO_TITLE = "(no title)"
WITHOUT_CLICKS = "without any click"
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
    rows: list[tuple[Cell, ...]] = []
    for news in answer["news"]:
        title: Cell = (news["title"] or NO_TITLE) if news["known"] else "(not in the export)"
        if "explanation" in news:
            lines = [Text(printable(str(title)))]
            lines += [Text(printable(line), style="dim") for line in reasons(news["explanation"])]
            title = Text("\n").join(lines)
        score = f"{news['score']:.3f}"
        rows.append((str(news["rank"]), news["news_id"], score, news["category"] or "?", title))
    if not rows:
        say("These options allow no news item.", error=True)
        return
    headings = ("", "news", "score", "category", "title")
    print_tables(table(headings, rows, _title(clicks, read), align="rlrl"))
    if any("explanation" in news for news in answer["news"]):
        say("Clicks and rest add up to the score (docs/serve.md, Why this news).")


def reasons(explanation: Mapping[str, Any]) -> list[str]:
    """Return what adds up to a score, in lines: the clicks that change it most, then the others."""
    return [f"{value:+.3f} {name}" for value, name in score_parts(explanation)]


def score_parts(explanation: Mapping[str, Any]) -> list[tuple[float, str]]:
    """Return numbers that add up to a score, and their names, in the order of ``reasons``."""
    clicks = sorted(explanation["clicks"], key=lambda click: -abs(click["value"]))
    named, others = clicks[:EXPLAINED], clicks[EXPLAINED:]
    parts = [(click["value"], click["title"] or NO_TITLE) for click in named]
    if others:
        s = "s" * (len(others) > 1)
        parts.append((sum(click["value"] for click in others), f"{len(others)} other click{s}"))
    parts.append((explanation["rest"], WITHOUT_CLICKS))
    return parts + [
        (explanation[key], name)
        for key, name in REASONS.items()
        if abs(explanation.get(key, 0)) >= SMALLEST
    ]


def _title(clicks: int, read: int) -> str:
    if not clicks:
        return "for a user without history"
    number = counted(clicks, "click")
    return f"for {number}" if read == clicks else f"read the newest {read:,} of {number}"


def _say_unknown(ids: list[str], where: str, what: str) -> None:
    if ids:
        shown = ", ".join(map(printable, ids[:NAMED])) + (", ..." if len(ids) > NAMED else "")
        say(f"{len(ids):,} {where} not in the export, {what}: {shown}", error=True)
