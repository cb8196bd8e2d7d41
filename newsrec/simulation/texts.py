"""The texts of a world of tastes: invented from ``vocabulary.toml`` or taken from a news.tsv."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.errors import UserError
from newsrec.simulation.vocabulary import (
    CATEGORY_SHARES,
    MORE_TOPICS,
    PLACES,
    TIMES,
    TOPICS,
    TOWNS,
    VARIED,
    Topic,
)

TEASERS = 0.25
"""Share of invented titles that do not tell the topic, which only the abstract tells."""
MISSING_ABSTRACTS = 0.05
DESCRIBED = 0.3
"""Share of phrases for things that get an adjective."""
SHORT = 9
"""Words of a title below which every second title gets an ending, such as a time."""
SHORTEST_TO_CUT = 6
"""Words of a title from which a near-duplicate may leave one out."""


class Texts(NamedTuple):
    """The text columns of news.tsv, a string for each news item."""

    category: list[str]
    subcategory: list[str]
    title: list[str]
    abstract: list[str]

    def take(self, rows: NDArray[np.int64]) -> "Texts":
        """Return the texts of some news, in the given order."""
        return Texts(*([column[row] for row in rows] for column in self))


def invent(rng: np.random.Generator, size: int, teasers: bool) -> Texts:
    """Return texts with distinct titles, made from the vocabulary.

    Args:
        rng: Random number generator.
        size: Number of news.
        teasers: Whether some titles leave it to the abstract to tell the topic.
    """
    topics = (*TOPICS, *MORE_TOPICS)
    categories = [topic.category for topic in topics]
    shares = np.array([CATEGORY_SHARES[c] / categories.count(c) for c in categories])
    chosen = [topics[row] for row in rng.choice(len(topics), size, p=shares / shares.sum())]
    taken: set[str] = set()
    rows = []
    for topic in chosen:
        plain, teaser, abstract = _invent_one(rng, topic)
        title = teaser if rng.random() < TEASERS and teasers else plain
        town = TOWNS[int(rng.integers(len(TOWNS)))]
        title = f"{town}: {title}" if title in taken else title
        taken.add(title)
        rows.append((topic.category, topic.subcategory, title, abstract))
    return Texts(*(list(column) for column in zip(*rows, strict=True)))


def _invent_one(rng: np.random.Generator, topic: Topic) -> tuple[str, str, str]:
    """Return a title, a title that does not tell the topic, and an abstract of one news item."""

    def pick(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    who, do, things = pick(topic.who), pick(topic.do), pick(topic.things)
    others = pick([option for option in topic.things if option != things])
    adjectives = [pick(VARIED.adjectives) + " " if rng.random() < DESCRIBED else "" for _ in "12"]
    things, others = adjectives[0] + things, adjectives[1] + others

    def fill(template: str) -> str:
        text = template.format(
            who=who,
            do=do,
            things=things,
            others=others,
            place=pick((*PLACES, *TOWNS)),
            when=pick(TIMES),
            open=pick(VARIED.openings),
            adjective=pick(VARIED.adjectives),
            source=pick(VARIED.sources),
            n=rng.integers(3, 40),
        )
        first = 1 if text[0] == '"' else 0
        return text[:first] + text[first].upper() + text[first + 1 :]

    sentences = [fill(pick(VARIED.sentences)) for _ in range(rng.integers(2, 4))]
    abstract = "" if rng.random() < MISSING_ABSTRACTS else " ".join(dict.fromkeys(sentences))
    title, ending = fill(pick(VARIED.titles)), pick((*TIMES, *VARIED.endings))
    if len(title.split()) < SHORT and title[-1].isalpha() and rng.random() < 0.5:
        title = f"{title} {ending}"
    return title, fill(pick(VARIED.teasers)), abstract


def take_from_table(rng: np.random.Generator, table: pa.Table, size: int, place: str) -> Texts:
    """Return texts drawn from a table of news, each title once.

    Args:
        rng: Random number generator.
        table: News, from ``read_news``.
        size: Number of news.
        place: Name of the table's file, for the error message.

    Raises:
        UserError: If the table has too few titles.
    """
    names = ("category", "subcategory", "title", "abstract")
    columns = {name: table.column(name).to_pylist() for name in names}
    rows_by_title = {title: row for row, title in enumerate(columns["title"]) if title.strip()}
    if len(rows_by_title) < size:
        raise UserError(
            f"{place} has {len(rows_by_title):,} different titles; this preset needs {size:,}. "
            "Name a file with more news as --titles, or choose a smaller --preset."
        )
    rows = np.sort(list(rows_by_title.values()))
    return Texts(*columns.values()).take(rng.permutation(rows)[:size])


def reword(rng: np.random.Generator, texts: Texts, original: NDArray[np.int64]) -> Texts:
    """Return the texts with near-duplicates: the original's texts, the title slightly changed.

    A near-duplicate's title leaves out a word, or begins with a word such as "Update:", or both.

    Args:
        rng: Random number generator.
        texts: The texts of all news.
        original: Row of the original of each near-duplicate, -1 for other news ``[news]``.
    """
    rows = np.where(original >= 0, original, np.arange(len(original)))
    reworded = texts.take(rows)
    for row in np.flatnonzero(original >= 0):
        title = reworded.title[row].split(" ")
        opening = VARIED.updates[int(rng.integers(len(VARIED.updates)))]
        cut, prefixed = rng.integers(1, max(len(title), 2)), rng.random() < 0.5
        if len(title) >= SHORTEST_TO_CUT and (not prefixed or rng.random() < 0.5):
            del title[cut]
        else:
            prefixed = True
        reworded.title[row] = " ".join([f"{opening}:"] * prefixed + title)
    return reworded
