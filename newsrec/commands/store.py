"""The command ``store``: a service's store as Parquet, another export for it, less space."""

import argparse
from pathlib import Path

from newsrec.console import counted, say
from newsrec.data.readers.parquet_files import CLICKS, NEWS
from newsrec.errors import UserError
from newsrec.serving.store_tables import (
    export_store,
    import_store,
    switch_store,
    vacuum_store,
)

OPTIONS = {
    "export": ("output",),
    "import": ("news", "clicks"),
    "switch": ("export",),
    "vacuum": ("retention_days",),
}
"""Options of each action."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    use = "export: write news.parquet and clicks.parquet; import: add all rows of such files, or "
    use += "none; switch: change to another export; vacuum: delete vectors "
    use += "of other exports, and free space"
    parser.add_argument("action", choices=tuple(OPTIONS), help=use)
    parser.add_argument("store", help="folder of the store; a service may use it meanwhile")
    use = "export: folder to write, absent or empty"
    parser.add_argument("--output", default=None, help=use)
    use = "import: news.parquet (news_id, title, category, subcategory, abstract, published), "
    use += "news.tsv in MIND's format, or EB-NeRD's articles.parquet"
    parser.add_argument("--news", default=None, help=use)
    use = "import: clicks.parquet (user_id, news_id, time)"
    parser.add_argument("--clicks", default=None, help=use)
    parser.add_argument("--export", default=None, help="switch: folder that export wrote")
    use = "vacuum: also delete clicks older than this many days"
    parser.add_argument("--retention_days", type=float, default=None, help=use)


def run(args: argparse.Namespace) -> None:
    """Do what was asked for, and say what was done."""
    own = OPTIONS[args.action]
    for name in (name for names in OPTIONS.values() for name in names):
        if name not in own and getattr(args, name) is not None:
            raise UserError(
                f"--{name} is no option of store {args.action}, which has "
                f"{' and '.join(f'--{option}' for option in own)}. Leave it out."
            )
    store = Path(args.store)
    if args.action == "export":
        if args.output is None:
            raise UserError("store export needs --output DIR, a folder to write.")
        rows = export_store(store, Path(args.output))
        say(
            f"{args.output} has {counted(rows[NEWS], 'news item')} and "
            f"{counted(rows[CLICKS], 'click')}."
        )
    elif args.action == "import":
        files = [None if path is None else Path(path) for path in (args.news, args.clicks)]
        if files == [None, None]:
            raise UserError("store import needs --news or --clicks, a file to read.")
        done = import_store(store, *files)
        news = done.news
        say(
            f"{store}: of the news, {news.added:,} new, {news.replaced:,} replaced, "
            f"{news.unchanged:,} unchanged; of the clicks, {done.clicks:,} new, "
            f"{done.known_clicks:,} stored before. A service on the store makes the vectors; "
            f"`newsrec serve EXPORT --store {store}` starts one."
        )
    elif args.action == "switch":
        if args.export is None:
            raise UserError("store switch needs --export, an exported folder.")
        version = switch_store(store, Path(args.export))
        say(
            f"{store} answers with {args.export} (version {version}). A service on this store "
            "changes to it in the background when it gets its next request. Name this export, too, "
            "in the command that starts the service."
        )
    else:
        before, after = vacuum_store(store, args.retention_days)
        say(f"{store} has {after / 1e6:,.1f} MB; before it had {before / 1e6:,.1f} MB.")
