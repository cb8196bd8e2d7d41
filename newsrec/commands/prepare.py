"""The command ``prepare``: compile a data folder and show what is in it."""

import argparse
import time

from newsrec.console import say, terminal
from newsrec.data.compile import CUT_OFF
from newsrec.data.dataset import MindData, Split, open_mind, recheck


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--data.root",
        dest="data.root",
        required=True,
        help="folder with train, dev and test, any of them: folders or MIND's zips",
    )
    parser.add_argument(
        "--data.on_bad_line",
        dest="data.on_bad_line",
        choices=("error", "drop"),
        default="error",
        help="what to do with a line that cannot be read: stop, or leave it out and count it",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="hash all files and arrays again, large ones too; what has changed or is damaged is "
        "compiled anew",
    )


def run(args: argparse.Namespace) -> None:
    """Compile and show a table of counts."""
    from rich.table import Table

    start = time.monotonic()
    changed = recheck(args.data.root) if args.check else []
    data = open_mind(args.data.root, args.data.on_bad_line)
    seconds = time.monotonic() - start
    say(f"{data.root}: {len(data.news):,} stories, {len(data.users):,} users")
    table = Table()
    table.add_column("")
    for name in data.splits:
        table.add_column(name, justify="right")
    columns = [_cells(data, split) for split in data.splits.values()]
    for label in columns[0]:
        table.add_row(label, *(column[label] for column in columns))
    terminal().print(table)
    say("Unknown: not in any news.tsv. A history is empty if it has no known story.")
    for file, lines in data.bad_lines.items():
        say(f"{file}: skipped lines, the first of them:", *lines, sep="\n  ")
    for file in data.cut_off:
        say(f"{file}: {CUT_OFF}")
    if changed:
        say("Hashed again. Not as compiled, and compiled anew where needed:", *changed, sep="\n  ")
    elif args.check:
        say("Hashed again: all files and arrays are as compiled.")
    say(f"Compiled into {data.cache} ({seconds:.1f} s).")


def _cells(data: MindData, split: Split) -> dict[str, str]:
    """Return a split's column of the table."""
    counts = split.counts
    impressions = counts["impressions"]
    days = split.time.min(), split.time.max()

    def share(part: str, whole: str) -> str:
        return f"{counts[part]:,} {counts[part] / max(counts[whole], 1):6.1%}"

    return {
        "impressions": f"{impressions:,}",
        "without labels": f"{0 if 'clicks' in counts else impressions:,}",
        "users": f"{counts['users']:,}",
        "stories": f"{counts['stories']:,}",
        "repeated titles": f"{counts['repeated_titles']:,}",
        "candidates": f"{counts['candidates']:,}",
        "unknown candidates": share("unknown_candidates", "candidates"),
        "clicks": f"{counts['clicks']:,}" if "clicks" in counts else "no labels",
        "history clicks": f"{counts['history_news'] + counts['unknown_history_news']:,}",
        "unknown history clicks": f"{counts['unknown_history_news']:,}",
        "empty histories": share("empty_histories", "impressions"),
        "first day": str(days[0].astype("datetime64[D]")),
        "last day": str(days[1].astype("datetime64[D]")),
        "lines skipped": f"{counts['skipped_lines'] + counts['skipped_news_lines']:,}",
    }
