"""Which options a command line and its configuration files set, and where, for messages."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from newsrec.commands.wording import Complaint, complaint, did_you_mean, near_options
from newsrec.errors import UserError
from newsrec.places import looked_for

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


def explain(
    message: str, written: Iterable[Written], known: Iterable[str], command: str = "fit"
) -> str:
    """Word a parser's message: where the option was written, and what it may have meant.

    Args:
        message: What the parser says.
        written: What ``written_options`` returned.
        known: All options that there are, without dashes.
        command: Whose options.
    """
    options, names = list(written), list(known)
    text = " ".join(message.split())
    tip = f" `python -m newsrec {command} --help` lists the options."
    missing = re.search(r"arguments? (?:is|are) required: (.*)", text)
    if missing:
        return _missing(missing[1].split(", "), names) + tip
    unknown = re.search(r"[Uu]nrecognized arguments: (.*)", text)
    if unknown:
        return _unknown(unknown[1], names, command) + tip
    found = complaint(message)
    if found.key is not None:
        return _about(found, _place_of(found, options))
    named = set(re.findall(r"[\w.]+", text))
    place = next((o.place for o in options if o.key in named), "")
    if not place:  # an interpolation's message names what is missing, not who asks for it
        last = {name.rpartition(".")[2] for name in named}
        place = next((o.place for o in options if last & _references(o.value)), "")
    wrong = re.search(r"option '([\w.]+)", text)
    near = did_you_mean(near_options(wrong[1], names)) if wrong else ""
    return f"{f'{place}: ' if place else ''}{text}.{near or tip}"


def _about(found: Complaint, place: str) -> str:
    """Word what is wrong with the value of one option."""
    key = found.key
    at = place if place.startswith("-") else f"{place}: {key}" if place else str(key)
    at = "--config" if key == "config" else at
    no_file = r"File does not exist|Path is not a file|Unable to load config"
    if found.value is None or not re.match(no_file, found.text):
        return f"{at} {found.text}"
    # The parser has made --config absolute; what a file names is relative to the file.
    base = Path(place.rpartition(", line ")[0]).parent if ", line " in place else Path()
    file = _as_written(base / found.value)
    what = "is a folder, not a file" if file.is_dir() else "is not there"
    shown = file if key == "config" else found.value
    return f"{at} names {shown}, which {what}. {looked_for(file)}".rstrip()


def _as_written(path: Path) -> Path:
    """Return a path as seen from the current folder, if it lies in there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _missing(keys: Sequence[str], known: Sequence[str]) -> str:
    """Say which arguments are missing; those that are no options are written in capitals."""
    spelled = [f"--{key}" if key in known else key.upper() for key in keys]
    listed = " and ".join(filter(None, [", ".join(spelled[:-1]), spelled[-1]]))
    return f"{listed} {'is' if len(keys) == 1 else 'are'} missing."


def _unknown(given: str, known: Sequence[str], command: str) -> str:
    """Say that an argument is none of this command, and which may have been meant."""
    word = given.split()[0]
    name = word.lstrip("-").split("=")[0]
    if not word.startswith("-"):
        file = Path(word).suffix in (".yaml", ".yml") and command == "fit"
        hint = f" Did you mean --config {word}?" if file else ""
        return f"{word} stands where no argument is expected.{hint}"
    if name == "config" and command != "fit":
        return (
            f"--config is an option of fit alone; {command} takes no configuration"
            f"{', and a checkpoint brings its own options' if command == 'evaluate' else ''}."
        )
    dashes = [f"{'-' if len(key) == 1 else '--'}{key}" for key in near_options(name, known)]
    return f"{word.split('=')[0]}: there is no such option.{did_you_mean(dashes)}"


def _place_of(found: Complaint, options: Sequence[Written]) -> str:
    """Return where the value was written that is complained of, the last such place.

    A file's value can stand behind the command line's, which then is the one that counts.
    """
    own = [o for o in options if o.key == found.key]
    same = [o for o in own if found.value is not None and o.value == found.value]
    return (same or own)[-1].place if own else ""


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
