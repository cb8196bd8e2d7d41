"""Print the contents of a data folder."""

from collections.abc import Collection, Mapping

from newsrec.console import counted, say, terminal
from newsrec.data.dataset import NewsData, Split
from newsrec.data.doubts import doubts
from newsrec.data.leaks import SUSPECT, InHistory, count_in_history
from newsrec.data.readers.base import CUT_OFF
from newsrec.evaluation.names import data_notes
from newsrec.report.tables import table


def print_data(data: NewsData, notes: bool = True) -> None:
    """Print each split's counts and the problems in its files, with ``notes`` also odd counts."""
    say(f"{data.root}: {counted(len(data.news), 'news item')}, {counted(len(data.users), 'user')}")
    inside = {name: count_in_history(split) for name, split in data.splits.items()}
    terminal().print(table(("", *data.splits), table_of(data, inside), framed=True))
    say("Unknown: not in any file of news. A history is empty if it has no known news.")
    for split in data.splits.values() if notes else ():
        for line in data_notes(split.name, split.counts):
            say(line)
    drawn = [name for name, split in data.splits.items() if "sampled_candidates" in split.counts]
    for line in (*leaks(inside, drawn), *doubts([*data.splits.values()])):
        say(line)
    for file, lines in data.bad_lines.items():
        say(f"{file}: dropped lines, the first of them:", *lines, sep="\n  ")
    for file in data.cut_off:
        say(f"{file}: {CUT_OFF}")


def table_of(
    data: NewsData, inside: Mapping[str, InHistory] | None = None
) -> list[tuple[str, ...]]:
    """Return the rows of the table of counts: a name, then a text for each split.

    ``inside`` has the counts of ``count_in_history``; None computes them.
    """
    inside = inside or {name: count_in_history(split) for name, split in data.splits.items()}
    columns = [_cells(split, inside[name]) for name, split in data.splits.items()]
    return [(label, *(column[label] for column in columns)) for label in columns[0]]


def leaks(inside: Mapping[str, InHistory], drawn: Collection[str]) -> list[str]:
    """Return a warning for each split in which many clicks are in their impression's history.

    Args:
        inside: The counts of each split.
        drawn: Splits whose histories and skipped news were made from clicks alone.
    """
    shown = (
        "Unless users often click the same news again, the histories hold clicks made after the "
        "impression, and every metric is too high. A history may hold earlier clicks only."
    )
    repeated = (
        "Skipped news is drawn from what the user never clicks, so news in the history is always "
        "the click, and every metric is too high. Keep each user's first click on a news item."
    )
    return [
        f"Warning, {name}: {count.clicks_inside / count.clicks:.1%} of the clicks are in the "
        f"history of their own impression, more than {SUSPECT:.0%}. "
        f"{repeated if name in drawn else shown}"
        for name, count in inside.items()
        if count.suspect
    ]


def share(part: int, whole: int) -> str:
    """Return a number and its percentage of another as text."""
    return f"{part:,} {part / max(whole, 1):6.1%}"


def _cells(split: Split, inside: InHistory) -> dict[str, str]:
    counts = split.counts
    impressions = counts["impressions"]
    unknown_clicks = counts["unknown_history_news"]
    first_day, last_day = split.days
    return {
        "impressions": f"{impressions:,}",
        "without labels": f"{0 if 'clicks' in counts else impressions:,}",
        "users": f"{counts['users']:,}",
        "news": f"{counts['news']:,}",
        "repeated titles": f"{counts['repeated_titles']:,}",
        "candidates": f"{counts['candidates']:,}",
        "unknown candidates": share(counts["unknown_candidates"], counts["candidates"]),
        "clicks": f"{counts['clicks']:,}" if "clicks" in counts else "no labels",
        "in the history": f"{inside.candidates_inside / max(inside.candidates, 1):.2%}",
        "history clicks": f"{counts['history_news'] + unknown_clicks:,}",
        "unknown history clicks": f"{unknown_clicks:,}",
        "empty histories": share(counts["empty_histories"], impressions),
        "first day": str(first_day),
        "last day": str(last_day),
        "lines dropped": f"{counts['dropped_lines'] + counts['dropped_news_lines']:,}",
    }
