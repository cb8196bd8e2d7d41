"""The command ``serve``: answer recommendations over HTTP, without PyTorch."""

import argparse
import logging
from pathlib import Path

from newsrec.console import say
from newsrec.errors import MissingPackageError, UserError
from newsrec.serving.folder import ExportFolder
from newsrec.serving.http_settings import Limits, Settings, check_origins, read_tokens

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add = parser.add_argument
    add("export_dir", help="folder that export wrote; serve only reads it")
    use = "folder for news, clicks and vectors, created if it is absent; default: EXPORT.store"
    add("--store", metavar="DIR", help=use)
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all addresses")
    add("--port", type=int, default=8000, help="port to listen on; 0 takes a free one")
    add("--workers", type=int, default=1, help="processes that answer, all on one store")
    add("--threads", type=int, help="threads for encoding in each process; default: all cores")
    use = "file with one token on each line; each request must send one of the tokens: "
    add("--token_file", metavar="FILE", help=use + "Authorization: Bearer TOKEN")
    use = "origins whose pages may call the service from a browser, such as https://example.org"
    add("--cors", nargs="+", default=[], metavar="ORIGIN", help=use)
    use = "further names that the header Host of a request may have; default: only names of this "
    use += "machine on a loopback address without a token, else all names"
    add("--allowed_hosts", nargs="+", default=[], metavar="NAME", help=use)
    use = "delete clicks that are older than this many days; default: never"
    add("--retention_days", type=float, metavar="DAYS", help=use)
    use = "search by an index above this many news items"
    add("--index_above", type=int, metavar="NEWS", help=use)
    use = "data folder; the page can replay users of its dev split"
    add("--data.root", metavar="DIR", help=use)
    limits = Limits()
    add("--max_k", type=int, default=limits.k, help="most news items to recommend or list")
    add("--max_history", type=int, default=limits.history, help="most clicks of a request")
    use = "most candidates of a request"
    add("--max_candidates", type=int, default=limits.candidates, help=use)
    use = "most news items or clicks that a request writes"
    add("--max_items", type=int, default=limits.items, help=use)
    add("--max_body", type=int, default=limits.body, help="most bytes of a request's body")


def run(args: argparse.Namespace) -> None:
    """Serve until a signal asks to stop."""
    settings = settings_of(args)
    folder = ExportFolder(args.export_dir)  # says at once what is wrong with it
    try:
        from newsrec.serving.http_server import run as serve
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "newsrec":
            raise
        raise MissingPackageError.of("serve", package, "serve") from error
    if not settings.is_local and not settings.tokens:
        log.warning(
            "Everybody who reaches %s can read and delete news and clicks. To ask for a token, "
            "give --token_file FILE.",
            settings.host,
        )

    def announce(address: str) -> None:
        say(f"Serving {folder.path} at {address} (Ctrl-C stops).")
        say(f"Page: {address}/  Requests: {address}/openapi.json")

    serve(settings, announce)


def settings_of(args: argparse.Namespace) -> Settings:
    """Return checked options."""
    for name in ("workers", "max_k", "max_history", "max_candidates", "max_items", "max_body"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be at least 1.")
    for name in ("threads", "index_above", "retention_days"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise UserError(f"--{name} is {value}; it must be above 0.")
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port is {args.port}; it must be from 0 to 65535.")
    return Settings(
        export=Path(args.export_dir),
        store=None if args.store is None else Path(args.store),
        data_root=args.data.root,
        host=args.host,
        port=args.port,
        workers=args.workers,
        threads=args.threads,
        index_above=args.index_above,
        retention_days=args.retention_days,
        tokens=() if args.token_file is None else read_tokens(args.token_file),
        cors=check_origins(args.cors),
        allowed_hosts=tuple(args.allowed_hosts),
        limits=Limits(
            args.max_k, args.max_history, args.max_candidates, args.max_items, args.max_body
        ),
    )
