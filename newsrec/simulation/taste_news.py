"""Makes the news of a world of tastes: texts, what they are about, appeal, days."""

import re
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.simulation.contents import Contents, read_contents
from newsrec.simulation.interests import match_news
from newsrec.simulation.presets import DAYS, FIRST_BIRTHS, Preset
from newsrec.simulation.texts import Texts, invent, reword, take_from_table
from newsrec.simulation.vocabulary import APPEAL_WORDS
from newsrec.simulation.world import WITHDRAWN_EVERY

READ_APPEAL = 0.6
"""Standard deviation of the appeal that titles show."""
HIDDEN_APPEAL = 0.2
"""Standard deviation of the appeal that no text shows."""
DUPLICATES = 0.15
"""Share of news that are near-duplicates of one that appeared up to ``TWIN_DAYS`` before."""
TWIN_DAYS = 7
NEW_TOPICS = 0.03
"""Share of news, about, in subcategories that have no news before the test week."""
LARGEST_NEW = 0.03
"""Largest share of news of such a subcategory."""
MARKS = r"[^\W\d_]+|[?!:\"]|\d+"


class TasteNews(NamedTuple):
    """All news of a world of tastes, in the order in which they appear."""

    texts: Texts
    contents: Contents
    match: NDArray[np.float32]
    """How well a news item (second axis) matches an interest (first axis) ``[news, news]``."""
    original: NDArray[np.int64]
    """Row of the news item that a near-duplicate repeats, -1 for other news ``[news]``."""
    is_late: NDArray[np.bool_]
    """True for news in subcategories that begin in the test week ``[news]``."""
    appeal: NDArray[np.float64]
    """Appeal that the title shows ``[news]``."""
    hidden: NDArray[np.float64]
    """Appeal that no text shows ``[news]``."""
    exposure: NDArray[np.float64]
    birth: NDArray[np.float64]
    death: NDArray[np.float64]
    listed: NDArray[np.bool_]
    number: NDArray[np.int64]
    """As in ``SimulatedNews`` ``[news]``."""

    def lines(self) -> list[str]:
        """Return the news.tsv line of each news item."""
        rows = zip(self.number.tolist(), *self.texts, strict=True)
        return [
            "\t".join((f"N{n}", *texts, f"https://example.org/N{n}", "[]", "[]")) + "\n"
            for n, *texts in rows
        ]


def make_news(
    rngs: dict[str, np.random.Generator],
    sizes: Preset,
    effects: Collection[str],
    titles: tuple[str, pa.Table] | None,
) -> TasteNews:
    """Make all news.

    Args:
        rngs: Generators, from ``make_generators``.
        sizes: The preset.
        effects: Names of the effects that the world has.
        titles: Name of a news.tsv and its content; texts are invented if it is None.
    """
    rng, num_news = rngs["days"], sizes.num_news
    early = rng.uniform(-28, FIRST_BIRTHS, sizes.early_news)
    days = np.repeat(FIRST_BIRTHS + np.arange(len(sizes.daily_news)), sizes.daily_news)
    birth = np.sort(np.concatenate([early, days + rng.random(len(days))]))
    life = np.exp(rng.normal(np.log(sizes.median_life), 0.6, num_news))
    listed = np.arange(num_news) % WITHDRAWN_EVERY != WITHDRAWN_EVERY // 2
    exposure = np.exp(rng.normal(0, 1.0, num_news)) * np.where(listed, 1, 0.2)
    number = rng.permutation(num_news) + 1

    if titles is None:
        texts = invent(rngs["texts"], num_news, "abstracts" in effects)
    else:
        path, table = titles
        texts = take_from_table(rngs["texts"], table, num_news, path)
    is_late = _choose_late(rngs["topics"], texts.subcategory)
    order = _move_to_test(rngs["topics"], is_late, birth)
    if "new_topics" in effects:
        texts, is_late = texts.take(order), is_late[order]
    else:
        is_late = np.zeros(num_news, dtype=bool)
    original = _choose_originals(rngs["duplicates"], birth, exposure)
    if "duplicates" not in effects:
        original[:] = -1
    texts = reword(rngs["duplicates"], texts, original)
    is_twin = original >= 0
    is_late = is_late[np.where(is_twin, original, np.arange(num_news))]
    contents = read_contents(texts, "abstracts" in effects)
    appeal = READ_APPEAL * _read_appeal(rngs["appeal"], texts.title, contents)
    hidden = HIDDEN_APPEAL * rngs["appeal"].normal(size=num_news)
    if "appeal" not in effects:
        appeal, hidden = np.zeros(num_news), np.zeros(num_news)
    match = match_news(contents.full, contents.full)
    return TasteNews(
        texts, contents, match, original, is_late, appeal, hidden,
        exposure, birth, birth + life, listed, number,
    )  # fmt: skip


def _choose_late(rng: np.random.Generator, subcategories: list[str]) -> NDArray[np.bool_]:
    """Return True for the news of some subcategories, about ``NEW_TOPICS`` of all ``[news]``."""
    names, which, counts = np.unique(subcategories, return_inverse=True, return_counts=True)
    limit = NEW_TOPICS * len(subcategories)
    late = np.zeros(len(names), dtype=bool)
    for name in rng.permutation(len(names)):
        small = counts[name] <= LARGEST_NEW * len(subcategories)
        late[name] = small and counts[late].sum() + counts[name] <= limit
    return late[which]


def _move_to_test(
    rng: np.random.Generator, is_late: NDArray[np.bool_], birth: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the order of texts in which late news and others trade places ``[news]``."""
    order = np.arange(len(birth))
    in_test = birth >= DAYS["test"][0]
    moved = np.flatnonzero(is_late & ~in_test)
    places = rng.permutation(np.flatnonzero(in_test & ~is_late))[: len(moved)]
    assert len(places) == len(moved), "the preset has too few news items in the test week"
    order[moved], order[places] = places, moved
    return order


def _choose_originals(
    rng: np.random.Generator, birth: NDArray[np.float64], exposure: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the row that each near-duplicate repeats, -1 for other news ``[news]``.

    News that is shown often is repeated often.
    """
    original = np.full(len(birth), -1)
    first = np.searchsorted(birth, birth - TWIN_DAYS)
    able = np.flatnonzero(first < np.arange(len(birth)) - 1)
    twins = rng.choice(able, round(DUPLICATES * len(birth)), replace=False)
    for twin in np.sort(twins):
        earlier = np.arange(first[twin], twin)
        row = int(rng.choice(earlier, p=exposure[earlier] / exposure[earlier].sum()))
        original[twin] = row if original[row] < 0 else original[row]
    return original


def _read_appeal(
    rng: np.random.Generator, titles: list[str], contents: Contents
) -> NDArray[np.float64]:
    """Return the appeal that titles show, with a standard deviation of 1 ``[news]``.

    Half of it comes from single words and marks, half from a direction of the content vectors.
    """
    in_words = np.empty(len(titles))
    for row, title in enumerate(titles):
        marks = {"#" if mark[0].isdigit() else mark for mark in re.findall(MARKS, title.lower())}
        in_words[row] = sum(APPEAL_WORDS.get(mark, 0) for mark in sorted(marks))
    in_content = contents.no_abstract @ rng.normal(size=contents.no_abstract.shape[1])
    return _standard(_standard(in_words) + _standard(in_content))


def _standard(values: NDArray[np.floating]) -> NDArray[np.float64]:
    spread = values.std()
    return (values - values.mean()) / (spread if spread > 0 else 1)
