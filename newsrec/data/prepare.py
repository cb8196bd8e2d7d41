"""The command ``prepare``: compile a data folder and show what is in it."""

import argparse
import time

from newsrec.data.mind import open_mind

ROWS = {
    "impressions": "impressions",
    "users": "users",
    "clicks": "clicks",
    "candidates": "candidates",
    "unknown_candidates": "candidates not in news.tsv",
    "empty_histories": "empty histories",
    "unknown_history_news": "history clicks not in news.tsv",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--data.root",
        dest="data.root",
        required=True,
        help="folder with train/, dev/ and test/, any of them",
    )


def run(args: argparse.Namespace) -> None:
    """Compile and show a table of counts."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    start = time.monotonic()
    data = open_mind(args.data.root)
    title = f"{data.root}: {len(data.news):,} stories, {len(data.users):,} users"
    table = Table(title=escape(title))  # a folder's name may hold brackets
    table.add_column("")
    for name in data.splits:
        table.add_column(name, justify="right")
    for key, label in ROWS.items():
        cells = []
        for split in data.splits.values():
            count = split.counts.get(key)
            cells.append("no labels" if count is None else f"{count:,}")
        table.add_row(label, *cells)
    table.add_row(
        "days",
        *(
            f"{split.time.min().astype('datetime64[D]')} to "
            f"{split.time.max().astype('datetime64[D]')}"
            for split in data.splits.values()
        ),
    )
    Console().print(table)
    print(f"Compiled into {data.cache} ({time.monotonic() - start:.1f} s).")
