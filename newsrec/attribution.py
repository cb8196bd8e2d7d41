"""Divides a score among the clicks of a history; needs only numpy.

A click is taken away by putting zeros in place of its news vector: the history keeps its length, so
the other clicks keep their weight in a mean. The value of a click is what it adds to the score when
the clicks come back one by one, averaged over orders (its Shapley value). Each order is used
forwards and backwards, so interactions between two clicks are divided exactly. Values and the score
without any click add up to the score. Where a score is linear in the vectors of clicks, all orders
give the same, and the values are exact.
"""

from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PAIRS = 2
"""Random orders of the clicks, each of them also backwards."""
ALL_ORDERS = 3
"""Up to so many clicks, all orders are used."""
SAME = 1e-4
"""Largest difference of what a click adds in different orders, as a share of the scores, that is
taken for rounding."""


class Attributions(NamedTuple):
    """What the clicks of one history add to the scores of some news."""

    values: NDArray[np.float64]
    """What each click adds to each score ``[news, clicks]``."""
    rest: NDArray[np.float64]
    """What is left of each score: that of a user whose clicks the model cannot see ``[news]``."""
    exact: bool
    """Whether the scores are linear in the vectors of the clicks, as far as was seen."""


class Runs(NamedTuple):
    """The histories that have to be scored."""

    kept: NDArray[np.bool_]
    """False for clicks that are taken away; the first row has no click, the last all
    ``[runs, clicks]``."""
    orders: NDArray[np.int64]
    """Orders in which the clicks come back ``[orders, clicks]``."""
    rows: NDArray[np.int64]
    """Row of ``kept`` after each number of clicks of each order ``[orders, clicks + 1]``."""


def runs(clicks: int) -> Runs:
    """Return what has to be scored for a history of this length; always the same."""
    if not clicks:
        return Runs(np.zeros((1, 0), np.bool_), np.zeros((1, 0), np.int64), np.zeros((1, 1), int))
    if clicks <= ALL_ORDERS:
        orders = np.array(list(permutations(range(clicks))), dtype=np.int64)
    else:
        rng = np.random.default_rng(clicks)
        forwards = [rng.permutation(clicks) for _ in range(PAIRS)]
        orders = np.array([order for one in forwards for order in (one, one[::-1])])
    back = orders.argsort(axis=1)  # when each click comes back
    whole = back[:, None] < np.arange(clicks + 1)[:, None]  # [orders, clicks + 1, clicks]
    kept, rows = np.unique(whole.reshape(-1, clicks), axis=0, return_inverse=True)
    return Runs(kept, orders, rows.reshape(len(orders), clicks + 1))


def attribute(
    what: Runs, scores: NDArray[np.floating], top: NDArray[np.floating] | None = None, most: int = 0
) -> Attributions:
    """Divide scores among the clicks.

    Args:
        what: What ``runs`` returned.
        scores: Scores of the news after each run ``[runs, news]``.
        top: Products of each click with each news item, whose largest are averaged and added to the
            score (``late``); None adds nothing ``[clicks, news]``.
        most: Number of products to average.
    """
    scores = np.asarray(scores, dtype=np.float64)
    (number, clicks), news = what.orders.shape, scores.shape[1]
    added = np.empty((number, clicks, news))
    places = np.arange(number)[:, None], what.orders
    added[places] = np.diff(scores[what.rows], axis=1)
    values = added.mean(axis=0)
    exact = bool((np.abs(added - values) <= SAME * (1 + np.abs(scores).max(initial=0))).all())
    if top is not None and clicks:
        taken = min(most, clicks)
        largest = np.argsort(-top, axis=0, kind="stable")[:taken]
        shares = np.take_along_axis(top, largest, axis=0) / taken
        np.put_along_axis(values, largest, np.take_along_axis(values, largest, 0) + shares, 0)
    return Attributions(values.T, scores[0], exact)
