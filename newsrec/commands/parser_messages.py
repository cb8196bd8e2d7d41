"""Turn the parser's errors about wrong options into helpful messages.

This code matches the messages of jsonargparse 4.53 and argparse. Any other message is shown
unchanged, and ``tests/test_errors.py`` fails if the messages change.
"""

import ast
import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from newsrec.commands.written_options import Written
from newsrec.places import looked_for

TYPE_NAMES = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "NoneType": "null",
    "list": "a list such as [a, b]",
    "Sequence": "a list such as [a, b]",
    "dict": "a mapping such as {a: 1}",
}
"""Words for Python types in messages."""

ALIASES = {
    "batch-size": "data.batch_size",
    "checkpoint": "ckpt_path",
    "ckpt": "ckpt_path",
    "data": "data.root",
    "data.group_by_user": "data.batches",
    "data_dir": "data.root",
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "learning_rate": "model.lr",
    "model.skip": "model.residual",
    "resume": "ckpt_path",
    "steps": "trainer.max_steps",
    "workers": "data.num_workers",
}
"""Names that other programs give to an option."""

LIST_TYPE = r"(?:list|Sequence|collections\.abc\.\w+)\["
LITERAL_TYPE = r"typing\.Literal(\[[^]]*\])"
NO_FILE = re.compile(r"(?:File does not exist|Path is not a file): '?(.*?)'?$")
NO_CONFIG = re.compile(r"Unable to load config [\"'](.*?)[\"']")


class WrongValue(NamedTuple):
    """The parser's complaint about the value of an option."""

    key: str
    """The option."""
    value: str | None
    """Value of the option, None if the message does not name it."""
    problem: str
    """What is wrong, worded to follow the option's place."""


def explain(
    message: str, written: Iterable[Written], known: Iterable[str], command: str = "fit"
) -> str:
    """Rewrite a parser's message: where was the option written, what may have been meant?"""
    options, names = list(written), list(known)
    text = " ".join(message.split())
    tip = f" `python -m newsrec {command} --help` lists the options."
    missing = re.search(r"arguments? (?:is|are) required: (.*)", text)
    if missing:
        return _missing(missing[1].split(", "), names) + tip
    unknown = re.search(r"[Uu]nrecognized arguments: (.*)", text)
    if unknown:
        return _unknown(unknown[1], names, command) + tip
    wrong = _wrong_value(text)
    if wrong is not None:
        return _with_place(wrong, options)
    named = set(re.findall(r"[\w.]+", text))
    place = next((o.place for o in options if o.key in named), "")
    if not place:  # the message names an interpolation's target, not its option
        last = {name.rpartition(".")[2] for name in named}
        place = next((o.place for o in options if last & _references(o.value)), "")
    option = re.search(r"option '([\w.]+)", text)
    near = _did_you_mean(near_options(option[1], names)) if option else ""
    return f"{f'{place}: ' if place else ''}{text}.{near or tip}"


def near_options(name: str, known: Iterable[str]) -> list[str]:
    """Return options, without dashes, that a mistyped one may have meant, the likeliest first."""
    name, known = name.rstrip("+").lower(), [key for key in known if not key.endswith("+")]
    wanted = name.replace("-", "_")
    last = wanted.rpartition(".")[2]
    for found in (
        [key for key in known if key.replace("-", "_") == wanted],
        [key for key in known if key in (ALIASES.get(wanted), ALIASES.get(name))],
        [key for key in known if last and key.rpartition(".")[2] == last],
    ):
        if found:
            return found[:3]
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.7)
    if near or len(last) < 3:
        return near
    by_end = {key.rpartition(".")[2]: key for key in known}
    return [by_end[end] for end in difflib.get_close_matches(last, by_end, n=1, cutoff=0.75)]


def _did_you_mean(names: Sequence[str]) -> str:
    """Return the question with a space in front; empty without names."""
    return f" Did you mean {' or '.join(names)}?" if names else ""


def _missing(keys: Sequence[str], known: Sequence[str]) -> str:
    """Return a message that names missing arguments; positional ones are in capitals."""
    spelled = [f"--{key}" if key in known else key.upper() for key in keys]
    listed = " and ".join(filter(None, [", ".join(spelled[:-1]), spelled[-1]]))
    return f"{listed} {'is' if len(keys) == 1 else 'are'} missing."


def _unknown(given: str, known: Sequence[str], command: str) -> str:
    """Return a message that an argument does not exist, and which may have been meant."""
    word = given.split()[0]
    name = word.lstrip("-").split("=")[0]
    if not word.startswith("-"):
        is_config = Path(word).suffix in (".yaml", ".yml") and command == "fit"
        near = _did_you_mean([f"--config {word}"] if is_config else [])
        return f"{word} is given where no argument is expected.{near}"
    if name == "config" and command != "fit":
        return (
            f"Only fit has the option --config; {command} takes no configuration"
            f"{', and a checkpoint brings its own options' if command == 'evaluate' else ''}."
        )
    dashed = [f"{'-' if len(key) == 1 else '--'}{key}" for key in near_options(name, known)]
    return f"{word.split('=')[0]}: there is no such option.{_did_you_mean(dashed)}"


def _with_place(wrong: WrongValue, options: Sequence[Written]) -> str:
    """Return what is wrong with a value, after the place where it was written.

    If an option is written several times, the place is the last one that has this value.
    """
    key, value, problem = wrong
    own = [option for option in options if option.key == key]
    same = [option for option in own if value is not None and option.value == value]
    place = (same or own)[-1].place if own else ""
    at = place if place.startswith("-") else f"{place}: {key}" if place else key
    at = "--config" if key == "config" else at
    if value is None or not (NO_FILE.match(problem) or NO_CONFIG.match(problem)):
        return f"{at} {problem}"
    # The parser makes --config absolute; a path in a file is relative to that file.
    path = (Path(place.rpartition(", line ")[0]).parent if ", line " in place else Path()) / value
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    what = "is a folder, not a file" if path.is_dir() else "is not there"
    shown = path if key == "config" else value
    return f"{at} names {shown}, which {what}. {looked_for(path)}".rstrip()


def _references(value: str) -> set[str]:
    """Return the last part of each name that a value's interpolations refer to."""
    names = re.findall(r"[\w.]+", " ".join(re.findall(r"\$\{(.*?)\}", value)))
    return {name.rpartition(".")[2] for name in names}


def _wrong_value(text: str) -> WrongValue | None:
    inner = text.rfind('Parser key "')
    if inner > 0 and "Unable to load config" in text[:inner]:
        text = text[inner:]
    found = re.fullmatch(r'Parser key "([\w.]+)": (.*)', text)
    if found:
        return WrongValue(found[1], *_value_and_problem(found[2]))
    found = re.fullmatch(r"argument (\S+): (.*)", text)
    if not found:
        return None
    key = found[1].split("/")[0].lstrip("-")  # argparse writes --a.b/--a.b+
    if re.fullmatch(r"expected (?:one|at least one) argument", found[2]):
        return WrongValue(key, None, "has no value after it.")
    found = re.fullmatch(r"invalid choice: (.*?) \(choose from (.*)\)", found[2])
    if not found:
        return None
    value = found[1].strip("'\"")
    return WrongValue(key, value, _choose(value, _quoted(found[2]) or found[2].split(", ")))


def _choose(value: str, choices: Sequence[str]) -> str:
    near = _did_you_mean(difflib.get_close_matches(value, choices, n=1))
    return f"is {value!r}. Choose from {', '.join(choices)}.{near}"


def _quoted(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def _value_and_problem(said: str) -> tuple[str | None, str]:
    """Return a value and what is wrong with it, from jsonargparse's message about an option."""
    file = NO_FILE.match(said) or NO_CONFIG.match(said)
    if file:
        return file[1], said
    given = re.search(r"(?:Got value|Given value): (.*)$", said)
    if given:
        value = given[1]
        literal = re.search(LITERAL_TYPE, said)
        if literal and "Subtypes" not in said:
            return value, _choose(value, _quoted(literal[1]))
        types = _types(said)
        if types:
            others = f"{', '.join(types[:-1])} or " if len(types) > 1 else ""
            return value, f"is {value!r}; it must be {others}{types[-1]}."
    problem = _class_problem(said) or said.rstrip(".") + "."
    return given[1] if given else None, problem


def _types(said: str) -> list[str]:
    """Return in words the types that a value may have; empty if a type is not in ``TYPE_NAMES``."""
    found = re.search(r"Subtypes: \[(.*?)\] Errors", said)
    found = found or re.search(r"Expected a (.*?)\. Got value", said)
    text = found[1] if found else ""
    words: list[str] = []
    for literal in re.findall(LITERAL_TYPE, text):
        words += map(str, ast.literal_eval(literal))
    text = re.sub(LITERAL_TYPE, "", text)
    if re.search(LIST_TYPE, text):
        words.append(TYPE_NAMES["list"])
        text = re.sub(LIST_TYPE + r"[^]]*\]", "", text)
    names = re.findall(r"<class '(?:[\w.]+\.)?(\w+)'>", text)
    if not TYPE_NAMES.keys() >= set(names):
        return []
    return list(dict.fromkeys([*words, *(TYPE_NAMES[name] for name in names)]))


def _class_problem(said: str) -> str | None:
    """Return what is wrong with a class that an option names, such as a callback, or None."""
    option = re.search(r"class_path '([\w.]+)': .*?Option '(\w+)' is not accepted", said)
    if option:
        return f"names {option[1]}, which has no option {option[2]}."
    name = re.search(r"Expected a dot import path string: (\S+)", said)
    if name:
        return (
            f"names {name[1]}, and there is no such class. Name one with its package, such as "
            "lightning.pytorch.callbacks.EarlyStopping."
        )
    problem = re.search(r"Problem with given class_path '([\w.]+)': (.*?)(?: - |$)", said)
    return f"names {problem[1]}, which cannot be built: {problem[2]}." if problem else None
