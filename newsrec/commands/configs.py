"""The command ``configs``: list the presets, or copy one so that it can be changed."""

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from newsrec.console import clipped, say
from newsrec.errors import UserError
from newsrec.files import require_writable
from newsrec.shipped import preset, presets, shipped

ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add: Any = parser.add_argument
    add("action", nargs="?", choices=("list", "copy"), default="list", help="list by default")
    use = f"preset to copy with the files that it names; {ALL} copies every preset and group"
    add("name", nargs="?", metavar="NAME", help=use)
    add("folder", nargs="?", metavar="DIR", default="configs", help="where to copy it")


def run(args: argparse.Namespace) -> None:
    """Print the presets, or copy one."""
    if args.action == "copy":
        _copy(args.name, Path(args.folder))
        return
    if args.name is not None:
        raise UserError(f"configs list takes no {args.name}. Did you mean configs copy?")
    width = max(map(len, presets()))
    for name, path in presets().items():
        say(f"  {name:<{width}} {clipped(_about(path), 97 - width)}")
    say(f"\nThe files are in {shipped('configs')}. Train with one, or copy one to change it:")
    say("  python -m newsrec fit --config demo\n  python -m newsrec configs copy demo")


def _about(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _copy(name: str | None, folder: Path) -> None:
    if name is None:
        raise UserError(f"configs copy needs a NAME: {', '.join(presets())} or {ALL}.")
    top = shipped("configs")
    if name == ALL:
        files = sorted(path for path in top.rglob("*") if path.is_file())
    else:
        files = sorted(set(_with_named(preset(name))))
    require_writable(folder)
    targets = {path: folder / path.relative_to(top) for path in files}
    for path, target in targets.items():
        if target.exists() and target.read_bytes() != path.read_bytes():
            raise UserError(f"{target} is there and differs. Name another folder, or remove it.")
    for path, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copyfile(path, target)
        say(target)
    say(f"Next: python -m newsrec fit --config {folder / ('demo' if name == ALL else name)}.yaml")


def _with_named(path: Path) -> Iterator[Path]:
    """Yield a preset's file, and the files that it names."""
    yield path
    for value in yaml.safe_load(path.read_text(encoding="utf-8")).values():
        if isinstance(value, str) and value.endswith(".yaml"):
            yield from _with_named(path.parent / value)
