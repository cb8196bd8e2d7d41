"""Makes the arrays of a simulated world: its news, its users and their histories.

Users have tastes. A news item has a topic, a headline style whose appeal can be learned from the
title, and a hidden appeal that cannot. A user sees fresh news and clicks those with the highest

    utility = taste for the topic + appeal of the style + hidden appeal - age + Gumbel noise,

so the utility without the noise is the best possible scorer. ``impressions.py`` simulates the
impressions; ``presets.py`` has the sizes.
"""

import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.data.ragged import Ragged, to_offsets
from newsrec.simulation.presets import (
    DAYS,
    FIRST_BIRTHS,
    HISTORY_QUANTILES,
    MIND_HISTORY_QUANTILES,
    POPULARITY_QUANTILES,
    Preset,
    interpolate_quantiles,
)
from newsrec.simulation.vocabulary import CATEGORY_SHARES, MIND_CATEGORY_SHARES, STYLES, TOPICS

WITHDRAWN_EVERY = 100
"""One in this many news items is rarely shown, and is in impressions but in no news.tsv."""

# Calibrated on the demo (tests/test_simulate.py checks the ranges): scorers that use only similar
# topics or words reach a dev AUC near .6, the ceiling is near .8, and much of the difference can be
# learned from titles.
TASTE_SCALE = 2.2
STYLE_SCALE = 1.8
HIDDEN_SCALE = 0.2
DECAY_PER_DAY = 0.4
MILD_TASTE = 0.5
"""Taste for topics in the same category as a strongly liked topic, whose taste is 1."""
TASTE_NOISE = 0.05
"""Standard deviation of the noise added to every taste."""
HISTORY_FOCUS = 4.5
"""How strongly histories follow tastes: topics are drawn with weights ``exp(focus * taste)``."""
FRESH_HISTORY = 0.3
"""Share of a history that is still being shown when the user first appears. With it, as in MIND,
0.25 % of the candidates are already in the history."""
RARE_SHARE = 3.5e-8
"""Share of all clicks that one rarely read news item gets: about one click in MINDlarge's train."""
REREAD = 0.009
"""Share of places in a history that repeat an earlier one; 21 % of MIND's histories have some."""
MIND_QUOTES = 3 / 2000
"""Share of MIND's titles that begin with a quotation mark."""

USER_BLOCK = 1 << 16
"""Users handled at a time, to bound memory."""
SLOT_BLOCK = 1 << 19
"""Places in histories drawn at a time, to bound memory."""


class SimulatedNews(NamedTuple):
    """All news, in the order in which they appear."""

    topic: NDArray[np.int64]
    """Position in ``TOPICS`` ``[news]``."""
    style: NDArray[np.int64]
    """Position in ``STYLES`` ``[news]``."""
    appeal: NDArray[np.float64]
    """Appeal of the style plus hidden appeal, the same for all users ``[news]``."""
    exposure: NDArray[np.float64]
    """How often a news item is shown while fresh, relative to other news ``[news]``."""
    birth: NDArray[np.float64]
    """When a news item appears, in days since the beginning of train ``[news]``."""
    death: NDArray[np.float64]
    """When a news item is no longer shown, in the same days ``[news]``."""
    listed: NDArray[np.bool_]
    """False for news that are in no news.tsv ``[news]``."""
    number: NDArray[np.int64]
    """The number in the id; it is random, so it carries no information ``[news]``."""


def make_news(rng: np.random.Generator, sizes: Preset) -> SimulatedNews:
    """Return the news of the month before train and of the days of the splits."""
    num_late = sum(sizes.daily_news)
    early = rng.uniform(-28, FIRST_BIRTHS, sizes.early_news)
    born = to_offsets(np.array(sizes.daily_news)) / num_late
    late = np.interp(rng.random(num_late), born, FIRST_BIRTHS + np.arange(len(born)))
    birth = np.sort(np.concatenate([early, late]))
    num_news = len(birth)
    # Topics have fixed shares of the early and of the late news, so that histories have all topics.
    topic = np.concatenate(
        [_deal(rng, topic_shares(sizes), size) for size in (sizes.early_news, num_late)]
    )
    style_shares = np.array([style.share for style in STYLES])
    if sizes.like_mind:
        style_shares[[style.name == "quote" for style in STYLES]] = MIND_QUOTES
    style = _deal(rng, style_shares / style_shares.sum(), num_news)
    style_appeal = np.array([style.appeal for style in STYLES])[style]
    appeal = STYLE_SCALE * style_appeal + HIDDEN_SCALE * rng.normal(size=num_news)
    life = np.exp(rng.normal(np.log(sizes.median_life), 0.6, num_news))
    listed = np.arange(num_news) % WITHDRAWN_EVERY != WITHDRAWN_EVERY // 2
    popularity = rng.normal(0, 1.0, num_news)
    if sizes.like_mind:
        share = (popularity.argsort().argsort() + 0.5) / num_news
        # The total number of times shown does not depend on how long a news item lives.
        exposure = interpolate_quantiles(POPULARITY_QUANTILES, share) / np.maximum(life, 0.5)
    else:
        exposure = np.exp(popularity)
    exposure *= np.where(listed, 1, 0.2)
    number = rng.permutation(num_news) + 1
    return SimulatedNews(topic, style, appeal, exposure, birth, birth + life, listed, number)


def topic_shares(sizes: Preset) -> NDArray[np.float64]:
    """Return the share of news in each of ``TOPICS``; topics of a category share it equally."""
    of_category = MIND_CATEGORY_SHARES if sizes.like_mind else CATEGORY_SHARES
    categories = [topic.category for topic in TOPICS]
    shares = np.array([of_category[c] / categories.count(c) for c in categories])
    return shares / shares.sum()


def _deal(rng: np.random.Generator, shares: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Return ``size`` positions in random order; their counts match the shares to within one."""
    points = (np.arange(size) + 0.5) / size
    dealt = np.searchsorted(np.cumsum(shares), points).clip(max=len(shares) - 1)
    return rng.permutation(dealt)


def assign_users(rng: np.random.Generator, sizes: Preset) -> list[NDArray[np.int64]]:
    """Return the users of each split, numbered by their first appearance in the splits."""
    splits: list[NDArray[np.int64]] = []
    known = 0
    for num_users, share in zip(sizes.users, sizes.shared_users, strict=True):
        num_shared = min(round(share * num_users), known)
        old = rng.choice(known, num_shared, replace=False) if num_shared else np.empty(0, np.int64)
        new = np.arange(known, known + num_users - num_shared)
        known += len(new)
        splits.append(np.concatenate([old, new]))
    return splits


def make_tastes(rng: np.random.Generator, sizes: Preset, num_users: int) -> NDArray[np.float32]:
    """Return how much each user likes each topic: near 1 for 2 to 4 topics ``[users, topics]``."""
    categories = [topic.category for topic in TOPICS]
    related = np.array([[a == b for b in categories] for a in categories], dtype=np.float32)
    tastes = np.empty((num_users, len(TOPICS)), dtype=np.float32)
    for begin in range(0, num_users, USER_BLOCK):
        block = tastes[begin : begin + USER_BLOCK]
        # The smallest exponentials divided by shares are a weighted draw without replacement.
        keys = rng.standard_exponential(block.shape) / topic_shares(sizes)
        ranked = np.sort(keys, axis=1)
        num_strong = rng.integers(2, 5, (len(block), 1))
        strong = keys < np.take_along_axis(ranked, num_strong, axis=1)
        mild = (strong @ related > 0) | (keys <= np.take_along_axis(ranked, num_strong, axis=1))
        liked = np.where(strong, 1.0, np.where(mild, MILD_TASTE, 0.0))
        block[:] = liked + TASTE_NOISE * rng.normal(size=block.shape)
    return tastes


def make_histories(
    rng: np.random.Generator,
    sizes: Preset,
    news: SimulatedNews,
    tastes: NDArray[np.float32],
    split_users: list[NDArray[np.int64]],
) -> Ragged:
    """Return the news that each user clicked before, oldest first; a few repeat, as in MIND."""
    num_users = len(tastes)
    quantiles = MIND_HISTORY_QUANTILES if sizes.like_mind else HISTORY_QUANTILES
    lengths = draw_lengths(rng, sizes, quantiles, num_users, 1)
    known = np.maximum.accumulate([users.max() + 1 for users in split_users])
    empty = np.repeat(sizes.empty_histories, np.diff(known, prepend=0))
    lengths[rng.random(num_users) < empty] = 0
    offsets = to_offsets(lengths)
    values = np.empty(offsets[-1], dtype=np.int32)
    first_days = [days[0] for days in DAYS.values()]
    groups = known.tolist() if sizes.like_mind else [num_users]  # first in train, dev, test
    for day, (first, last) in zip(first_days, itertools.pairwise([0, *groups]), strict=False):
        draw = _HistoryDraw(sizes, news, day)
        for begin in range(first, last, USER_BLOCK):
            block = slice(begin, min(begin + USER_BLOCK, last))
            places = slice(offsets[block.start], offsets[block.stop])
            values[places] = draw(rng, tastes[block], lengths[block])
    histories = Ragged(values, offsets)
    if sizes.like_mind:
        _reread(rng, histories, np.arange(len(values)), REREAD)
    return histories


def _reread(
    rng: np.random.Generator, histories: Ragged, places: NDArray[np.int64], share: float
) -> None:
    """Replace the news at a share of the given ascending places by earlier news of the history."""
    places = places[rng.random(len(places), dtype=np.float32) < share]
    start = histories.offsets[np.searchsorted(histories.offsets, places, side="right") - 1]
    places, start = places[places > start], start[places > start]
    earlier = start + (rng.random(len(places)) * (places - start)).astype(np.int64)
    histories.values[places] = histories.values[earlier]


class _HistoryDraw:
    """Draws histories, by topic and appeal, for users who first appear on a given day.

    Histories have news of the month before train and, as in MIND, some that are still being shown.
    """

    def __init__(self, sizes: Preset, news: SimulatedNews, day: int) -> None:
        # Sorted by topic, with cumulative weights: one lookup draws a news item of a given topic.
        fresh = (news.birth < day) & (news.death > day)
        known = np.flatnonzero((news.birth < 0) | fresh)
        self.by_topic = known[np.argsort(news.topic[known], kind="stable")]
        weight = np.exp(news.appeal[self.by_topic])
        if sizes.like_mind:
            weight = weight * news.exposure[self.by_topic]
            fresh = fresh[self.by_topic]
            odds = FRESH_HISTORY / (1 - FRESH_HISTORY)
            weight[fresh] *= odds * weight[~fresh].sum() / weight[fresh].sum()
            rare = np.argsort(weight)[: sizes.rarely_read]
            weight[rare] = RARE_SHARE * weight.sum()
        self.weights = np.cumsum(weight)
        ends = np.searchsorted(news.topic[self.by_topic], np.arange(len(TOPICS)), side="right")
        self.bounds = np.concatenate([[0], self.weights[ends - 1]])
        self.shares = topic_shares(sizes)
        self.num_news = len(news.topic)

    def __call__(
        self, rng: np.random.Generator, tastes: NDArray[np.float32], lengths: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the histories of some users, joined; each in the order in which news appeared."""
        owner = np.repeat(np.arange(len(tastes)), lengths)
        values = np.zeros(len(owner), dtype=np.int64)
        mix = self.shares * np.exp(HISTORY_FOCUS * tastes)
        mix = np.cumsum(mix / mix.sum(axis=1, keepdims=True), axis=1)
        redraw = np.arange(len(values))
        bits = max(len(values), 1).bit_length()
        for _ in range(4):  # draw all, then draw repeats again, three times
            for begin in range(0, len(redraw), SLOT_BLOCK):
                slots = redraw[begin : begin + SLOT_BLOCK]
                topic = (mix[owner[slots], :-1] < rng.random((len(slots), 1))).sum(axis=1)
                low = self.bounds[topic]
                place = low + rng.random(len(slots)) * (self.bounds[topic + 1] - low)
                found = np.searchsorted(self.weights, place, side="right")
                values[slots] = self.by_topic[found]
            key = owner * self.num_news + values
            key = np.sort(key << bits | np.arange(len(key)))  # equal keys side by side, in order
            again = (key[1:] >> bits) == (key[:-1] >> bits)
            redraw = np.sort(key[1:][again] & ((1 << bits) - 1))
        return np.sort(owner * self.num_news + values) - owner * self.num_news


def append_clicks(
    rng: np.random.Generator,
    sizes: Preset,
    histories: Ragged,
    user: NDArray[np.int64],
    news: NDArray[np.integer],
    day: NDArray[np.float64],
) -> Ragged:
    """Return the histories for the next split: the clicks of this split are appended.

    With ``sizes.like_mind``, the oldest clicks are removed so that a history keeps its length,
    unless it was empty: MIND's histories have the same lengths in all splits. Also, some of the new
    clicks are replaced by news that the user read before.

    Args:
        rng: Random number generator.
        sizes: The preset.
        histories: Histories of all users.
        user: Row of ``histories`` for each click ``[clicks]``.
        news: Clicked news ``[clicks]``.
        day: Time of each click ``[clicks]``.
    """
    order = np.lexsort((day, user))
    num_clicks = np.bincount(user, minlength=histories.num_rows)
    clicks = Ragged(news[order], to_offsets(num_clicks))
    old = histories.lengths
    length = old + num_clicks
    if sizes.like_mind:
        length = np.where(old > 0, old, num_clicks)
    kept = np.maximum(length - num_clicks, 0)  # newest clicks kept of the old history
    offsets = to_offsets(length)
    values = np.empty(offsets[-1], dtype=histories.values.dtype)
    old_places = _ranges(offsets[:-1], kept)
    new_places = _ranges(offsets[:-1] + kept, length - kept)
    values[old_places] = histories.values[_ranges(histories.offsets[1:] - kept, kept)]
    values[new_places] = clicks.values[_ranges(clicks.offsets[1:] - (length - kept), length - kept)]
    grown = Ragged(values, offsets)
    if sizes.like_mind:
        # A higher share than at first, since repeats were removed with the oldest clicks.
        _reread(rng, grown, new_places, 1.5 * REREAD)
    return grown


def _ranges(begin: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ranges ``begin[i], begin[i] + 1, ...`` of ``lengths[i]`` numbers each, joined."""
    offsets = to_offsets(lengths)
    return np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], lengths)


def draw_lengths(
    rng: np.random.Generator,
    sizes: Preset,
    quantiles: tuple[tuple[float, float], ...],
    size: int,
    least: int,
) -> NDArray[np.int64]:
    """Draw ``size`` integer lengths from quantiles, scaled by the preset and at least ``least``."""
    # With like_mind, use evenly spaced shares: with random ones, a few long lengths would make the
    # mean vary.
    shares = (rng.permutation(size) + 0.5) / size if sizes.like_mind else rng.random(size)
    first = quantiles[0][0]
    drawn = interpolate_quantiles(quantiles, first + (1 - first) * shares)
    return np.maximum(np.rint(sizes.length_scale * drawn), least).astype(np.int64)
