"""Re-ranks news by repeats, age, categories, near-duplicates, diversity and calibration.

Needs only numpy.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from newsrec.errors import UserError

ROUNDING = 1e-6
"""A repeat's cosine may be this much below the threshold: equal vectors do not give exactly 1."""
MIXED = 0.01
"""Share of the target that is mixed into a list's categories before the two are compared."""
MOST_HALVINGS = 1e30
"""Scores are lowered by no more than this many half-lives, so they stay finite in float32."""
NEWS_AT_ONCE = 8192
"""Number of news items that are compared at once."""


def check_threshold(threshold: float, name: str) -> None:
    """Refuse a threshold that is not a cosine above 0.

    Raises:
        UserError: Names the option ``name`` and its value.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise UserError(f"{name} is {threshold!r}; give a cosine, a number above 0 and up to 1.")
    if not 0 < threshold <= 1:
        raise UserError(f"{name} is {threshold}; it is a cosine, above 0 and up to 1.")


def repeats(
    news: NDArray[np.float32],
    candidates: NDArray[np.integer] | slice,
    clicks: Sequence[int] | NDArray[np.integer],
    threshold: float,
) -> NDArray[np.bool_]:
    """Return whether each candidate repeats a click.

    A candidate repeats a click if the cosine of both news vectors is at least ``threshold``. A
    vector of zeros repeats nothing.

    Args:
        news: News vectors ``[news, dim]``.
        candidates: Rows of the candidates ``[candidates]``.
        clicks: Rows of the clicked news.
        threshold: Smallest cosine of a repeat.
    """
    shown = news[candidates]
    found = np.zeros(len(shown), dtype=np.bool_)
    if len(clicks):
        read = _of_length_one(news[np.unique(clicks)]).T
        for start in range(0, len(shown), NEWS_AT_ONCE):
            block = slice(start, start + NEWS_AT_ONCE)
            closest = (_of_length_one(shown[block]) @ read).max(axis=1)
            found[block] = closest >= threshold - ROUNDING
    return found


def lower(
    scores: NDArray[np.floating], repeated: NDArray[np.bool_], penalty: float | None
) -> NDArray[np.float64]:
    """Return the scores of an impression's candidates, lowered for repeats.

    Args:
        scores: Score of each candidate ``[candidates]``.
        repeated: Whether each candidate repeats a click ``[candidates]``.
        penalty: What to subtract; None ranks repeats below all others, in their own order.
    """
    lowered: NDArray[np.float64] = np.asarray(scores, dtype=np.float64)
    if penalty is None:
        penalty = float(np.ptp(lowered)) + 1 if len(lowered) else 0.0
    return lowered - penalty * repeated


def age_term(ages: NDArray[np.floating], half_life: float) -> NDArray[np.float64]:
    """Return what to add to scores so that the odds of a news item halve with each half-life.

    Scores are logits of a softmax: ``-ln 2`` per half-life halves the odds. News whose age is NaN
    or negative is not lowered.

    Args:
        ages: Age of each news item in hours ``[news]``.
        half_life: Half-life in hours.
    """
    # fmax ignores NaN; adding 0 makes -0 a plain 0.
    # Division first: -ln 2 by a tiny half-life is infinite, and 0 times that is NaN.
    with np.errstate(over="ignore"):
        halvings = np.fmax(ages, 0).astype(np.float64) / half_life
    return np.minimum(halvings, MOST_HALVINGS) * -math.log(2) + 0.0


def in_window(ages: NDArray[np.floating], max_age: float) -> NDArray[np.bool_]:
    """Return whether news is at most this many hours old; False where the age is NaN ``[news]``."""
    return np.asarray(ages <= max_age)


def pick(
    scores: NDArray[np.floating],
    k: int,
    *,
    vectors: NDArray[np.floating] | None = None,
    categories: NDArray[np.integer] | None = None,
    per_category: int | None = None,
    near_duplicates: float | None = None,
    diversity: float = 0.0,
    calibration: float = 0.0,
    target: NDArray[np.floating] | None = None,
    left_out: float = -np.inf,
) -> list[int]:
    """Pick news one by one: each time the best of those that the news picked so far allows.

    The best is the news item with the highest ``(1 - diversity) score - diversity cosine``, where
    the cosine is the highest with a news item picked before (maximal marginal relevance, Carbonell
    and Goldstein 1998); of equal ones the first. With ``calibration``, this value is multiplied by
    ``1 - calibration``, and ``calibration`` times the divergence of the list's categories from
    ``target`` is subtracted (calibrated recommendations, Steck 2018; see ``_miscalibration``).

    Args:
        scores: Scores, the best first ``[news]``.
        k: Number of news to pick.
        vectors: News vectors ``[news, dim]``; needed for near-duplicates and diversity.
        categories: Number of each category, negative for none, which is not limited ``[news]``;
            needed for a limit and for calibration.
        per_category: Most news of a category; None does not limit them.
        near_duplicates: Cosine from which on a news item is a near-duplicate of one picked before,
            and not picked; None picks them.
        diversity: From 0, by score alone, to 1.
        calibration: From 0, without regard to ``target``, to 1.
        target: Share that each category should have, by its number ``[categories]``; needed for
            calibration.
        left_out: Upper bound of the scores of news that is not among these. Picking stops where
            such news could be better.

    Returns:
        Positions of the picked news; fewer than ``k`` if no more are allowed, or certain.
    """
    free = np.isfinite(scores)
    values = (1 - diversity) * np.where(free, scores, 0).astype(np.float64)
    bound = (1 - diversity) * left_out if left_out > -np.inf else -np.inf
    compared = near_duplicates is not None or diversity > 0
    closest = np.full(len(values), -np.inf)
    counts: dict[int, int] = {}
    if compared:
        assert vectors is not None
        scaled = _of_length_one(np.asarray(vectors, dtype=np.float32))
    listed = np.zeros(0 if target is None else len(target))
    picked: list[int] = []
    while len(picked) < k and free.any():
        worth = values - diversity * closest if picked and diversity else values
        most = bound + diversity * (1 + ROUNDING) * bool(picked)  # for other news: a cosine of -1
        if calibration:
            assert target is not None
            assert categories is not None
            off = _miscalibration(target, listed, len(picked))
            worth = (1 - calibration) * worth - calibration * off[np.maximum(categories, -1)]
            most = (1 - calibration) * most - calibration * off.min()
        best = int(np.argmax(np.where(free, worth, -np.inf)))
        if worth[best] < most:
            break  # news that is not here could be better
        picked.append(best)
        free[best] = False
        if compared:
            closest = np.maximum(closest, scaled @ scaled[best])
            if near_duplicates is not None:
                free &= closest < near_duplicates - ROUNDING
        if calibration and categories is not None and categories[best] >= 0:
            listed[categories[best]] += 1
        if per_category is not None:
            assert categories is not None
            category = int(categories[best])
            counts[category] = counts.get(category, 0) + 1
            if category >= 0 and counts[category] == per_category:
                free &= categories != category
    return picked


def _miscalibration(
    target: NDArray[np.floating], listed: NDArray[np.floating], number: int
) -> NDArray[np.float64]:
    """Return, for each category, how far a list is from a target if such a news item joins it.

    It is the Kullback-Leibler divergence of the target's shares p from the list's shares q, each
    mixed with a little p so that it is finite (Steck 2018, with alpha ``MIXED``).

    Args:
        target: Share that each category should have ``[categories]``.
        listed: Number of news items of each category in the list ``[categories]``.
        number: Number of news items in the list.

    Returns:
        Divergence by category; the last is for a news item without one ``[categories + 1]``.
    """
    wanted = np.flatnonzero(target > 0)
    p = target[wanted]
    shares = np.array([listed[wanted], listed[wanted] + 1]) * ((1 - MIXED) / (number + 1))
    without, joined = p * np.log(p / (shares + MIXED * p))
    total = without.sum()
    found = np.full(len(target) + 1, total)
    found[wanted] += joined - without
    return found


def _of_length_one(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled
