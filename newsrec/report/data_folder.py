"""Print the contents of a data folder."""

from rich.table import Table

from newsrec.console import say, terminal
from newsrec.data.dataset import NewsData, Split
from newsrec.data.readers.base import CUT_OFF
from newsrec.evaluation.names import sampled_note
from newsrec.report.tables import table


def print_data(data: NewsData) -> None:
    """Print the counts of each split, and the problems in its files."""
    say(f"{data.root}: {len(data.news):,} news items, {len(data.users):,} users")
    terminal().print(counts_table(data))
    say("Unknown: not in any file of news. A history is empty if it has no known news.")
    for split in data.splits.values():
        if "sampled_candidates" in split.counts:
            say(sampled_note(split.name, split.counts["sampled_candidates"]))
    for file, lines in data.bad_lines.items():
        say(f"{file}: dropped lines, the first of them:", *lines, sep="\n  ")
    for file in data.cut_off:
        say(f"{file}: {CUT_OFF}")


def counts_table(data: NewsData) -> Table:
    """Return a table with a column for each split."""
    columns = [_cells(split) for split in data.splits.values()]
    rows = [(label, *(column[label] for column in columns)) for label in columns[0]]
    return table(("", *data.splits), rows, framed=True)


def share(part: int, whole: int) -> str:
    """Return a number and its percentage of another as text."""
    return f"{part:,} {part / max(whole, 1):6.1%}"


def _cells(split: Split) -> dict[str, str]:
    """Return a split's column of the table, by row label."""
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
        "history clicks": f"{counts['history_news'] + unknown_clicks:,}",
        "unknown history clicks": f"{unknown_clicks:,}",
        "empty histories": share(counts["empty_histories"], impressions),
        "first day": str(first_day),
        "last day": str(last_day),
        "lines dropped": f"{counts['dropped_lines'] + counts['dropped_news_lines']:,}",
    }
