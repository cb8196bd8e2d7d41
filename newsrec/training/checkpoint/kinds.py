"""Checks that values read from a file have the annotated types."""

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from newsrec.console import clipped


class Wrong(Exception):
    """A value is wrong; the message is the second half of a sentence."""


def check_table(
    values: Mapping[str, Any], needed: dict[str, Any], optional: dict[str, Any], where: str
) -> None:
    """Refuse a table with a missing value or a value of the wrong type.

    ``needed`` and ``optional`` have the type of each value, ``where`` is the prefix of names in
    messages, such as ``newsrec.``.
    """
    for name, kind in (needed | optional).items():
        if name in values:
            check_kind(values[name], kind, f"{where}{name}")
        elif name in needed:
            raise Wrong(f"{where}{name} is missing")


def check_known(values: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """Refuse a table with an unknown name."""
    for name in values:
        if name not in known:
            raise Wrong(f"{where} has {shown(name)}, an option that this version does not know")


def check_kind(value: Any, kind: Any, where: str) -> None:
    """Refuse a value that is not of the annotated type; a float must be finite."""
    if dataclasses.is_dataclass(kind):
        check_kind(value, dict[str, Any], where)
        hints = get_type_hints(kind)
        check_known(value, hints, where)
        return check_table(value, {}, hints, f"{where}.")
    if isinstance(value, list) and isinstance(kind, types.UnionType):
        kind = next((one for one in get_args(kind) if get_origin(one) is list), kind)
    if isinstance(value, Mapping) and get_origin(kind) is dict:
        for key, item in value.items():
            inner = f"{where}.{key}" if isinstance(key, str) else where
            check_kind(key, str, f"a key of {where}")
            check_kind(item, get_args(kind)[1], inner)
        return None
    if isinstance(value, list | tuple) and get_origin(kind) in (list, Sequence):
        for place, item in enumerate(value):
            check_kind(item, get_args(kind)[0], f"{where}[{place}]")
        return None
    if not is_of(value, kind):
        raise Wrong(f"{where} is {shown(value)}, and should be {_words(kind)}")
    return None


def is_of(value: Any, kind: Any) -> bool:
    """Return whether a value is of a type; ``check_kind`` handles lists and dicts."""
    if kind is Any:
        return True
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return any(is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is not None:  # check_kind has handled real dicts and lists
        return False
    if kind is float:  # whole numbers may be written without a decimal point
        return type(value) in (int, float) and math.isfinite(value)
    if kind is int:
        return type(value) is int and abs(value) < 2**63
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    plain = {str: "a text", int: "a whole number", bool: "true or false", float: "a finite number"}
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) in (Union, types.UnionType):
        return " or ".join(_words(one) for one in get_args(kind))
    named = {dict: "a table of values by name", Sequence: "a list", Tensor: "a tensor"}
    return (
        plain.get(kind)
        or named.get(get_origin(kind) or kind)
        or ("absent" if kind is type(None) else "a list")
    )


def shown(value: Any) -> str:
    """Return a short description of a value for a message."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Mapping | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    try:
        return clipped(repr(value))
    except ValueError:  # an integer with more digits than Python prints
        return "a number without end"
