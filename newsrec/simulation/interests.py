"""The users of a world of tastes: their interests, which drift, and their histories.

An interest is a news item that stands for what the user likes. News attracts by its match with the
best-matching interest, times the interest's weight; other interests add nothing.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.data.ragged import Ragged, to_offsets
from newsrec.simulation.presets import DAYS, HISTORY_QUANTILES, Preset
from newsrec.simulation.world import draw_lengths

FIRST_DAY = -28
"""Histories begin four weeks before train."""
WEEK = 7
NUM_WEEKS = 6
"""Weeks from ``FIRST_DAY`` to the end of test; the fifth has train and dev, the sixth test."""
NUM_INTERESTS = (0.2, 0.25, 0.2, 0.15, 0.1, 0.1)
"""Share of users with one to six interests."""
WEIGHT_SPREAD = 0.35
"""Standard deviation of the logarithm of an interest's weight."""
LEAST_WEIGHT = 0.5
WEIGHT_DRIFT = 0.1
"""Standard deviation of what a week adds to the logarithm of a weight."""
REPLACED = 0.03
"""Chance that an interest is replaced by another one within a week."""
MATCH_WIDTH = 0.3
"""How fast the match falls with the distance of content vectors: ``exp((cosine - 1) / width)``."""
USER_BLOCK = 1 << 11
"""Users handled at a time, to bound memory."""
RECENCY = 1.6
"""How many times as many clicks of a history are from a week as from the week before."""
HISTORY_FOCUS = 2.0
"""How strongly histories follow utilities, compared with clicks in impressions."""


class Interests(NamedTuple):
    """Interests of all users in all weeks."""

    news: NDArray[np.int64]
    """The news item that stands for an interest ``[users, weeks, interests]``."""
    weight: NDArray[np.float32]
    """From 0 (no interest) to 1 ``[users, weeks, interests]``."""

    def affinity(
        self,
        match: NDArray[np.float32],
        user: NDArray[np.int64],
        week: NDArray[np.int64] | int,
        news: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Return the weighted match of news with the best-matching interest of users.

        Args:
            match: Match of every two news items, as ``match_news`` returns it ``[news, news]``.
            user: Users.
            week: Weeks; users, weeks and news are broadcast with each other.
            news: News.
        """
        best = np.zeros(np.broadcast_shapes(user.shape, news.shape), dtype=np.float32)
        for k in range(self.news.shape[2]):
            one = self.weight[user, week, k] * match[self.news[user, week, k], news]
            np.maximum(best, one, out=best)
        return best


def week_of(day: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the week of each day, counted from 0."""
    return np.clip((day - FIRST_DAY) // WEEK, 0, NUM_WEEKS - 1).astype(np.int64)


def match_news(interest: NDArray[np.float32], news: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how well news match interests, from 0 to 1 ``[interests, news]``.

    Products and exponentials differ in their last digits between machines, so they are made in
    float64 and rounded.

    Args:
        interest: Content vectors of the news that stand for interests ``[interests, dim]``.
        news: Content vectors of news ``[news, dim]``.
    """
    cosine = interest.astype(np.float64) @ news.astype(np.float64).T
    return np.exp((np.minimum(cosine, 1) - 1) / MATCH_WIDTH).astype(np.float32)


def draw_interests(
    rng: np.random.Generator,
    num_users: int,
    is_late: NDArray[np.bool_],
    effects: Collection[str],
) -> Interests:
    """Draw the interests of all users.

    Args:
        rng: Random number generator.
        num_users: Number of users.
        is_late: True for news of topics that begin in the test week; nobody is interested in them
            before ``[news]``.
        effects: Names of the effects that the world has.
    """
    most = len(NUM_INTERESTS)
    number = rng.choice(most, num_users, p=NUM_INTERESTS) + 1
    if "interests" not in effects:
        number[:] = 1
    shape = (num_users, most)
    news = np.empty((num_users, NUM_WEEKS, most), dtype=np.int64)
    log_weight = np.empty((num_users, NUM_WEEKS, most))
    early = np.flatnonzero(~is_late)
    for week in range(NUM_WEEKS):
        drawn = early[rng.integers(len(early), size=shape)]
        weights = -np.abs(rng.normal(0, WEIGHT_SPREAD, shape))
        replaced, step = rng.random(shape) < REPLACED, rng.normal(0, WEIGHT_DRIFT, shape)
        any_news = rng.integers(len(is_late), size=shape)
        if week == 0:
            news[:, week], log_weight[:, week] = drawn, weights
        elif "drift" not in effects:
            news[:, week], log_weight[:, week] = news[:, 0], log_weight[:, 0]
        else:
            drawn = any_news if week == NUM_WEEKS - 1 else drawn
            news[:, week] = np.where(replaced, drawn, news[:, week - 1])
            moved = -np.abs(log_weight[:, week - 1] + step)  # reflected at a weight of 1
            log_weight[:, week] = np.where(replaced, weights, moved)
    weight = np.maximum(np.exp(log_weight), LEAST_WEIGHT)
    weight *= np.arange(most) < number[:, None, None]
    return Interests(news, weight.astype(np.float32))


def draw_histories(
    rng: np.random.Generator,
    sizes: Preset,
    birth: NDArray[np.float64],
    attraction: NDArray[np.float64],
    taste_scale: float,
    interests: Interests,
    match: NDArray[np.float32],
    split_users: list[NDArray[np.int64]],
) -> Ragged:
    """Return the news that each user clicked before the first split with that user, oldest first.

    Each click follows the interests of its week, and later weeks have more clicks.

    Args:
        rng: Random number generator.
        sizes: The preset.
        birth: When each news item appears, ascending ``[news]``.
        attraction: What attracts all users to a news item, such as its exposure ``[news]``.
        taste_scale: How much the best match adds.
        interests: Interests of all users.
        match: Match of every two news items ``[news, news]``.
        split_users: Users of each split.
    """
    num_users = len(interests.news)
    lengths = draw_lengths(rng, sizes, HISTORY_QUANTILES, num_users, 1)
    known = np.maximum.accumulate([users.max() + 1 for users in split_users])
    empty = np.repeat(sizes.empty_histories, np.diff(known, prepend=0))
    lengths[rng.random(num_users) < empty] = 0
    owners: list[NDArray[np.int64]] = []
    read: list[NDArray[np.int64]] = []
    first_days = [days[0] for days in DAYS.values()]
    bounds = zip(first_days, np.concatenate([[0], known[:-1]]), known, strict=False)
    for day, first, last in bounds:
        begins = np.arange(FIRST_DAY, day, WEEK)
        shares = np.minimum(day - begins, WEEK) * RECENCY ** np.arange(len(begins))
        shares = shares / shares.sum()
        for begin in range(first, last, USER_BLOCK):
            users = np.arange(begin, min(begin + USER_BLOCK, last))
            counts = rng.multinomial(lengths[users], shares)
            for week, start in enumerate(begins):
                pool = np.flatnonzero((birth >= start) & (birth < np.minimum(start + WEEK, day)))
                wish = attraction[pool] + HISTORY_FOCUS * taste_scale * interests.affinity(
                    match, users[:, None], week, pool
                )
                rank = (-wish - rng.gumbel(size=wish.shape)).argsort(axis=1).argsort(axis=1)
                row, place = np.nonzero(rank < counts[:, week, None])
                owners.append(users[row])
                read.append(pool[place])
    owner, news = np.concatenate(owners), np.concatenate(read)
    order = np.lexsort((news, owner))
    return Ragged(news[order], to_offsets(np.bincount(owner, minlength=num_users)))
