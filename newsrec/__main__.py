"""``python -m newsrec COMMAND``: finds the command and turns mistakes into messages.

A command's module is imported when the command is chosen, so ``--help`` answers at once.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from newsrec import __version__
from newsrec.commands import bugs
from newsrec.console import show_our_messages
from newsrec.errors import UserError
from newsrec.parent import end_with_parent

if TYPE_CHECKING:
    from lightning import Callback

COMMANDS = {
    "fit": ("newsrec.commands.fit", "train a recommender"),
    "evaluate": (
        "newsrec.commands.evaluate",
        "MIND's metrics and prediction.zip of a checkpoint",
    ),
    "check-submission": (
        "newsrec.evaluation.check_submission",
        "would the leaderboard take a prediction.zip, and what looks wrong",
    ),
    "compare": (
        "newsrec.evaluation.compare",
        "two results of evaluate, or several seeds of each: what differs, and how surely",
    ),
    "export": ("newsrec.export.export", "a model in a folder that needs no PyTorch to run"),
    "recommend": (
        "newsrec.commands.recommend",
        "the best stories for a reader, from an exported folder",
    ),
    "encode-news": (
        "newsrec.commands.encode_news",
        "a day's new stories, added to a copy of an exported folder",
    ),
    "download": ("newsrec.data.readers.download", "MIND from its official place, checked"),
    "prepare": ("newsrec.commands.prepare", "compile a data folder and show what is in it"),
    "simulate": ("newsrec.simulation.simulate", "write a simulated world as MIND files"),
}


def main(argv: list[str] | None = None, callbacks: Sequence["Callback"] = ()) -> None:
    """Run a command.

    Args:
        argv: Command and options; those of the process if None.
        callbacks: Further callbacks of ``fit``, for a program that starts it.
    """
    if argv is None:
        end_with_parent()
    given = sys.argv[1:] if argv is None else argv
    bugs.run_folder = None
    try:
        try:
            _run(given, callbacks)
        except SystemExit:  # of a parser's --help, say
            bugs.flush()
            raise
        bugs.flush()
    except Exception as error:
        sys.exit(bugs.end(_mistake(error), given))
    except KeyboardInterrupt as error:
        sys.exit(bugs.end(error, given))


def _mistake(error: Exception) -> Exception:
    """Return an error as the user's mistake where another library has its own class for it."""
    # Raised while a configuration is read.
    if any(c.__name__ == "OmegaConfBaseException" for c in type(error).__mro__):
        return UserError(f"configuration: {' '.join(str(error).split())}")
    return error


def _run(given: list[str], callbacks: Sequence["Callback"]) -> None:
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
    module_name, summary = COMMANDS[name]
    try:
        module = importlib.import_module(module_name)
        import jsonargparse  # noqa: F401, what only Python needs can be installed without it

        from newsrec.commands import parsing
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "newsrec":
            raise
        raise UserError(
            f"The command {name} needs the package {error.name}: run `pip install {error.name}`, "
            "or install newsrec with all that it needs. From Python, newsrec.serving needs less."
        ) from error
    if name == "fit":  # LightningCLI parses for itself
        module.fit(rest, callbacks)
        return
    if name == "compare":  # a parser would drop the -- that parts its two sides
        rest = module.name_separator(rest)
    module.run(parsing.parse(module, name, summary, rest))


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}} {summary}" for name, (_, summary) in COMMANDS.items()]
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
