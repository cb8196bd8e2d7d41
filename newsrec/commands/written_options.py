"""Find which options the command line and its configuration files set, and where."""

import contextlib
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from newsrec.addresses import without_secrets
from newsrec.errors import UserError
from newsrec.shipped import config_file, shipped_config

GROUPS = ("data", "model", "model.news", "model.user", "model.lora", "trainer")
"""Options whose value may be a file with further options."""
NULL, TEXT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:str"


class Written(NamedTuple):
    """One option as the user wrote it."""

    key: str
    place: str
    """The option's name on the command line, or a file and its line."""
    value: str


def written_options(args: Sequence[str]) -> list[Written]:
    """Return all options that the command line and its configuration files set, as dotted keys."""
    return list(_in_arguments(args))


def with_shipped_files(args: Sequence[str]) -> list[str]:
    """Return the arguments with the file of each preset in place of its name (``config_file``)."""
    found, option = [], ""
    for arg in args:
        name, equals, value = arg.partition("=")
        if arg.startswith("-"):
            found.append(f"{name}={_shipped(name, value)}" if equals else arg)
            option = "" if equals else name
        else:
            found.append(_shipped(option, arg))
            option = ""
    return found


def _shipped(option: str, value: str) -> str:
    return config_file(value) if option in ("--config", "-c") else shipped_config(value)


def _in_arguments(args: Sequence[str]) -> Iterator[Written]:
    for position, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        if not option.startswith("-"):
            continue
        if not equals and position + 1 < len(args):
            value = args[position + 1]
        name = {"-c": "config"}.get(option, option.lstrip("-"))
        if name == "config":
            yield from _in_file(value, "")
        elif name in GROUPS and value.startswith("{"):
            with contextlib.suppress(yaml.YAMLError):  # the parser reports it
                for inner in _in_node("", "", yaml.compose(value), f"{name}."):
                    yield inner._replace(place=option)
        elif name in GROUPS:
            yield from _in_group(value, Written(name, option, value))
        else:
            yield Written(name, option, value)


def _in_group(path: str, written: Written) -> Iterator[Written]:
    """Yield the options in a group's file, or the group itself if there is no such file."""
    if "://" in path or Path(path).is_file():
        yield from _in_file(path, f"{written.key}.")
    else:
        yield written


def _in_file(path: str, prefix: str) -> Iterator[Written]:
    try:
        at_address = "://" in path
        text = _at_address(path) if at_address else Path(path).read_text(encoding="utf-8")
        # As the parser does, look for the files that it names beside it.
        folder = path.rpartition("/")[0] if at_address else str(Path(path).parent)
        path = without_secrets(path)
        root = yaml.compose(text)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text, so it is no configuration file.") from None
    except OSError:
        return  # the parser reports a missing file
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "cannot be read"
        raise UserError(f"{place}: not YAML: {problem}. Check quotes and brackets there.") from None
    if not isinstance(root, yaml.MappingNode):
        raise UserError(f"{path} has no options. An option looks like `max_history: 50`.")
    yield from _in_node(path, folder, root, prefix)


def _at_address(address: str) -> str:
    """Return the text of a configuration file at an address, as the parser will read it."""
    import fsspec
    from fsspec.core import has_magic  # such an address is searched for, and not found

    try:
        with fsspec.open(address, "r", encoding="utf-8") as file:
            text: str = file.read()
    except UnicodeDecodeError:
        raise
    except Exception as error:  # each file system has errors of its own
        shown = without_secrets(address)
        if isinstance(error, FileNotFoundError) and not has_magic(address):
            raise UserError(
                f"There is no configuration file at {shown}. Check the address, or copy the file "
                "to this machine and name its path."
            ) from error
        # Some file systems say the whole address.
        reason = " ".join(str(error).replace(address, shown).split()).rstrip(".")
        raise UserError(
            f"{shown} cannot be opened ({reason}). Copy the configuration file to this machine, "
            "and name its path."
        ) from error
    return text


def _in_node(path: str, folder: str, node: yaml.Node | None, prefix: str) -> Iterator[Written]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = prefix + str(key.value)
        place = f"{path}, line {key.start_mark.line + 1}"
        if isinstance(value, yaml.MappingNode):
            yield from _in_node(path, folder, value, f"{name}.")
        elif name in GROUPS and value.tag == TEXT:
            written = Written(name, place, value.value)
            yield from _in_group(_beside(folder, value.value), written)
        elif name in GROUPS and (name, value.tag) != ("model.lora", NULL):  # without LoRA
            given = "a list" if isinstance(value, yaml.SequenceNode) else value.value or "empty"
            raise UserError(
                f"{place}: {name} is {given}, but it is a group of options. Write them below it, "
                "indented, or the name of a file with them, or leave it out."
            )
        else:
            yield Written(name, place, str(value.value))


def _beside(folder: str, name: str) -> str:
    """Return the path or address of a file that a configuration file in ``folder`` names."""
    if "://" in name or os.path.isabs(name) or "://" not in folder:
        return name if "://" in name else os.path.join(folder, name)
    scheme, _, place = folder.partition("://")
    return f"{scheme}://{posixpath.normpath(f'{place}/{name}')}"
