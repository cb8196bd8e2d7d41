"""What callers hand over: lists of strings, for one reader or for several."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from newsrec.errors import UserError


class Readers(NamedTuple):
    """Lists of ids, one for each reader."""

    ids: Sequence[Sequence[str]]
    """Ids of each reader ``[readers]``."""
    several: bool
    """Whether a list of lists was given, so that a list of results is due."""


class Found(NamedTuple):
    """Ids looked up in the catalogue."""

    rows: list[int]
    """Rows of the known ones, in order, repeats included ``[known]``."""
    unknown: list[str]
    """The others, each once."""


def readers_of(value: Any, name: str) -> Readers:
    """Tell one reader's ids from a list of readers; an empty list is one reader without any.

    Args:
        value: List of ids, or list of such lists.
        name: What it is called, for messages.

    Raises:
        UserError: If it is neither.
    """
    require_list(value, name)
    if not len(value) or not is_list(value[0]):
        return Readers([value], several=False)
    for reader, ids in enumerate(value):
        require_list(ids, f"{name}[{reader}]")
    return Readers(value, several=True)


def look_up(ids: Sequence[str], rows: Mapping[str, int], name: str) -> Found:
    """Return the rows of the ids that the catalogue knows.

    Args:
        ids: Ids of stories.
        rows: Row of each story of the catalogue.
        name: What the ids are called, for messages.

    Raises:
        UserError: If an id is no string.
    """
    found: list[int] = []
    unknown: dict[str, None] = {}  # a set that keeps the order
    for place, news_id in enumerate(ids):
        # What the catalogue knows is a string, so only the rest is looked at.
        row = rows.get(news_id) if isinstance(news_id, str) else None
        if row is not None:
            found.append(row)
        else:
            unknown[require_string(news_id, f"{name}[{place}]")] = None
    return Found(found, list(unknown))


def require_strings(values: Any, name: str, none_is_empty: bool = False) -> list[str]:
    """Return a list of strings as it is.

    Args:
        values: The list.
        name: What it is called, for messages.
        none_is_empty: Whether None may stand for an empty text.

    Raises:
        UserError: If it is no list, or holds anything else.
    """
    require_list(values, name)
    strings = [
        "" if none_is_empty and value is None else require_string(value, f"{name}[{place}]")
        for place, value in enumerate(values)
    ]
    for place, text in enumerate(strings):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{name}[{place}] is {text!r}, which holds half a character: a text that was cut "
                "before it was decoded. Decode it whole."
            ) from error
    return strings


def require_string(value: Any, name: str) -> str:
    """Return a string as it is.

    Raises:
        UserError: If it is something else.
    """
    if not isinstance(value, str):
        raise UserError(f"{name} is {value!r}, a {type(value).__name__}; it must be a string.")
    return value


def require_list(value: Any, name: str) -> None:
    """Refuse what is no list; a string would be taken for a list of letters.

    Raises:
        UserError: If it is none.
    """
    if not is_list(value):
        hint = f" Give [{value!r}]." if isinstance(value, str) else ""
        raise UserError(f"{name} is a {type(value).__name__}; it must be a list of strings.{hint}")


def is_list(value: Any) -> bool:
    """Return whether a value is a list, or serves as well as one."""
    return isinstance(value, list | tuple | np.ndarray)
