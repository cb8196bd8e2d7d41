"""What goes into a live recommender: news items and clicks, checked one by one."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from newsrec.errors import UserError
from newsrec.serving.arguments import is_list, require_string, require_whole

LONGEST = {
    "news_id": 256,
    "user_id": 256,
    "title": 10_000,
    "category": 256,
    "subcategory": 256,
    "abstract": 100_000,
}
"""Most characters of each text."""
IDS = ("news_id", "user_id")
"""Texts that must not be empty."""


class NewsItem(NamedTuple):
    """A news item as the newsroom gives it."""

    news_id: str
    title: str
    category: str = ""
    subcategory: str = ""
    abstract: str | None = ""
    """None if it is not known: the files of an export have no abstracts."""
    published: datetime | None = None
    """Time with a zone; None if it is not known."""


class Click(NamedTuple):
    """A click of a user on a news item, which the catalogue may lack."""

    user_id: str
    news_id: str
    time: datetime
    """Time with a zone."""


def check_items(items: Sequence[NewsItem]) -> list[NewsItem]:
    """Check news items, and return each once, in order.

    Raises:
        UserError: If a field is not a text, is too long or cannot be stored, a time has no zone, or
            an id is given twice with different content.
    """
    first: dict[str, NewsItem] = {}
    for place, item in enumerate(_listed(items, NewsItem, "news")):
        for name in NewsItem._fields[:-1]:
            if name != "abstract" or item.abstract is not None:
                check_text(getattr(item, name), name, f"news[{place}].{name}")
        if item.published is not None:
            check_time(item.published, f"news[{place}].published")
        if first.setdefault(item.news_id, item) != item:
            raise UserError(
                f"news holds {item.news_id!r} twice, with different content. Give each item once."
            )
    return list(first.values())


def check_clicks(clicks: Sequence[Click]) -> list[Click]:
    """Check clicks, and return them.

    Raises:
        UserError: If an id is not a text, is empty or too long, or a time has no zone.
    """
    checked: list[Click] = [*_listed(clicks, Click, "clicks")]
    for place, click in enumerate(checked):
        for name in IDS:
            check_text(getattr(click, name), name, f"clicks[{place}].{name}")
        check_time(click.time, f"clicks[{place}].time")
    return checked


def check_text(value: object, name: str, place: str) -> str:
    """Check one text and return it.

    Args:
        value: The text.
        name: A name of ``LONGEST``.
        place: What messages call it.

    Raises:
        UserError: If it is no text, too long, or holds what cannot be stored.
    """
    text = require_string(value, place)
    if len(text) > LONGEST[name]:
        raise UserError(
            f"{place} has {len(text):,} characters; at most {LONGEST[name]:,} are allowed."
        )
    if not text and name in IDS:
        raise UserError(f"{place} is empty; give an id.")
    if "\0" in text:
        raise UserError(f"{place} holds a null character; remove it.")
    require_whole(text, place)
    return text


def check_time(value: object, place: str) -> datetime:
    """Check a time and return it.

    Raises:
        UserError: If it is not a datetime with a zone; ``place`` is what the message calls it.
    """
    if not isinstance(value, datetime):
        raise UserError(f"{place} is {value!r}, a {type(value).__name__}; it must be a datetime.")
    if value.utcoffset() is None:
        raise UserError(
            f"{place} is {value.isoformat()}, which has no zone. Add one: {value.isoformat()}Z is "
            "in UTC."
        )
    return value


def to_micros(time: datetime) -> int:
    """Return the microseconds from 1970 to a time, which may be before."""
    past = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (past.days * 86_400 + past.seconds) * 10**6 + past.microseconds


def to_time(micros: int) -> datetime:
    """Return the time in UTC that is this many microseconds after 1970."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)


def _listed(values: Any, kind: type, name: str) -> Sequence[Any]:
    if not is_list(values):
        raise UserError(f"{name} is a {type(values).__name__}; it must be a list.")
    for place, value in enumerate(values):
        if not isinstance(value, kind):
            raise UserError(f"{name}[{place}] is {value!r}; it must be a {kind.__name__}.")
    return list(values)
