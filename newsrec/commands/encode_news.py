"""The command ``encode-news``: add newly published news to a copy of an exported folder."""

import argparse
from pathlib import Path

from newsrec.commands.common import add_on_bad_line, add_output
from newsrec.console import counted, say
from newsrec.serving.extend import extend_export


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("export_dir", help="folder that export or encode-news wrote")
    use = "file of news: a news.tsv as MIND's, a news.parquet, or EB-NeRD's articles.parquet"
    parser.add_argument("--news", required=True, help=use)
    add_output(parser)
    add_on_bad_line(parser, "--on_bad_line")


def run(args: argparse.Namespace) -> None:
    """Write the extended copy and print how many news items it has."""
    total, added = extend_export(
        Path(args.export_dir), Path(args.news), Path(args.output), args.on_bad_line
    )
    say(
        f"{args.output} holds {counted(total, 'news item')}: {added.added:,} new, "
        f"{added.replaced:,} with another text than before, {added.unchanged:,} as they were."
    )
