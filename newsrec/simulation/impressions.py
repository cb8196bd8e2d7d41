"""Simulates the impressions of a split: the news shown to users, and their clicks.

List lengths, numbers of clicks and the times of day follow MIND. Impressions are simulated in
blocks that are near in time. In a small world, where a list contains a large part of all fresh
news, each block considers all fresh news for each impression. In a world of MIND's size, news are
drawn at random and drawn again until no list contains a news item twice.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from newsrec.data.ragged import Ragged, to_offsets
from newsrec.simulation.presets import Preset
from newsrec.simulation.visits import Visits, draw_visits
from newsrec.simulation.world import DECAY_PER_DAY, TASTE_SCALE, SimulatedNews

BLOCK = 8192
"""Impressions simulated at a time in a small world, to bound memory."""
BLOCK_DAYS = 1 / 24
"""Length of a block in days, in a world of MIND's size."""
TABLE = 1 << 20
"""Entries of the table that news are drawn from; more entries represent exposure more exactly."""
PLACE_BITS = 9
"""Bits for a position in a list; enough for the longest list."""
MAX_ROUNDS = 1000


class FreshNews(Protocol):
    """What lists are drawn from."""

    @property
    def birth(self) -> NDArray[np.float64]:
        """When a news item appears ``[news]``."""

    @property
    def death(self) -> NDArray[np.float64]:
        """When a news item is no longer shown ``[news]``."""

    @property
    def exposure(self) -> NDArray[np.float64]:
        """How often a news item is shown while fresh, relative to others ``[news]``."""


class Impressions(NamedTuple):
    """The impressions of one split, in the order of its file."""

    user: NDArray[np.int64]
    """Row of each impression's user in the tastes ``[impressions]``."""
    day: NDArray[np.float64]
    """Time in days since the beginning of train ``[impressions]``."""
    candidates: Ragged
    """News shown, as rows of ``SimulatedNews``."""
    labels: NDArray[np.bool_]
    """True where clicked ``[candidates]``."""
    utility: NDArray[np.floating]
    """Utility without the noise ``[candidates]``."""

    def clicks(self) -> tuple[NDArray[np.int64], NDArray[np.integer], NDArray[np.float64]]:
        """Return user, news item and day of each click, in the order of the file ``[clicks]``."""
        clicked = np.flatnonzero(self.labels)
        impression = np.searchsorted(self.candidates.offsets, clicked, side="right") - 1
        return self.user[impression], self.candidates.values[clicked], self.day[impression]


def show(
    rng: np.random.Generator,
    sizes: Preset,
    news: SimulatedNews,
    tastes: NDArray[np.float32],
    users: NDArray[np.int64],
    days: tuple[int, int],
    num_impressions: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Impressions:
    """Show fresh news to a split's users, and let the users click.

    Args:
        rng: Random number generator.
        sizes: The preset.
        news: All news.
        tastes: Tastes of all users ``[users, topics]``.
        users: Rows of ``tastes`` of the split's users.
        days: First day of the split, and the day after its last.
        num_impressions: Number of impressions.
        advance: Called with the number of impressions just simulated.
    """
    visits = draw_visits(rng, sizes, users, days, num_impressions)
    if sizes.like_mind:
        return _show_many(rng, news, tastes, visits, advance)
    return _show_few(rng, news, tastes, visits, advance)


def _show_few(
    rng: np.random.Generator,
    news: SimulatedNews,
    tastes: NDArray[np.float32],
    visits: Visits,
    advance: Callable[[int], None],
) -> Impressions:
    """Consider all fresh news for every impression; a list cannot have more news than are fresh."""
    blocks = []
    for begin in range(0, len(visits.user), BLOCK):
        part = visits.part(slice(begin, begin + BLOCK))
        blocks.append(_show_all_fresh(rng, news, tastes, part))
        advance(len(part.user))
    values, labels, utility, lengths = (
        np.concatenate(arrays) for arrays in zip(*blocks, strict=True)
    )
    candidates = Ragged(values, to_offsets(lengths))
    # MIND's files are not in order of time either.
    order = rng.permutation(len(visits.user))
    labels, utility = (
        Ragged(flat, candidates.offsets).take(order).values for flat in (labels, utility)
    )
    return Impressions(
        visits.user[order], visits.day[order], candidates.take(order), labels, utility
    )


def _show_all_fresh(
    rng: np.random.Generator, news: SimulatedNews, tastes: NDArray[np.float32], visits: Visits
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return news, labels and utilities of impressions near in time, joined, and list lengths."""
    user, day, _, clicks = visits
    listed, real, lengths = draw_fresh_lists(rng, news, day, visits.lengths)
    age = day[:, None] - news.birth[listed]
    utility = TASTE_SCALE * tastes[user[:, None], news.topic[listed]] + news.appeal[listed]
    utility -= DECAY_PER_DAY * age
    noisy = np.where(real, utility + rng.gumbel(size=listed.shape), -np.inf)
    rank = (-noisy).argsort(axis=1).argsort(axis=1)
    label = rank < np.minimum(clicks, lengths - 1)[:, None]
    # Shuffle, since the most exposed news would be first.
    shuffle = np.where(real, rng.random(listed.shape), np.inf).argsort(axis=1)
    flat = [np.take_along_axis(a, shuffle, axis=1)[real] for a in (listed, label, utility)]
    return flat[0], flat[1], flat[2], lengths


def draw_fresh_lists(
    rng: np.random.Generator,
    news: FreshNews,
    day: NDArray[np.float64],
    lengths: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Draw lists of distinct fresh news by exposure, for impressions near in time.

    Args:
        rng: Random number generator.
        news: All news.
        day: Time of each impression, ascending ``[impressions]``.
        lengths: Length of each list; a list cannot have more news than are fresh ``[impressions]``.

    Returns:
        News ``[impressions, longest]``, in the order drawn, so the most exposed tend to be first;
        True where a list has news ``[impressions, longest]``; and the lists' lengths.
    """
    pool = np.flatnonzero((news.birth <= day[-1]) & (news.death > day[0]))
    age = day[:, None] - news.birth[pool]  # [impressions, pool]
    fresh = (age >= 0) & (day[:, None] < news.death[pool])
    # The smallest of independent exponential times are a weighted draw without replacement.
    arrival = rng.standard_exponential(age.shape) / news.exposure[pool]
    arrival[~fresh] = np.inf
    lengths = np.minimum(lengths, fresh.sum(axis=1))
    assert lengths.min() > 1, "the preset has too few news items a day for a click and a skip"
    longest = int(lengths.max())
    chosen = np.argpartition(arrival, min(longest, len(pool) - 1), axis=1)[:, :longest]
    chosen = np.take_along_axis(
        chosen, np.take_along_axis(arrival, chosen, axis=1).argsort(axis=1), axis=1
    )
    real = np.arange(longest) < lengths[:, None]  # [impressions, longest]
    return pool[chosen], real, lengths


def _show_many(
    rng: np.random.Generator,
    news: SimulatedNews,
    tastes: NDArray[np.float32],
    visits: Visits,
    advance: Callable[[int], None],
) -> Impressions:
    """Draw lists from a pool much larger than a list, one hour of impressions at a time."""
    num_impressions = len(visits.user)
    order = rng.permutation(num_impressions)
    offsets = to_offsets(visits.lengths[order])
    # Write each list directly to its position in the file, to avoid a shuffled second copy.
    start = np.empty(num_impressions, dtype=np.int64)
    start[order] = offsets[:-1]
    values = np.empty(offsets[-1], dtype=np.int32)
    labels = np.empty(offsets[-1], dtype=bool)
    utilities = np.empty(offsets[-1], dtype=np.float32)
    hours = np.floor(visits.day / BLOCK_DAYS)
    bounds = [0, *(1 + np.flatnonzero(np.diff(hours))), num_impressions]
    for begin, end in itertools.pairwise(bounds):
        part = visits.part(slice(begin, end))
        flat = to_offsets(part.lengths)
        owner = np.repeat(np.arange(end - begin), part.lengths)
        listed = _draw_lists(rng, news, part.day, owner, flat)
        age = (part.day[owner] - news.birth[listed]).astype(np.float32)
        utility = np.float32(TASTE_SCALE) * tastes[part.user[owner], news.topic[listed]]
        utility += news.appeal[listed].astype(np.float32) - np.float32(DECAY_PER_DAY) * age
        at = np.arange(len(listed)) + (start[begin:end] - flat[:-1])[owner]
        values[at] = listed
        labels[at] = click(rng, utility, part.clicks, owner, flat)
        utilities[at] = utility
        advance(end - begin)
    return Impressions(
        visits.user[order], visits.day[order], Ragged(values, offsets), labels, utilities
    )


def _draw_lists(
    rng: np.random.Generator,
    news: SimulatedNews,
    day: NDArray[np.float64],
    owner: NDArray[np.int64],
    offsets: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return lists of distinct fresh news, drawn by exposure, each in random order ``[places]``.

    Args:
        rng: Random number generator.
        news: All news.
        day: Time of each impression, ascending ``[impressions]``.
        owner: Impression of each place ``[places]``.
        offsets: Where each impression's places begin, and the end ``[impressions + 1]``.
    """
    pool = np.flatnonzero((news.birth <= day[-1]) & (news.death > day[0]))
    assert np.diff(offsets).max() < len(pool) / 2, "the preset has too few news items a day"
    birth, death = news.birth[pool], news.death[pool]
    weight = news.exposure[pool]
    table = np.repeat(np.arange(len(pool)), np.ceil(weight * (TABLE / weight.sum())).astype(int))

    nothing = len(pool)
    drawn = np.full(len(owner), nothing)
    redraw = np.arange(len(owner))  # empty places
    unsettled = redraw  # all places of lists with an empty place
    place_bits = len(owner).bit_length()
    for _ in range(MAX_ROUNDS):
        found = table[rng.integers(len(table), size=len(redraw), dtype=np.int32)]
        when = day[owner[redraw]]
        fresh = (birth[found] <= when) & (when < death[found])
        drawn[redraw] = np.where(fresh, found, nothing)
        key = owner[unsettled] * (len(pool) + 1) + drawn[unsettled]
        key = np.sort(key << place_bits | unsettled)  # puts equal news side by side
        again = key[1:][(key[1:] >> place_bits) == (key[:-1] >> place_bits)]
        drawn[again & ((1 << place_bits) - 1)] = nothing
        redraw = unsettled[drawn[unsettled] == nothing]
        if not len(redraw):
            break
        is_open = np.zeros(len(day), dtype=bool)
        is_open[owner[redraw]] = True
        unsettled = unsettled[is_open[owner[unsettled]]]
    assert not len(redraw), "lists of different news items could not be drawn"
    # Shuffle, since the most exposed news would be first.
    shuffle = owner << 40 | rng.integers(1 << 31, size=len(owner)) << PLACE_BITS
    place = np.arange(len(owner)) - offsets[owner]
    place = np.sort(shuffle | place) & ((1 << PLACE_BITS) - 1)
    return pool[drawn[offsets[owner] + place]]


def click(
    rng: np.random.Generator,
    utility: NDArray[np.float32],
    clicks: NDArray[np.int64],
    owner: NDArray[np.int64],
    offsets: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Return True for each list's ``clicks`` best by utility plus Gumbel noise ``[places]``."""
    waits = rng.standard_exponential(len(utility), dtype=np.float32)  # -log: Gumbel noise
    noisy = utility - np.log(waits + np.finfo(np.float32).tiny)
    noisy = noisy.max() - noisy  # floats from 0 on sort as their bits do
    place = np.arange(len(owner)) - offsets[owner]
    key = owner << 40 | noisy.view(np.int32).astype(np.int64) << PLACE_BITS | place
    best = np.sort(key) & ((1 << PLACE_BITS) - 1)  # places of each list, best first
    num_clicks = np.minimum(clicks, np.diff(offsets) - 1)
    label = np.zeros(len(owner), dtype=bool)
    rank = np.arange(len(owner)) - offsets[owner]
    chosen = np.flatnonzero(rank < num_clicks[owner])
    label[offsets[owner[chosen]] + best[chosen]] = True
    return label
