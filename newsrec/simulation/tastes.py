"""Makes worlds in which abilities of a model can be told apart: the presets ``tastes*``.

Users have one to six interests, which drift. They see a list of fresh news in a random order, and
click the news with the highest

    utility = match with the best-matching interest + appeal + hidden appeal - age - position
              - (a near-duplicate of it was read) + Gumbel noise.

The files have the candidates in another random order, as MIND's files have, so nobody who reads
them knows the position. ``effects.py`` names the effects that can be switched off. Each purpose has
its own random generator, so a switch changes only what it says.
"""

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.data.dataset import SPLITS
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.simulation.impressions import BLOCK, Impressions, click, draw_fresh_lists
from newsrec.simulation.interests import (
    Interests,
    draw_histories,
    draw_interests,
    week_of,
)
from newsrec.simulation.presets import DAYS, Preset
from newsrec.simulation.taste_news import TasteNews, make_news
from newsrec.simulation.visits import draw_visits
from newsrec.simulation.world import append_clicks, assign_users

TASTE_SCALE = 7.7
DECAY_PER_DAY = 0.3
POSITION_SCALE = 0.3
"""What a list's place costs, times the logarithm of the place, counted from 1."""
READ_BEFORE = 2.5
"""What it costs a news item that the user has read a near-duplicate of it."""

PURPOSES = (
    "texts", "days", "topics", "duplicates", "appeal", "users", "interests", "histories", "visits",
    "lists", "order", "position", "clicks",
)  # fmt: skip


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
        duplicates=-READ_BEFORE * had_twin.astype(np.float64),
    )
    utility = np.sum(parts, axis=0).astype(np.float32)
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
