"""Checks the arguments of a recommender: lists of strings, for one or several users."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from newsrec.console import clipped
from newsrec.errors import UserError


class Found(NamedTuple):
    """Ids looked up in the catalogue."""

    rows: list[int]
    """Rows of the known ids, in order, with repeats ``[known]``."""
    unknown: list[str]
    """The unknown ids, each once."""


def require_one_user(ids: Any, name: str, many: str, once: bool = False) -> None:
    """Check that a value is a list of one user's ids.

    Args:
        ids: The value.
        name: Name of the argument, for messages.
        many: Name of the method for several users, for messages.
        once: As in ``look_up``.

    Raises:
        UserError: If it is a list of lists, or as in ``look_up``.
    """
    if is_list(ids) and len(ids) and is_list(ids[0]):
        raise UserError(f"{name} is a list of lists. Give one user's ids, or call {many}.")
    look_up(ids, {}, name, once)


def look_up(ids: Sequence[str], rows: Mapping[str, int], name: str, once: bool = False) -> Found:
    """Look up the catalogue rows of ids.

    Args:
        ids: Ids of news.
        rows: Catalogue row of each id.
        name: Name of the argument, for messages.
        once: Whether repeated ids are an error.

    Raises:
        UserError: If ``ids`` is not a list, an id is not a string, or ``once`` and an id repeats.
    """
    require_list(ids, name)
    found: list[int] = []
    unknown: dict[str, None] = {}  # a set that keeps the order
    for place, news_id in enumerate(ids):
        if not isinstance(news_id, str):
            require_string(news_id, f"{name}[{place}]")
        row = rows.get(news_id)
        if row is None:
            unknown[news_id] = None
        else:
            found.append(row)
    if once and len(set(ids)) < len(ids):
        twice = next(news_id for place, news_id in enumerate(ids) if news_id in ids[:place])
        raise UserError(f"{name} holds {twice!r} twice. Give each candidate once.")
    return Found(found, list(unknown))


def require_strings(values: Any, name: str, none_is_empty: bool = False) -> list[str]:
    """Check that a value is a list of strings, and return it.

    Args:
        values: The value.
        name: Name of the argument, for messages.
        none_is_empty: Whether None is allowed and becomes an empty string.

    Raises:
        UserError: If it is not a list, or an element is not a string of valid Unicode.
    """
    require_list(values, name)
    strings = [
        "" if none_is_empty and value is None else require_string(value, f"{name}[{place}]")
        for place, value in enumerate(values)
    ]
    for place, text in enumerate(strings):
        require_whole(text, f"{name}[{place}]")
    return strings


def require_whole(text: str, name: str) -> None:
    """Check that a text has no half characters, which no file can hold.

    Raises:
        UserError: If it has.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} is {clipped(text)!r}, which holds half a character: a text that was cut "
            "before it was decoded. Decode it whole."
        ) from error


def require_string(value: Any, name: str) -> str:
    """Check that a value is a string, and return it.

    Raises:
        UserError: If it is not a string.
    """
    if not isinstance(value, str):
        raise UserError(f"{name} is {value!r}, a {type(value).__name__}; it must be a string.")
    return value


def require_list(value: Any, name: str) -> None:
    """Check that a value is a list; a string would be taken for a list of letters.

    Raises:
        UserError: If it is not a list.
    """
    if not is_list(value):
        hint = f" Give [{value!r}]." if isinstance(value, str) else ""
        raise UserError(f"{name} is a {type(value).__name__}; it must be a list of strings.{hint}")


def is_list(value: Any) -> bool:
    """Return whether a value is a list, a tuple or a NumPy array."""
    return isinstance(value, list | tuple | np.ndarray)
