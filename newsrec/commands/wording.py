"""What a parser says, in words of a person; standard library alone.

The messages taken apart are those of jsonargparse 4.53 and of argparse; one that is not known stays
as it is, and ``tests/test_errors.py`` fails where they change.
"""

import ast
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "NoneType": "null",
    "list": "a list such as [a, b]",
    "Sequence": "a list such as [a, b]",
    "dict": "a mapping such as {a: 1}",
}
"""How a type of Python is called."""

ALIASES = {
    "batch-size": "data.batch_size",
    "checkpoint": "ckpt_path",
    "ckpt": "ckpt_path",
    "data": "data.root",
    "data_dir": "data.root",
    "epochs": "trainer.max_epochs",
    "gpus": "trainer.devices",
    "learning_rate": "model.lr",
    "model.skip": "model.residual",
    "resume": "ckpt_path",
    "steps": "trainer.max_steps",
    "workers": "data.num_workers",
}
"""What other programs call an option."""

COLLECTED = r"(?:list|Sequence|collections\.abc\.\w+)\["


class Complaint(NamedTuple):
    """A parser's message, taken apart."""

    key: str | None
    """The option that it is about, as far as one is."""
    value: str | None
    """The value that was given for it."""
    text: str
    """What is wrong with it, to stand behind the option's place."""


def complaint(message: str) -> Complaint:
    """Return what a parser's message is about.

    Args:
        message: As jsonargparse and argparse word it.
    """
    text = " ".join(message.split())
    inner = [m.start() for m in re.finditer(r'Parser key "', text)]
    if len(inner) > 1 and "Unable to load config" in text[: inner[-1]]:
        text = text[inner[-1] :]
    found = re.fullmatch(r'Parser key "([\w.]+)": (.*)', text)
    if found:
        return _of_value(found[1], found[2])
    found = re.fullmatch(r"argument (\S+): invalid choice: (.*?) \(choose from (.*)\)", text)
    if found:
        key, value = _option(found[1]), found[2].strip("'\"")
        choices = re.findall(r"'([^']*)'", found[3]) or found[3].split(", ")
        return Complaint(key, value, f"is {value!r}. {_choose(value, choices)}")
    found = re.fullmatch(r"argument (\S+): expected (?:one|at least one) argument", text)
    if found:
        return Complaint(_option(found[1]), None, "has no value behind it.")
    return Complaint(None, None, text)


def near_options(name: str, known: Iterable[str]) -> list[str]:
    """Return what a mistyped option may have meant, the likeliest first.

    Args:
        name: Without dashes in front.
        known: All options that there are, without dashes.
    """
    name, all_known = name.rstrip("+").lower(), [k for k in known if not k.endswith("+")]
    wanted = name.replace("-", "_")
    hyphened = [k for k in all_known if k.replace("-", "_") == wanted]
    alias = ALIASES.get(wanted) or ALIASES.get(name)
    last = wanted.rpartition(".")[2]
    ends = [k for k in all_known if k.rpartition(".")[2] == last] if last else []
    for found in (hyphened, [alias] if alias in all_known else [], ends):
        if found:
            return found[:3]
    near = difflib.get_close_matches(wanted, all_known, n=1, cutoff=0.7)
    if near or len(last) < 3:
        return near
    by_end = {k.rpartition(".")[2]: k for k in all_known}
    ends = difflib.get_close_matches(last, by_end, n=1, cutoff=0.75)
    return [by_end[end] for end in ends]


def did_you_mean(names: Sequence[str]) -> str:
    """Return the question, with a space in front; nothing without names."""
    return f" Did you mean {' or '.join(names)}?" if names else ""


def _option(names: str) -> str:
    """Return an option's key from the names argparse lists: ``--a.b/--a.b+``, ``-k``."""
    return names.split("/")[0].lstrip("-")


def _choose(value: str, choices: Sequence[str]) -> str:
    near = difflib.get_close_matches(value, choices, n=1)
    return f"Choose from {', '.join(choices)}.{did_you_mean(near)}"


def _of_value(key: str, said: str) -> Complaint:
    """Take apart what is said of one option's value."""
    missing = re.match(r"(File does not exist|Path is not a file): '?(.*?)'?$", said)
    if missing:
        return Complaint(key, missing[2], said)
    unread = re.match(r"Unable to load config [\"'](.*?)[\"']", said)
    if unread:
        return Complaint(key, unread[1], said)
    value = re.search(r"(?:Got value|Given value): (.*)$", said)
    given = value[1] if value else None
    choices = re.search(r"typing\.Literal\[([^]]*)\]", said)
    if choices and given is not None and "Subtypes" not in said:
        names = re.findall(r"'([^']*)'", choices[1])
        return Complaint(key, given, f"is {given!r}. {_choose(given, names)}")
    kinds = _kinds(said)
    if given is not None and kinds:
        others = f"{', '.join(kinds[:-1])} or " if len(kinds) > 1 else ""
        return Complaint(key, given, f"is {given!r}; it must be {others}{kinds[-1]}.")
    reason = _class_reason(said)
    if reason:
        return Complaint(key, given, reason)
    return Complaint(key, given, said.rstrip(".") + ".")


def _kinds(said: str) -> list[str] | None:
    """Return what a value may be, in words; None where that takes a class of Python."""
    subtypes = re.search(r"Subtypes: \[(.*?)\] Errors", said)
    found = subtypes or re.search(r"Expected a (.*?)\. Got value", said)
    text = found[1] if found else ""
    words: list[str] = []
    for literal in re.findall(r"typing\.Literal(\[[^]]*\])", text):
        words += [str(choice) for choice in ast.literal_eval(literal)]
    text = re.sub(r"typing\.Literal\[[^]]*\]", "", text)
    if re.search(COLLECTED, text):
        words.append(KINDS["list"])
        text = re.sub(COLLECTED + r"[^]]*\]", "", text)
    for name in re.findall(r"<class '(?:[\w.]+\.)?(\w+)'>", text):
        if name not in KINDS:
            return None
        words.append(KINDS[name])
    return list(dict.fromkeys(words))


def _class_reason(said: str) -> str | None:
    """Return what is wrong with a class that an option names, such as a callback."""
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
    return f"names {problem[1]}, which cannot be made: {problem[2]}." if problem else None
