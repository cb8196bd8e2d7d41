"""Makes worlds in which abilities of a model can be told apart: the presets ``tastes*``.

Users have one to six interests, which drift. They see a list of fresh news in a random order, and
click the news with the highest

    utility = match with the best-matching interest + appeal + hidden appeal - age - position
              - (a near-duplicate of it was read) + Gumbel noise.

The files have the candidates in another random order, as MIND's files have, so nobody who reads
them knows the position. ``effects.py`` names the effects that can be switched off. Each purpose has
its own random generator, so a switch changes only what it says.
"""

import re
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.data.dataset import SPLITS
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.simulation.contents import Contents, read_contents
from newsrec.simulation.impressions import BLOCK, Impressions, click, draw_fresh_lists
from newsrec.simulation.interests import (
    Interests,
    draw_histories,
    draw_interests,
    match_news,
    week_of,
)
from newsrec.simulation.presets import DAYS, FIRST_BIRTHS, Preset
from newsrec.simulation.texts import Texts, invent, reword, take_from_table
from newsrec.simulation.visits import draw_visits
from newsrec.simulation.vocabulary import APPEAL_WORDS
from newsrec.simulation.world import WITHDRAWN_EVERY, append_clicks, assign_users

TASTE_SCALE = 7.7
READ_APPEAL = 0.6
"""Standard deviation of the appeal that titles show."""
HIDDEN_APPEAL = 0.2
"""Standard deviation of the appeal that no text shows."""
DECAY_PER_DAY = 0.3
POSITION_SCALE = 0.3
"""What a list's place costs, times the logarithm of the place, counted from 1."""
READ_BEFORE = 2.5
"""What it costs a news item that the user has read a near-duplicate of it."""
DUPLICATES = 0.15
"""Share of news that are near-duplicates of one that appeared up to ``TWIN_DAYS`` before."""
TWIN_DAYS = 7
NEW_TOPICS = 0.03
"""Share of news, about, in subcategories that have no news before the test week."""
LARGEST_NEW = 0.03
"""Largest share of news of such a subcategory."""
MARKS = r"[^\W\d_]+|[?!:\"]|\d+"

PURPOSES = (
    "texts", "days", "topics", "duplicates", "appeal", "users", "interests", "histories", "visits",
    "lists", "order", "position", "clicks",
)  # fmt: skip


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


class Parts(NamedTuple):
    """What the utility of each candidate consists of; their sum is the utility ``[candidates]``."""

    taste: NDArray[np.float64]
    appeal: NDArray[np.float64]
    hidden: NDArray[np.float64]
    freshness: NDArray[np.float64]
    position: NDArray[np.float64]
    duplicates: NDArray[np.float64]


class TasteSplit(NamedTuple):
    """One split of a world of tastes, before it is written."""

    name: str
    shown: Impressions
    """The impressions, in the order of the file; their users are rows of ``histories``."""
    parts: Parts
    histories: Ragged
    """News that each user of the world clicked before, oldest first."""


class TasteWorld(NamedTuple):
    """A world of tastes, before its impressions."""

    news: TasteNews
    interests: Interests
    effects: frozenset[str]
    split_users: list[NDArray[np.int64]]
    user_numbers: NDArray[np.int64]
    """The number in each user's id ``[users]``."""


def make_generators(seed: int) -> dict[str, np.random.Generator]:
    """Return a random number generator for each of ``PURPOSES``."""
    children = np.random.SeedSequence(seed).spawn(len(PURPOSES))
    return {
        name: np.random.Generator(np.random.PCG64(child))
        for name, child in zip(PURPOSES, children, strict=True)
    }


def make_world(
    rngs: dict[str, np.random.Generator],
    sizes: Preset,
    effects: Collection[str],
    titles: tuple[str, pa.Table] | None = None,
) -> TasteWorld:
    """Make a world's news and users.

    Args:
        rngs: Generators, from ``make_generators``.
        sizes: The preset.
        effects: Names of the effects that the world has.
        titles: Name of a news.tsv and its content; texts are invented if it is None.
    """
    news = make_news(rngs, sizes, effects, titles)
    split_users = assign_users(rngs["users"], sizes)
    num_users = 1 + max(int(users.max()) for users in split_users)
    user_numbers = rngs["users"].permutation(num_users) + 1
    interests = draw_interests(rngs["interests"], num_users, news.is_late, effects)
    return TasteWorld(news, interests, frozenset(effects), split_users, user_numbers)


def make_news(
    rngs: dict[str, np.random.Generator],
    sizes: Preset,
    effects: Collection[str],
    titles: tuple[str, pa.Table] | None,
) -> TasteNews:
    """Make all news; the arguments are those of ``make_world``."""
    rng, num_news = rngs["days"], sizes.num_news
    early = rng.uniform(-28, FIRST_BIRTHS, sizes.early_stories)
    days = np.repeat(FIRST_BIRTHS + np.arange(len(sizes.daily_stories)), sizes.daily_stories)
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
    assert len(places) == len(moved), "the preset has too few stories in the test week"
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


def show_splits(
    rngs: dict[str, np.random.Generator],
    sizes: Preset,
    world: TasteWorld,
    advance: Callable[[int], None] = lambda done: None,
) -> Iterator[TasteSplit]:
    """Yield a world's splits in order of time.

    Args:
        rngs: Generators, from ``make_generators``.
        sizes: The preset.
        world: The world.
        advance: Called with the number of impressions just simulated.
    """
    news = world.news
    attraction = np.log(news.exposure) / 2 + news.appeal + news.hidden
    histories = draw_histories(
        rngs["histories"], sizes, news.birth, attraction, TASTE_SCALE, world.interests, news.match,
        world.split_users,
    )  # fmt: skip
    for name, users, number in zip(SPLITS, world.split_users, sizes.impressions, strict=False):
        split = _show(rngs, sizes, world, name, users, number, histories, advance)
        yield split
        histories = append_clicks(rngs["clicks"], sizes, histories, *split.shown.clicks())


def _show(
    rngs: dict[str, np.random.Generator],
    sizes: Preset,
    world: TasteWorld,
    name: str,
    users: NDArray[np.int64],
    num_impressions: int,
    histories: Ragged,
    advance: Callable[[int], None],
) -> TasteSplit:
    news, effects = world.news, world.effects
    visits = draw_visits(rngs["visits"], sizes, users, DAYS[name], num_impressions)
    blocks: list[NDArray[np.int64]] = []
    block_lengths: list[NDArray[np.int64]] = []
    for begin in range(0, num_impressions, BLOCK):
        part = visits.part(slice(begin, begin + BLOCK))
        rows, real, lengths = draw_fresh_lists(rngs["lists"], news, part.day, part.lengths)
        blocks.append(rows[real])
        block_lengths.append(lengths)
        advance(len(lengths))
    candidates = Ragged(np.concatenate(blocks), to_offsets(np.concatenate(block_lengths)))
    # The lists are drawn most exposed news first, so they are shuffled for the file, and MIND's
    # files are not in order of time either.
    order = rngs["order"].permutation(num_impressions)
    candidates = candidates.take(order)
    user, day, clicks = visits.user[order], visits.day[order], visits.clicks[order]
    owner, offsets = candidates.owners(), candidates.offsets
    rows = candidates.values[_shuffled(rngs["order"], owner)]
    # The order in which the user saw the list is another one.
    place = np.empty(len(rows), dtype=np.int64)
    place[_shuffled(rngs["position"], owner)] = np.arange(len(rows)) - offsets[owner]

    affinity = world.interests.affinity(news.match, user[owner], week_of(day)[owner], rows)
    had_twin = has_read_twin(histories, news.original, user[owner], rows)
    parts = Parts(
        taste=TASTE_SCALE * affinity.astype(np.float64),
        appeal=news.appeal[rows],
        hidden=news.hidden[rows],
        freshness=-DECAY_PER_DAY * ("freshness" in effects) * (day[owner] - news.birth[rows]),
        position=-POSITION_SCALE * ("position" in effects) * np.log(1 + place),
        duplicates=-READ_BEFORE * had_twin,
    )
    utility = sum(parts).astype(np.float32)
    labels = click(rngs["clicks"], utility, clicks, owner, offsets)
    shown = Impressions(user, day, Ragged(rows, offsets), labels, utility)
    return TasteSplit(name, shown, parts, histories)


def _shuffled(rng: np.random.Generator, owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places, in a random order within each list ``[places]``."""
    return np.lexsort((rng.random(len(owner)), owner))


def has_read_twin(
    histories: Ragged,
    original: NDArray[np.int64],
    user: NDArray[np.int64],
    news: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Return whether users have read another news item with the same original ``[pairs]``.

    Args:
        histories: Histories of all users.
        original: Row of the original of each near-duplicate, -1 for other news ``[news]``.
        user: User of each pair ``[pairs]``.
        news: News item of each pair ``[pairs]``.
    """
    num_news = len(original)
    group = np.where(original >= 0, original, np.arange(num_news))
    read = histories.owners() * num_news
    groups, counts = np.unique(read + group[histories.values], return_counts=True)
    asked = user * num_news + group[news]
    place = np.minimum(np.searchsorted(groups, asked), len(groups) - 1)
    number = np.where(groups[place] == asked, counts[place], 0) if len(groups) else 0 * asked
    return number > np.isin(user * num_news + news, read + histories.values)
