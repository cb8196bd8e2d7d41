"""Checks the arguments of ``fit`` before anything is built."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning import Callback
from lightning.pytorch.loggers import Logger

from newsrec.data.datamodule import MindDataModule
from newsrec.training.module import RecommenderModule


class Rule(NamedTuple):
    """What an argument may be: in words for messages, and as a check."""

    words: str
    holds: Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    number = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return value is None or (number and value >= 1)


def _is_place(value: Any) -> bool:
    return value is None or isinstance(value, str | Path)


def _is_logger(value: Any) -> bool:
    listed = value if isinstance(value, list | tuple) else [value]
    return value is None or isinstance(value, bool) or all(isinstance(o, Logger) for o in listed)


RULES = {
    "output": Rule("a folder, or None", _is_place),
    "resume": Rule("'last', 'best', 'auto', the path of a checkpoint, or None", _is_place),
    "save_every": Rule("a number of steps, 1 or more, or None", _is_count),
    "patience": Rule("a number of validations, 1 or more, or None", _is_count),
    "threads": Rule("a number of threads, 1 or more, or None", _is_count),
    "baselines": Rule("True or False", lambda value: isinstance(value, bool)),
    "logger": Rule(
        "a Logger of Lightning, such as lightning.pytorch.loggers.CSVLogger(...), a list of them, "
        "True, False or None",
        _is_logger,
    ),
}
"""Rule for each argument of ``fit``, besides model, data and the Trainer's other options."""


def check_arguments(model: Any, data: Any, given: Mapping[str, Any]) -> None:
    """Refuse arguments of a wrong type or value.

    Args:
        model: The model.
        data: The data module.
        given: Other arguments by name; those without a rule are not checked.

    Raises:
        TypeError: For the first wrong argument; names its value and what is allowed.
    """
    for name, value, kind in (("model", model, RecommenderModule), ("data", data, MindDataModule)):
        if not isinstance(value, kind):
            found = type(value).__name__
            raise TypeError(f"fit() takes a {kind.__name__} as {name}, not {found}.")
    for name, rule in RULES.items():
        if name in given and not rule.holds(given[name]):
            raise TypeError(f"fit() got {name}={given[name]!r}; give {rule.words}.")


def listed(callbacks: Callback | Sequence[Callback] | None) -> list[Callback]:
    """Return the callbacks as a list.

    Raises:
        TypeError: If one of them is not a callback.
    """
    found = list(callbacks or ()) if isinstance(callbacks, Sequence | None) else [callbacks]
    for callback in found:
        if not isinstance(callback, Callback):
            raise TypeError(f"callbacks has {callback!r}, which is not a Callback of Lightning.")
    return found
