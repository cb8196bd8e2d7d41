"""``python -m newsrec COMMAND``: run a command and turn errors into messages.

A command's module is imported only when the command runs, so ``--help`` is fast.
"""

import difflib
import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from newsrec import __version__
from newsrec.commands import failures
from newsrec.console import replace_closed_streams, show_our_messages
from newsrec.errors import MissingPackageError, UserError
from newsrec.parent import end_with_parent

if TYPE_CHECKING:
    from lightning import Callback

COMMANDS = {
    "fit": "train a recommender",
    "tune": "search for the options of fit with the best val/auc",
    "evaluate": "compute MIND's metrics and write prediction.zip for a checkpoint",
    "check-submission": "check whether the leaderboard would accept a prediction.zip",
    "compare": "compare two results of evaluate, or several seeds of each, with intervals",
    "export": "write a model to a folder that runs without PyTorch",
    "convert-checkpoint": "make one file of a checkpoint that several processes wrote in parts",
    "recommend": "recommend news for a user, from an exported folder",
    "batch": "recommend news for all users of Parquet files, here or on Ray or Spark",
    "serve": "answer recommendations over HTTP, from an exported folder and a store",
    "encode-news": "add new news items to a copy of an exported folder",
    "store": "read and write a service's store as Parquet, change its export, or free space",
    "download": "download MIND from its official source and check it",
    "prepare": "compile a data folder and show what is in it",
    "inspect": "say what a data folder is, what is odd in it, and what comes next",
    "simulate": "write a simulated world as MIND, Parquet or EB-NeRD files",
    "configs": "list the presets, or copy one to change it",
    "doctor": "show versions, devices, speed, disk space and what is missing",
    "completion": "print a script that completes commands and options in a shell",
}
"""Summary of each command; its module in ``newsrec.commands`` has the same name."""


def main(argv: list[str] | None = None, callbacks: Sequence["Callback"] = ()) -> None:
    """Run the command of ``argv``, by default ``sys.argv``; ``fit`` takes further callbacks."""
    if argv is None:
        replace_closed_streams()
        end_with_parent()
    given = sys.argv[1:] if argv is None else argv
    failures.run_folder = None
    try:
        try:
            _run(given, callbacks, for_one_command=argv is None)
        except SystemExit:  # for example from a parser's --help
            failures.flush()
            raise
        failures.flush()
    except Exception as error:
        sys.exit(failures.end(_mistake(error), given))
    except KeyboardInterrupt as error:
        sys.exit(failures.end(error, given))


@contextmanager
def no_garbage_collection(freeze: bool) -> Iterator[None]:
    """Import modules without searching for garbage; the search takes a fifth of ``fit``'s imports.

    Args:
        freeze: Leave all objects out of later searches, too. It is for a process that has only
            imported modules: if a caller in Python has a model, it would never be freed.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        if freeze:
            gc.freeze()
    finally:
        gc.enable()


def _mistake(error: Exception) -> Exception:
    """Return a UserError in place of a library's error about the configuration or a package."""
    name = (getattr(error, "name", None) or "newsrec").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and importlib.util.find_spec(name) is None:
        return MissingPackageError(
            f"This needs the package {name}: run `pip install {name}`, or install newsrec with "
            "all that it needs."
        )
    # Compare by name, so that OmegaConf need not be imported.
    if any(c.__name__ == "OmegaConfBaseException" for c in type(error).__mro__):
        return UserError(f"configuration: {' '.join(str(error).split())}")
    return error


def _run(given: list[str], callbacks: Sequence["Callback"], for_one_command: bool) -> None:
    if not given or given[0] in ("-h", "--help"):
        print(_usage())
        return
    if given[0] == "--version":
        print(f"newsrec {__version__}")
        return
    show_our_messages()
    name, rest = given[0], given[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Choose from {', '.join(COMMANDS)}."
        raise UserError(f"There is no command {name!r}. {hint}")
    try:
        with no_garbage_collection(freeze=for_one_command):
            import jsonargparse  # noqa: F401, newsrec.serving is installed without it

            from newsrec.commands import common

            module = importlib.import_module(f"newsrec.commands.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "newsrec":
            raise
        raise MissingPackageError(
            f"The command {name} needs the package {error.name}: run `pip install {error.name}`, "
            "or install newsrec with all that it needs. From Python, newsrec.serving needs less."
        ) from error
    if name == "fit":  # LightningCLI parses for itself
        module.fit(rest, callbacks)
        return
    if name == "compare":  # a parser would drop the -- between its two sides
        rest = module.name_separator(rest)
    if name == "tune":  # its other options are those of fit
        rest = module.own_first(rest)
    module.run(common.parse(module, name, COMMANDS[name], rest))


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: newsrec COMMAND [options]    (or: python -m newsrec COMMAND ...)",
            "",
            "News recommendation on MIND with Fastformer and a pretrained language model.",
            "",
            "commands:",
            *lines,
            "",
            "newsrec COMMAND --help shows a command's options; newsrec --version the version.",
        ]
    )


if __name__ == "__main__":
    main()
