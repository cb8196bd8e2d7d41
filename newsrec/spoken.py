"""Words error messages for callers from Python: with keywords in place of options.

Most messages are shared with the command line and name its options, such as
``--trainer.max_steps``.
"""

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from newsrec.errors import UserError

Given = ParamSpec("Given")
Result = TypeVar("Result")

COMMAND_OR_OPTION = re.compile(
    r"(?P<command>`[^`]*`)"
    r"|--ckpt_path (?P<name>last|best|auto)\b"
    r"|--(?P<option>[a-z_]+(\.[a-z_]+)*)(?: (?P<value>true|false|null)\b)?"
)
NAMES = {"ckpt_path": "checkpoint"}
"""Options that have another name in Python; those of the Trainer lose their prefix."""
VALUES = {"true": "True", "false": "False", "null": "None"}


def in_python(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Return a function that raises UserErrors with keywords in place of options.

    Commands between backticks stay as they are.
    """

    @functools.wraps(function)
    def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            error.args = (COMMAND_OR_OPTION.sub(_word, str(error)),)
            raise

    return call


def _word(found: re.Match[str]) -> str:
    if found["command"]:
        return found["command"]
    if found["name"]:
        return f"resume={found['name']!r}"
    name = found["option"].removeprefix("trainer.")
    name = NAMES.get(name, name)
    return f"{name}={VALUES[found['value']]}" if found["value"] else name
