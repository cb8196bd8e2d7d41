"""Which options a command line and its configuration files set, and where, for messages."""

import contextlib
from collections.abc import Iterator, Sequence
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


def _of_arguments(args: Sequence[str]) -> Iterator[Written]:
    for position, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if not option.startswith("-"):
            continue
        if not equals and position + 1 < len(args):
            value = args[position + 1]
        name = {"-c": "config"}.get(option, option.lstrip("-"))
        if name == "config":
            yield from _of_file(Path(value), "")
        elif name in GROUPS and value.startswith("{"):
            yield from _of_inline(name, option, value)
        elif name in GROUPS:
            yield from _of_group(Path(value), Written(name, option, value))
        else:
            yield Written(name, option, value)


def _of_inline(name: str, option: str, value: str) -> Iterator[Written]:
    """Return the options of a mapping on the command line, such as ``{heads: 2}``."""
    with contextlib.suppress(yaml.YAMLError):  # the parser says it
        root = yaml.compose(value)
        for inner in _of_node(Path(), root, f"{name}.") if root else ():
            yield inner._replace(place=option)


def _of_group(path: Path, written: Written) -> Iterator[Written]:
    """Return the options of a group's file, or the group itself where there is no such file."""
    if path.is_file():
        yield from _of_file(path, f"{written.key}.")
    else:
        yield written


def _of_file(path: Path, prefix: str) -> Iterator[Written]:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8, so no configuration.") from None
    except OSError:
        return  # the parser says that there is no such file
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "cannot be read"
        raise UserError(f"{place}: not YAML: {problem}. Check quotes and brackets there.") from None
    if root is not None and not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path} holds no options, which would look like `max_history: 50`.")
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
            yield from _of_group(path.parent / value.value, Written(name, place, value.value))
        else:
            yield Written(name, place, str(value.value))
