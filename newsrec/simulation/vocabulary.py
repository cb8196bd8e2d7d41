"""The words of the simulated world, read from ``vocabulary.toml``."""

import re
import tomllib
from importlib.resources import files
from typing import Any, NamedTuple


class Topic(NamedTuple):
    """The words for the headlines of a subcategory."""

    category: str
    subcategory: str
    who: tuple[str, ...]
    """Subjects of sentences."""
    do: tuple[str, ...]
    """Verb phrases, in the base form."""
    things: tuple[str, ...]
    """Subject matter, in the plural."""


class Style(NamedTuple):
    """A headline style, and how strongly it attracts all users, whatever their taste."""

    name: str
    appeal: float
    """Added to the utility of all news in this style."""
    share: float
    """How often news have this style, relative to other styles."""
    templates: tuple[str, ...]


def _frozen(table: dict[str, Any]) -> dict[str, Any]:
    """Return a table with its lists turned into tuples."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in table.items()}


_WORDS = tomllib.loads(files(__package__).joinpath("vocabulary.toml").read_text(encoding="utf-8"))
CATEGORY_SHARES: dict[str, float] = _WORDS["category_shares"]
MIND_CATEGORY_SHARES: dict[str, float] = _WORDS["mind_category_shares"]
PLACES, TIMES, ABSTRACTS = _WORDS["places"], _WORDS["times"], _WORDS["abstracts"]
TOWNS = [start + end for start in _WORDS["town_starts"] for end in _WORDS["town_ends"]]
STYLES = tuple(Style(**_frozen(style)) for style in _WORDS["styles"])
TOPICS = tuple(Topic(**_frozen(topic)) for topic in _WORDS["topics"])


class Varied(NamedTuple):
    """The sentences of worlds of tastes, with more variety than the styles have."""

    titles: tuple[str, ...]
    teasers: tuple[str, ...]
    """Titles that do not tell the topic."""
    sentences: tuple[str, ...]
    """Sentences of abstracts."""
    openings: tuple[str, ...]
    endings: tuple[str, ...]
    adjectives: tuple[str, ...]
    sources: tuple[str, ...]
    updates: tuple[str, ...]
    """What the title of a near-duplicate begins with."""


VARIED = Varied(**_frozen(_WORDS["varied"]))
MORE_TOPICS = tuple(Topic(**_frozen(topic)) for topic in _WORDS["more_topics"])
"""Topics of worlds of tastes alone."""
APPEAL_WORDS: dict[str, float] = _WORDS["appeal_words"]
"""How much a word or mark of a title adds to the appeal of news in worlds of tastes."""


def entity_types() -> dict[str, str]:
    """Return the type of each named entity in the topics and places: PER, ORG or LOC."""
    found = dict.fromkeys(PLACES, "LOC")
    for subject in (who for topic in (*TOPICS, *MORE_TOPICS) for who in topic.who):
        if name := re.fullmatch(r"(?!the )[a-z]+ ([A-Z]\w+ [A-Z]\w+)", subject):
            found[name[1]] = "PER"  # a role and a name, such as actress Cora Delane
        elif name := re.fullmatch(r"the ([A-Z]\w+(?: [A-Z]\w+)*)", subject):
            found[name[1]] = "ORG"
    return found
