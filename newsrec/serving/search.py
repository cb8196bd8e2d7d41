"""Exact search: the best of all scores, for many readers at a time; numpy alone."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.serving.matching import match_all

SCORES_AT_ONCE = 16 * 2**20
"""Scores that are held at once, at most (one reader at least): 64 MiB."""

GROUPS, GROUPS_PER_RESULT = 1024, 8
"""Groups whose maxima are compared first: so many, or so many times ``k``; measured."""


class Best(NamedTuple):
    """What one reader should see."""

    rows: NDArray[np.int64]
    """Rows of the stories, best first ``[found]``."""
    scores: NDArray[np.float32]
    """Their scores ``[found]``."""


def search(
    users: NDArray[np.float32],
    news: NDArray[np.float32],
    k: int,
    excluded: Sequence[Sequence[int]] = (),
    allowed: NDArray[np.bool_] | None = None,
) -> Iterator[Best]:
    """Score every story for every reader, and yield each reader's best.

    Args:
        users: User vectors ``[users, interests, dim]``.
        news: News vectors ``[news, dim]``.
        k: Stories for each reader, from 1 to the number of stories.
        excluded: For each reader the rows that must not be found ``[users]``; none if empty.
        allowed: False where a story must not be found by anybody ``[news]``.

    Yields:
        For each reader the ``k`` best stories; fewer where fewer may be found.
    """
    at_once = max(1, min(len(users), SCORES_AT_ONCE // len(news)))
    # One array for all blocks: fresh memory costs more than what is computed into it.
    block = np.empty((at_once, len(news)), dtype=np.float32)
    penalty = None if allowed is None else np.where(allowed, 0, -np.inf).astype(np.float32)
    for start in range(0, len(users), at_once):
        part = users[start : start + at_once]
        scores = match_all(part, news, out=block[: len(part)])
        if penalty is not None:
            scores += penalty
        for user, row in enumerate(scores, start):
            if excluded:
                row[excluded[user]] = -np.inf
            rows = top_k(row, k)
            yield Best(rows, row[rows])


def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return where the highest scores are, best first, equal ones in their order ``[found]``.

    Args:
        scores: Any but NaN; minus infinity is never found ``[news]``.
        k: Number of scores, from 1 to all; fewer are found where fewer are finite.
    """
    rows = np.flatnonzero(scores >= _low_bar(scores, k))
    return rows[np.argsort(-scores[rows], kind="stable")[:k]]


def _low_bar(scores: NDArray[np.float32], k: int) -> np.float32:
    """Return a score that at least ``k`` scores reach, and not many more."""
    # Each group has a score that reaches its maximum, so k scores reach the k-th highest maximum.
    # Maxima cost a fraction of partitioning all scores. Groups are strided, since neighbours
    # (stories of one day, say) may well be alike, and the best should not share a group.
    groups = max(GROUPS, GROUPS_PER_RESULT * k)
    if len(scores) >= 2 * groups:
        whole = len(scores) - len(scores) % groups
        maxima = scores[:whole].reshape(-1, groups).max(axis=0)
        scores = np.concatenate([maxima, scores[whole:]])
    bar = np.partition(scores, len(scores) - k)[len(scores) - k]
    low: np.float32 = np.maximum(bar, np.finfo(np.float32).min)  # minus infinity is below it
    return low
