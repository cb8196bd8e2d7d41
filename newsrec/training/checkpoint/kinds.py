"""Whether values that were read from a file are of the types that are annotated for them."""

import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from torch import Tensor

from newsrec.model.fastformer import FastformerConfig


class Wrong(Exception):
    """What is wrong, as the second half of a sentence."""


def check_table(
    values: Mapping[str, Any], needed: dict[str, Any], optional: dict[str, Any], where: str
) -> None:
    """Refuse a table that lacks a value, or has one of another type.

    Args:
        values: The table.
        needed: Type of each value that it must hold.
        optional: Type of each value that it may hold.
        where: What precedes a name in messages, such as ``newsrec.``.

    Raises:
        Wrong: Naming the value and what should stand there.
    """
    for name, kind in (needed | optional).items():
        if name in values:
            check_kind(values[name], kind, f"{where}{name}")
        elif name in needed:
            raise Wrong(f"{where}{name} is missing")


def check_known(values: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """Refuse a table with a name that is not known."""
    for name in values:
        if name not in known:
            raise Wrong(f"{where} has {shown(name)}, an option that this version does not know")


def check_kind(value: Any, kind: Any, where: str) -> None:
    """Refuse a value of another type than the one that is annotated; a float must be finite."""
    if kind is FastformerConfig:
        check_kind(value, dict[str, Any], where)
        hints = get_type_hints(FastformerConfig)
        check_known(value, hints, where)
        return check_table(value, {}, hints, f"{where}.")
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
    """Return whether a value is of a type; lists and dicts are for ``check_kind``."""
    if kind is Any:
        return True
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return any(is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is not None:  # a dict or a list, which were looked at
        return False
    if kind is float:  # numbers that are whole may be written without a point
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
    """Return a value as a message quotes it, shortened."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Mapping | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python prints
        text = "a number without end"
    return text if len(text) <= 80 else f"{text[:77]}..."
