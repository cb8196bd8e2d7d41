"""The command ``download``: get MIND's zips from their official source."""

import argparse
import os
import shlex
from pathlib import Path

from newsrec.data.readers.download import LICENCE, READ, download, numbered
from newsrec.errors import UserError
from newsrec.files import require_on_disk


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("size", choices=("small", "large"), help="MIND-small or MIND-large")
    parser.add_argument("--accept-license", action="store_true", help=f"you accept it: {LICENCE}")
    root = os.environ.get("MIND_ROOT", "data/mind")
    use = "folder for the zips; default: MIND_ROOT if it is set, else data/mind"
    parser.add_argument("--data.root", default=root, help=use)


def run(args: argparse.Namespace) -> None:
    """Download the missing files and print the next commands."""
    root = args.data.root
    again = _command("download", args.size, "--accept-license", "--data.root", root)
    if not args.accept_license:
        raise UserError(LICENCE + numbered(READ, f"If you accept it: {again}"))
    require_on_disk(Path(root), "--data.root")
    download(args.size, Path(root), again)
    print(f"Next: {_command('prepare', '--data.root', root)}")
    if args.size == "small":
        preset = "configs/mind_small_top2.yaml"
        print(f"      {_command('fit', '--config', preset, '--data.root', root)}")


def _command(*words: str) -> str:
    return shlex.join(["python", "-m", "newsrec", *words])
