"""Finds candidates that nearly repeat clicked news, by their vectors; needs only numpy."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from newsrec.errors import UserError

ROUNDING = 1e-6
"""A repeat's cosine may be this much below the threshold: equal vectors do not give exactly 1."""
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


def _of_length_one(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled
