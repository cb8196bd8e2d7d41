"""The simulated world itself: its stories, its readers and what they read before, as arrays.

Readers have tastes. Stories have a topic, a headline style whose appeal can be read in the title,
and an appeal of their own that cannot. A reader looks at fresh stories and clicks the best by

    utility = taste for the topic + appeal of the style + hidden appeal - age + Gumbel noise,

so the utility without the noise is the best scorer there can be. ``impressions.py`` shows and
clicks; ``presets.py`` has the sizes.
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
"""One story of so many is named by impressions but in no news.tsv, and shown rarely."""

# Calibrated on the demo (tests/test_simulate.py holds the bands): similar topics or words alone
# reach a dev AUC near .6, the ceiling is near .8, and much of the gap can be learned from titles.
TASTE_SCALE = 2.2
STYLE_SCALE = 1.8
HIDDEN_SCALE = 0.2
DECAY_PER_DAY = 0.4
MILD_TASTE = 0.5
"""Taste for a topic beside a strong one, which is 1."""
TASTE_NOISE = 0.05
"""Standard deviation of what is added to every taste."""
HISTORY_FOCUS = 4.5
"""How strongly tastes shape histories: topics are drawn by ``exp(focus * taste)``."""
FRESH_HISTORY = 0.3
"""Share of histories that is still shown when a user first comes; so .25 % of MIND's candidates are
in the history already."""
RARE_SHARE = 3.5e-8
"""Share of all reads that go to a story that is rarely read: about one in MINDlarge's train."""
REREAD = 0.009
"""Share of a history's places that repeat an earlier one: 21 % of MIND's histories have some."""
MIND_QUOTES = 3 / 2000
"""Share of MIND's titles that begin with a quotation mark."""

USER_BLOCK = 1 << 16
"""Users handled at a time, to bound memory."""
SLOT_BLOCK = 1 << 19
"""Places of histories drawn at a time, to bound memory."""


class SimulatedNews(NamedTuple):
    """All stories, in the order in which they appeared."""

    topic: NDArray[np.int64]
    """Position in ``TOPICS`` ``[stories]``."""
    style: NDArray[np.int64]
    """Position in ``STYLES`` ``[stories]``."""
    appeal: NDArray[np.float64]
    """Style's and hidden appeal, for all readers alike ``[stories]``."""
    exposure: NDArray[np.float64]
    """How often the site shows it while fresh, relative to the others ``[stories]``."""
    birth: NDArray[np.float64]
    """Days after train begins ``[stories]``."""
    death: NDArray[np.float64]
    """When it is shown no more ``[stories]``."""
    listed: NDArray[np.bool_]
    """False for a story that no news.tsv has ``[stories]``."""
    number: NDArray[np.int64]
    """The number in its id, which tells nothing else ``[stories]``."""


def make_stories(rng: np.random.Generator, sizes: Preset) -> SimulatedNews:
    """Return the stories of the month before and of the days of the splits."""
    num_late = sum(sizes.daily_stories)
    early = rng.uniform(-28, FIRST_BIRTHS, sizes.early_stories)
    born = to_offsets(np.array(sizes.daily_stories)) / num_late
    late = np.interp(rng.random(num_late), born, FIRST_BIRTHS + np.arange(len(born)))
    birth = np.sort(np.concatenate([early, late]))
    num_stories = len(birth)
    # Dealt out rather than drawn, early and late ones apart, so that each topic fills histories.
    topic = np.concatenate(
        [_deal(rng, topic_shares(sizes), size) for size in (sizes.early_stories, num_late)]
    )
    style_shares = np.array([style.share for style in STYLES])
    if sizes.like_mind:
        style_shares[[style.name == "quote" for style in STYLES]] = MIND_QUOTES
    style = _deal(rng, style_shares / style_shares.sum(), num_stories)
    style_appeal = np.array([style.appeal for style in STYLES])[style]
    appeal = STYLE_SCALE * style_appeal + HIDDEN_SCALE * rng.normal(size=num_stories)
    life = np.exp(rng.normal(np.log(sizes.median_life), 0.6, num_stories))
    listed = np.arange(num_stories) % WITHDRAWN_EVERY != WITHDRAWN_EVERY // 2
    popularity = rng.normal(0, 1.0, num_stories)
    if sizes.like_mind:
        share = (popularity.argsort().argsort() + 0.5) / num_stories
        # Shown as often in all, whether in half a day or in a week.
        exposure = interpolate_quantiles(POPULARITY_QUANTILES, share) / np.maximum(life, 0.5)
    else:
        exposure = np.exp(popularity)
    exposure *= np.where(listed, 1, 0.2)
    number = rng.permutation(num_stories) + 1
    return SimulatedNews(topic, style, appeal, exposure, birth, birth + life, listed, number)


def topic_shares(sizes: Preset) -> NDArray[np.float64]:
    """Return the share of stories in each of ``TOPICS``: its category's, divided evenly."""
    of_category = MIND_CATEGORY_SHARES if sizes.like_mind else CATEGORY_SHARES
    categories = [topic.category for topic in TOPICS]
    shares = np.array([of_category[c] / categories.count(c) for c in categories])
    return shares / shares.sum()


def _deal(rng: np.random.Generator, shares: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Return ``size`` positions in random order, each as often as its share, within one."""
    points = (np.arange(size) + 0.5) / size
    dealt = np.searchsorted(np.cumsum(shares), points).clip(max=len(shares) - 1)
    return rng.permutation(dealt)


def assign_users(rng: np.random.Generator, sizes: Preset) -> list[NDArray[np.int64]]:
    """Return the users of each split, numbered in the order in which splits first have them."""
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
    """Return how much each user likes each topic ``[users, topics]``: near 1 for 2 to 4 of them."""
    categories = [topic.category for topic in TOPICS]
    related = np.array([[a == b for b in categories] for a in categories], dtype=np.float32)
    tastes = np.empty((num_users, len(TOPICS)), dtype=np.float32)
    for begin in range(0, num_users, USER_BLOCK):
        block = tastes[begin : begin + USER_BLOCK]
        # The smallest of exponentials divided by shares are a weighted draw without replacement.
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
    stories: SimulatedNews,
    tastes: NDArray[np.float32],
    split_users: list[NDArray[np.int64]],
) -> Ragged:
    """Return early stories that each user clicked, oldest first; a few come twice, as in MIND."""
    num_users = len(tastes)
    quantiles = MIND_HISTORY_QUANTILES if sizes.like_mind else HISTORY_QUANTILES
    lengths = draw_lengths(rng, sizes, quantiles, num_users, 1)
    known = np.maximum.accumulate([users.max() + 1 for users in split_users])
    empty = np.repeat(sizes.empty_histories, np.diff(known, prepend=0))
    lengths[rng.random(num_users) < empty] = 0
    offsets = to_offsets(lengths)
    values = np.empty(offsets[-1], dtype=np.int32)
    first_days = [days[0] for days in DAYS.values()]
    groups = known.tolist() if sizes.like_mind else [num_users]  # new in train, dev and test
    for day, (first, last) in zip(first_days, itertools.pairwise([0, *groups]), strict=False):
        draw = _HistoryDraw(sizes, stories, day)
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
    """Let a share of some places of the histories, in rising order, repeat an earlier story."""
    places = places[rng.random(len(places), dtype=np.float32) < share]
    start = histories.offsets[np.searchsorted(histories.offsets, places, side="right") - 1]
    places, start = places[places > start], start[places > start]
    earlier = start + (rng.random(len(places)) * (places - start)).astype(np.int64)
    histories.values[places] = histories.values[earlier]


class _HistoryDraw:
    """Draws stories by topic and appeal, for users who first come on a given day.

    They have read stories of the month before train, and, like MIND's, some that are still shown.
    """

    def __init__(self, sizes: Preset, stories: SimulatedNews, day: int) -> None:
        # Joined by topic, with weights summed up: one lookup draws a story of a given topic.
        fresh = (stories.birth < day) & (stories.death > day)
        known = np.flatnonzero((stories.birth < 0) | fresh)
        self.by_topic = known[np.argsort(stories.topic[known], kind="stable")]
        weight = np.exp(stories.appeal[self.by_topic])
        if sizes.like_mind:
            weight = weight * stories.exposure[self.by_topic]
            fresh = fresh[self.by_topic]
            odds = FRESH_HISTORY / (1 - FRESH_HISTORY)
            weight[fresh] *= odds * weight[~fresh].sum() / weight[fresh].sum()
            rare = np.argsort(weight)[: sizes.rarely_read]
            weight[rare] = RARE_SHARE * weight.sum()
        self.weights = np.cumsum(weight)
        ends = np.searchsorted(stories.topic[self.by_topic], np.arange(len(TOPICS)), side="right")
        self.bounds = np.concatenate([[0], self.weights[ends - 1]])
        self.shares = topic_shares(sizes)
        self.num_stories = len(stories.topic)

    def __call__(
        self, rng: np.random.Generator, tastes: NDArray[np.float32], lengths: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the histories of some users, flat, each in the order of the stories."""
        owner = np.repeat(np.arange(len(tastes)), lengths)
        values = np.zeros(len(owner), dtype=np.int64)
        mix = self.shares * np.exp(HISTORY_FOCUS * tastes)
        mix = np.cumsum(mix / mix.sum(axis=1, keepdims=True), axis=1)
        redraw = np.arange(len(values))
        bits = max(len(values), 1).bit_length()
        for _ in range(4):  # draw all, then three times those that the user has already
            for begin in range(0, len(redraw), SLOT_BLOCK):
                slots = redraw[begin : begin + SLOT_BLOCK]
                topic = (mix[owner[slots], :-1] < rng.random((len(slots), 1))).sum(axis=1)
                low = self.bounds[topic]
                place = low + rng.random(len(slots)) * (self.bounds[topic + 1] - low)
                found = np.searchsorted(self.weights, place, side="right")
                values[slots] = self.by_topic[found]
            key = owner * self.num_stories + values
            key = np.sort(key << bits | np.arange(len(key)))  # equal ones side by side, in order
            again = (key[1:] >> bits) == (key[:-1] >> bits)
            redraw = np.sort(key[1:][again] & ((1 << bits) - 1))
        return np.sort(owner * self.num_stories + values) - owner * self.num_stories


def append_clicks(
    rng: np.random.Generator,
    sizes: Preset,
    histories: Ragged,
    user: NDArray[np.int64],
    story: NDArray[np.integer],
    day: NDArray[np.float64],
) -> Ragged:
    """Return histories with the clicks of a split behind them, as the next split has them.

    Where ``sizes.like_mind``, as many of the oldest fall off, unless there were none: MIND's
    histories are no longer in one split than in another. Some clicks are on stories read before.

    Args:
        rng: Where chance comes from.
        sizes: The preset.
        histories: Of all users.
        user: Row of ``histories`` that each click belongs to ``[clicks]``.
        story: What was clicked ``[clicks]``.
        day: When ``[clicks]``.
    """
    order = np.lexsort((day, user))
    num_clicks = np.bincount(user, minlength=histories.num_rows)
    clicks = Ragged(story[order], to_offsets(num_clicks))
    old = histories.lengths
    length = old + num_clicks
    if sizes.like_mind:
        length = np.where(old > 0, old, num_clicks)
    kept = np.maximum(length - num_clicks, 0)  # of the old history, its end
    offsets = to_offsets(length)
    values = np.empty(offsets[-1], dtype=histories.values.dtype)
    old_places = _ranges(offsets[:-1], kept)
    new_places = _ranges(offsets[:-1] + kept, length - kept)
    values[old_places] = histories.values[_ranges(histories.offsets[1:] - kept, kept)]
    values[new_places] = clicks.values[_ranges(clicks.offsets[1:] - (length - kept), length - kept)]
    grown = Ragged(values, offsets)
    if sizes.like_mind:
        # More of them, for repeats have fallen off as well.
        _reread(rng, grown, new_places, 1.5 * REREAD)
    return grown


def _ranges(begin: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``begin[i], begin[i] + 1, ...``, ``lengths[i]`` numbers of each, joined."""
    offsets = to_offsets(lengths)
    return np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], lengths)


def draw_lengths(
    rng: np.random.Generator,
    sizes: Preset,
    quantiles: tuple[tuple[float, float], ...],
    size: int,
    least: int,
) -> NDArray[np.int64]:
    """Return ``size`` whole lengths by quantiles, scaled by the preset and not below ``least``."""
    # Dealt out where they follow MIND: few are long, and they would move the mean by chance.
    shares = (rng.permutation(size) + 0.5) / size if sizes.like_mind else rng.random(size)
    first = quantiles[0][0]
    drawn = interpolate_quantiles(quantiles, first + (1 - first) * shares)
    return np.maximum(np.rint(sizes.length_scale * drawn), least).astype(np.int64)
