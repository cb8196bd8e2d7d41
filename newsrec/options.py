"""Which options a command line and its configuration files set, and where, for messages."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from newsrec.errors import UserError

GROUPS = ("data", "model", "model.news", "model.user", "trainer")
"""Options whose value may be a file of options."""


class Written(NamedTuple):
    """One option as the user wrote it."""

    key: str
    place: str
    value: str


def written_options(args: Sequence[str]) -> list[Written]:
    """Return every dotted key that options and configuration files set.

    Args:
        args: Command line behind the command's name.

    Raises:
        UserError: If a configuration file is not YAML, naming file and line.
    """
    return list(_of_arguments(args))


def explain(message: str, written: Iterable[Written], known: Iterable[str]) -> str:
    """Add to a parser's message where the option was written, and what it may have meant.

    Args:
        message: What the parser says.
        written: What ``written_options`` returned.
        known: All options that there are.
    """
    text = " ".join(message.split())
    named = set(re.findall(r"[\w.]+", text))
    options = list(written)
    place = next((o.place for o in options if o.key in named), None)
    if place is None:  # an interpolation's message names what is missing, not who asks for it
        last = {name.rpartition(".")[2] for name in named}
        place = next((o.place for o in options if last & _references(o.value)), None)
    unknown = re.search(r"(?:arguments: --|option ')([\w.]+)", text)
    near = difflib.get_close_matches(unknown[1], list(known), n=1) if unknown else []
    hint = f" Did you mean {near[0]}?" if near else ""
    tip = "" if hint else " `python -m newsrec fit --help` lists the options."
    return f"{f'{place}: ' if place else ''}{text}.{hint}{tip}"


def _references(value: str) -> set[str]:
    """Return the last part of each name that a value's interpolations ask for."""
    names = re.findall(r"[\w.]+", " ".join(re.findall(r"\$\{(.*?)\}", value)))
    return {name.rpartition(".")[2] for name in names}


def _of_arguments(args: Sequence[str]) -> Iterator[Written]:
    for position, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if not option.startswith("-"):
            continue
        if not equals and position + 1 < len(args):
            value = args[position + 1]
        name = {"-c": "config"}.get(option, option.removeprefix("--"))
        if name == "config":
            yield from _of_file(Path(value), "")
        elif name in GROUPS:
            yield from _of_file(Path(value), f"{name}.")
        else:
            yield Written(name, option, value)


def _of_file(path: Path, prefix: str) -> Iterator[Written]:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return  # the parser says it better
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "cannot be read"
        raise UserError(f"{place}: not YAML: {problem}. Check quotes and brackets there.") from None
    if root is not None:
        yield from _of_node(path, root, prefix)


def _of_node(path: Path, node: yaml.Node, prefix: str) -> Iterator[Written]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = prefix + str(key.value)
        place = f"{path}, line {key.start_mark.line + 1}"
        if isinstance(value, yaml.MappingNode):
            yield from _of_node(path, value, f"{name}.")
        elif isinstance(value, yaml.ScalarNode) and name in GROUPS:
            yield from _of_file(path.parent / value.value, f"{name}.")
        else:
            yield Written(name, place, str(value.value))
