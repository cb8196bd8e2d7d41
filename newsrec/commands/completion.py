"""The command ``completion``: print a script that completes commands and options in a shell."""

import argparse
import importlib
from importlib.util import find_spec

from jsonargparse import ArgumentParser

from newsrec.errors import MissingPackageError
from newsrec.shipped import presets

SHELLS = ("bash", "zsh", "fish")
FOLDERS = ("data.root", "output", "export_dir", "folders", "folder", "model.plm")
FILES = ("ckpt_path", "zip", "news", "titles")
"""Options and arguments whose values are paths, by their names in the parsers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    use = "shell; its script goes where docs/train.md says"
    parser.add_argument("shell", choices=SHELLS, help=use)


def run(args: argparse.Namespace) -> None:
    """Print the script."""
    if find_spec("shtab") is None:
        raise MissingPackageError.of("completion", "shtab", "completion")
    print(_whole_parser().get_completion_script(f"shtab-{args.shell}"))


def _whole_parser() -> ArgumentParser:
    """Return a parser with the parsers of all commands, and hints how to complete values."""
    from newsrec.__main__ import COMMANDS
    from newsrec.commands.fit import fit_parser

    whole = ArgumentParser(prog="newsrec")
    whole.add_argument("--version", action="store_true", help="print the version")
    commands = whole.add_subcommands(required=False)
    for name, about in COMMANDS.items():
        if name == "fit":
            parser = fit_parser()
        else:
            parser = ArgumentParser(prog=f"newsrec {name}", description=about)
            module = importlib.import_module(f"newsrec.commands.{name.replace('-', '_')}")
            module.add_arguments(parser)
        _hint(parser, name)
        commands.add_subcommand(name, parser, help=about)
    return whole


def _hint(parser: ArgumentParser, command: str) -> None:
    """Set how values are completed: paths, and names of presets."""
    import shtab

    for action in parser._actions:
        if action.dest in FOLDERS and not action.choices:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
        elif action.dest in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.dest == "config":
            action.complete = _presets_and_files()  # type: ignore[attr-defined]
        elif command == "configs" and action.dest == "name":
            action.choices = (*presets(), "all")


def _presets_and_files() -> dict[str, str | dict[str, str]]:
    names = " ".join(presets())
    bash = f'_newsrec_configs() {{ compgen -W "{names}" -- "$1"; _shtab_compgen_files "$1"; }}'
    zsh = f"_newsrec_configs() {{ _alternative 'presets:preset:({names})' 'files:file:_files' }}"
    return {
        "preamble": {"bash": bash, "zsh": zsh},
        "bash": "_newsrec_configs",
        "zsh": "_newsrec_configs",
        "fish": f"{names} (__fish_complete_path (commandline -ct))",
    }
