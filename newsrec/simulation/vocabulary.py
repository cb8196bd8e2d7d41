"""The words of the simulated world, read from ``vocabulary.toml``."""

import tomllib
from importlib.resources import files
from typing import Any, NamedTuple


class Topic(NamedTuple):
    """What a subcategory's headlines are made of."""

    category: str
    subcategory: str
    who: tuple[str, ...]
    """Subjects."""
    do: tuple[str, ...]
    """What they do, in the base form."""
    things: tuple[str, ...]
    """What is talked about, in the plural."""


class Style(NamedTuple):
    """A way to word a headline, and how it draws users of any taste."""

    name: str
    appeal: float
    """Added to the utility of all news in this style."""
    share: float
    """How often news comes in this style, relative to the others."""
    templates: tuple[str, ...]


def _frozen(table: dict[str, Any]) -> dict[str, Any]:
    """Return a table with tuples for lists."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in table.items()}


_WORDS = tomllib.loads(files(__package__).joinpath("vocabulary.toml").read_text(encoding="utf-8"))
CATEGORY_SHARES: dict[str, float] = _WORDS["category_shares"]
MIND_CATEGORY_SHARES: dict[str, float] = _WORDS["mind_category_shares"]
PLACES, TIMES, ABSTRACTS = _WORDS["places"], _WORDS["times"], _WORDS["abstracts"]
TOWNS = [start + end for start in _WORDS["town_starts"] for end in _WORDS["town_ends"]]
STYLES = tuple(Style(**_frozen(style)) for style in _WORDS["styles"])
TOPICS = tuple(Topic(**_frozen(topic)) for topic in _WORDS["topics"])
