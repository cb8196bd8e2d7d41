"""The simulated world itself: stories, readers and their clicks, as arrays.

Readers have tastes. Stories have a topic, a headline style whose appeal can be read in the title,
and an appeal of their own that cannot. A reader looks at fresh stories and clicks the best by

    utility = taste for the topic + appeal of the style + hidden appeal - age + Gumbel noise,

so the utility without the noise is the best scorer there can be.

Lengths, clicks and empty histories follow MIND's statistics. Everything is computed for blocks of
impressions, never for one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.vocabulary import CATEGORY_SHARES, STYLES, TOPICS

# Share of MIND's impressions below a length. In between it grows geometrically, which meets MIND's
# means of 32 and 38; the candidates' 99 % point was chosen to that end.
HISTORY_QUANTILES = ((0, 1), (0.18, 5), (0.5, 18), (0.81, 50), (0.9, 76), (0.99, 201), (1, 425))
CANDIDATE_QUANTILES = ((0, 2), (0.05, 2), (0.5, 24), (0.9, 93), (0.99, 160), (1, 283))
CLICK_SHARES = (0.724, 0.165, 0.059, 0.024, 0.006, 0.006, 0.006, 0.005, 0.005)
"""MIND's share of impressions with 1, 2, ... clicks; the last 2.8 % spread over 5 to 9."""
EMPTY_HISTORIES = 0.03
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

BLOCK = 8192
"""Impressions simulated or written at a time, to bound memory."""


@dataclass(frozen=True)
class Preset:
    """Sizes of a world."""

    impressions: tuple[int, int, int]
    """In train, dev and test."""
    users: tuple[int, int, int]
    """In train, dev and test."""
    shared_users: float
    """Share of the users of dev and test whom an earlier split has too."""
    early_stories: int
    """Stories of the month before, which fill the histories."""
    daily_stories: int
    length_scale: float
    """Histories and candidate lists, relative to MIND's."""


class Stories(NamedTuple):
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


class Impressions(NamedTuple):
    """One split, before it is written."""

    user: NDArray[np.int64]
    """Row of the tastes ``[impressions]``."""
    day: NDArray[np.float64]
    """Time in days after train begins ``[impressions]``."""
    candidates: Ragged
    """Stories shown."""
    labels: NDArray[np.bool_]
    """True where clicked ``[candidates]``."""
    utility: NDArray[np.float64]
    """Without the noise ``[candidates]``."""


def make_stories(rng: np.random.Generator, last_day: int, sizes: Preset) -> Stories:
    """Return the stories of the month before and of the days up to ``last_day``."""
    first_day = -1  # a day of warm-up, so that train's first morning has fresh news
    num_late = sizes.daily_stories * (last_day - first_day)
    early = rng.uniform(-28, first_day, sizes.early_stories)
    birth = np.sort(np.concatenate([early, rng.uniform(first_day, last_day, num_late)]))
    num_stories = len(birth)
    # Dealt out rather than drawn, early and late ones apart, so that each topic fills histories.
    topic = np.concatenate(
        [_deal(rng, _topic_shares(), size) for size in (sizes.early_stories, num_late)]
    )
    style_shares = np.array([style.share for style in STYLES])
    style = _deal(rng, style_shares / style_shares.sum(), num_stories)
    style_appeal = np.array([style.appeal for style in STYLES])[style]
    appeal = STYLE_SCALE * style_appeal + HIDDEN_SCALE * rng.normal(size=num_stories)
    # 85 % of MIND's stories are shown for less than two days.
    life = np.exp(rng.normal(np.log(1.1), 0.6, num_stories))
    listed = np.arange(num_stories) % WITHDRAWN_EVERY != WITHDRAWN_EVERY // 2
    exposure = np.exp(rng.normal(0, 1.0, num_stories)) * np.where(listed, 1, 0.2)
    number = rng.permutation(num_stories) + 1
    return Stories(topic, style, appeal, exposure, birth, birth + life, listed, number)


def _topic_shares() -> NDArray[np.float64]:
    """Share of stories in each of ``TOPICS``: its category's, divided evenly."""
    categories = [topic.category for topic in TOPICS]
    shares = np.array([CATEGORY_SHARES[c] / categories.count(c) for c in categories])
    return shares / shares.sum()


def _deal(rng: np.random.Generator, shares: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Return ``size`` positions in random order, each as often as its share, within one."""
    points = (np.arange(size) + 0.5) / size
    dealt = np.searchsorted(np.cumsum(shares), points).clip(max=len(shares) - 1)
    return rng.permutation(dealt)


def assign_users(rng: np.random.Generator, sizes: Preset) -> tuple[list[NDArray[np.int64]], int]:
    """Return the users of each split and how many there are in all."""
    splits: list[NDArray[np.int64]] = []
    known = 0
    for num_users in sizes.users:
        num_shared = min(round(sizes.shared_users * num_users), known)
        old = rng.choice(known, num_shared, replace=False) if num_shared else np.empty(0, np.int64)
        new = np.arange(known, known + num_users - num_shared)
        known += len(new)
        splits.append(np.concatenate([old, new]))
    return splits, known


def make_tastes(rng: np.random.Generator, num_users: int) -> NDArray[np.float32]:
    """Return how much each user likes each topic ``[users, topics]``: near 1 for 2 to 4 of them."""
    categories = [topic.category for topic in TOPICS]
    related = np.array([[a == b for b in categories] for a in categories])
    # The smallest of exponentials divided by shares are a weighted draw without replacement.
    keys = rng.standard_exponential((num_users, len(TOPICS))) / _topic_shares()
    rank = keys.argsort(axis=1).argsort(axis=1)
    num_strong = rng.integers(2, 5, (num_users, 1))
    strong = rank < num_strong
    mild = (strong @ related) | (rank < num_strong + 1)
    tastes = np.where(strong, 1.0, np.where(mild, MILD_TASTE, 0.0))
    tastes += TASTE_NOISE * rng.normal(size=tastes.shape)
    return tastes.astype(np.float32)


def make_histories(
    rng: np.random.Generator, sizes: Preset, stories: Stories, tastes: NDArray[np.float32]
) -> Ragged:
    """Return early stories that each user clicked, oldest first; a few come twice, as in MIND."""
    # Joined by topic, with weights summed up, so that one lookup draws a story of a given topic.
    early = np.flatnonzero(stories.birth < 0)
    by_topic = early[np.argsort(stories.topic[early], kind="stable")]
    weights = np.cumsum(np.exp(stories.appeal[by_topic]))
    ends = np.searchsorted(stories.topic[by_topic], np.arange(len(TOPICS)), side="right")
    bounds = np.concatenate([[0], weights[ends - 1]])

    lengths = _draw_lengths(rng, HISTORY_QUANTILES, len(tastes), sizes.length_scale, 1)
    lengths[rng.random(len(tastes)) < EMPTY_HISTORIES] = 0
    owner = np.repeat(np.arange(len(tastes)), lengths)
    values = np.zeros(len(owner), dtype=np.int64)

    mix = _topic_shares() * np.exp(HISTORY_FOCUS * tastes)
    mix = np.cumsum(mix / mix.sum(axis=1, keepdims=True), axis=1)
    redraw = np.arange(len(values))
    for _ in range(4):  # draw all, then three times those that the user has already
        for begin in range(0, len(redraw), 64 * BLOCK):
            slots = redraw[begin : begin + 64 * BLOCK]
            topic = (mix[owner[slots], :-1] < rng.random((len(slots), 1))).sum(axis=1)
            place = bounds[topic] + rng.random(len(slots)) * (bounds[topic + 1] - bounds[topic])
            values[slots] = by_topic[np.searchsorted(weights, place, side="right")]
        key = owner * len(stories.topic) + values
        redraw = np.setdiff1d(np.arange(len(key)), np.unique(key, return_index=True)[1])
    return Ragged(values[np.lexsort((values, owner))], to_offsets(lengths))


def append_clicks(histories: Ragged, shown: Impressions) -> Ragged:
    """Return histories with the clicks of a split behind them, as the next split has them."""
    clicked = np.flatnonzero(shown.labels)
    impression = shown.candidates.owners()[clicked]
    owner = np.concatenate([histories.owners(), shown.user[impression]])
    values = np.concatenate([histories.values, shown.candidates.values[clicked]])
    time = np.concatenate([np.full(len(histories.values), -1.0), shown.day[impression]])
    order = np.lexsort((time, owner))  # stable: old histories keep their order
    lengths = np.bincount(owner, minlength=histories.num_rows)
    return Ragged(values[order], to_offsets(lengths))


def show(
    rng: np.random.Generator,
    sizes: Preset,
    stories: Stories,
    tastes: NDArray[np.float32],
    users: NDArray[np.int64],
    days: tuple[int, int],
    num_impressions: int,
) -> Impressions:
    """Show fresh stories to a split's users, and let them click."""
    # Every user comes at least once, if there are impressions enough.
    activity = np.cumsum(np.exp(rng.normal(0, 0.8, len(users))))
    more = rng.random(max(num_impressions - len(users), 0)) * activity[-1]
    user = np.concatenate([users, users[np.searchsorted(activity, more)]])[:num_impressions]
    user = rng.permutation(user)
    hour = rng.triangular(0, 14, 24, num_impressions)
    day = np.sort(rng.integers(days[0], days[1], num_impressions) + hour / 24)
    lengths = _draw_lengths(rng, CANDIDATE_QUANTILES, num_impressions, sizes.length_scale, 2)
    clicks = 1 + np.searchsorted(np.cumsum(CLICK_SHARES[:-1]), rng.random(num_impressions))
    # More clicks come from longer lists, or the short ones would cut them below MIND's mean.
    by_length = np.argsort(np.log(lengths) + rng.normal(size=num_impressions))
    clicks[by_length] = np.sort(clicks)

    blocks = []
    for begin in range(0, num_impressions, BLOCK):
        part = slice(begin, begin + BLOCK)
        blocks.append(
            _show_block(rng, stories, tastes, user[part], day[part], lengths[part], clicks[part])
        )
    values, labels, utility, lengths = (
        np.concatenate(arrays) for arrays in zip(*blocks, strict=True)
    )
    candidates = Ragged(values, to_offsets(lengths))
    # In MIND the order of the file is not that of time either.
    order = rng.permutation(num_impressions)
    labels, utility = (
        Ragged(flat, candidates.offsets).take(order).values for flat in (labels, utility)
    )
    return Impressions(user[order], day[order], candidates.take(order), labels, utility)


def _show_block(
    rng: np.random.Generator,
    stories: Stories,
    tastes: NDArray[np.float32],
    user: NDArray[np.int64],
    day: NDArray[np.float64],
    lengths: NDArray[np.int64],
    clicks: NDArray[np.int64],
) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return stories, labels and utilities, flat, and lengths of impressions near in time."""
    pool = np.flatnonzero((stories.birth <= day[-1]) & (stories.death > day[0]))
    age = day[:, None] - stories.birth[pool]  # [impressions, pool]
    fresh = (age >= 0) & (day[:, None] < stories.death[pool])
    # A draw without replacement: the first arrivals of independent exponential clocks.
    arrival = rng.standard_exponential(age.shape) / stories.exposure[pool]
    arrival[~fresh] = np.inf
    lengths = np.minimum(lengths, fresh.sum(axis=1))
    assert lengths.min() > 1, "the preset has too few stories a day for a click and a skip"
    longest = int(lengths.max())
    chosen = np.argpartition(arrival, min(longest, len(pool) - 1), axis=1)[:, :longest]
    chosen = np.take_along_axis(
        chosen, np.take_along_axis(arrival, chosen, axis=1).argsort(axis=1), axis=1
    )
    real = np.arange(longest) < lengths[:, None]  # [impressions, longest]

    story = pool[chosen]
    utility = TASTE_SCALE * tastes[user[:, None], stories.topic[story]] + stories.appeal[story]
    utility -= DECAY_PER_DAY * np.take_along_axis(age, chosen, axis=1)
    noisy = np.where(real, utility + rng.gumbel(size=story.shape), -np.inf)
    rank = (-noisy).argsort(axis=1).argsort(axis=1)
    label = rank < np.minimum(clicks, lengths - 1)[:, None]
    # Shuffle, or the most exposed stories would stand first.
    shuffle = np.where(real, rng.random(story.shape), np.inf).argsort(axis=1)
    flat = [np.take_along_axis(a, shuffle, axis=1)[real] for a in (story, label, utility)]
    return flat[0], flat[1], flat[2], lengths


def _draw_lengths(
    rng: np.random.Generator,
    quantiles: Sequence[tuple[float, int]],
    size: int,
    scale: float,
    least: int,
) -> NDArray[np.int64]:
    shares, lengths = np.array(quantiles).T
    drawn = np.exp(np.interp(rng.random(size), shares, np.log(lengths)))
    return np.maximum(np.rint(scale * drawn), least).astype(np.int64)
