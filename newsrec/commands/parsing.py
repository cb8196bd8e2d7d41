"""One behaviour for the parsers of all commands but ``fit``, which is LightningCLI's."""

import re
from argparse import ArgumentError
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from newsrec.commands.options import explain, written_options
from newsrec.errors import UserError


def parse(module: Any, name: str, summary: str, argv: list[str]) -> Namespace:
    """Return a command's options.

    Args:
        module: The command's, with ``add_arguments``.
        name: The command.
        summary: What it does, in half a sentence.
        argv: What stands behind its name.

    Raises:
        UserError: If they cannot be read: one sentence, and no list of all there are.
    """
    parser = ArgumentParser(
        prog=f"newsrec {name}", description=f"{name}: {summary}.", exit_on_error=False
    )
    module.add_arguments(parser)
    try:
        return parser.parse_args(argv)
    except ArgumentError as error:
        known, said = [], str(error)
        for action in parser._actions:
            known += [option.lstrip("-") for option in action.option_strings]
            if not action.option_strings:  # the usage has a positional argument's metavar
                shown = str(action.metavar or action.dest).upper()
                said = re.sub(rf"(required: .*)\b{action.dest}\b", rf"\1{shown}", said)
        raise UserError(explain(said, written_options(argv), known, name)) from error
