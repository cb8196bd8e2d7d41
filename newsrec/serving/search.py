"""Exact search for the best news of many users at a time; needs only numpy."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.reranking import repeats
from newsrec.serving.matching import FEW_NEWS, Scores, Users, highest, match_all
from newsrec.serving.vectors import NUMBERS_AT_ONCE, Vectors, blocks

SCORES_AT_ONCE = 16 * 2**20
"""Most scores in memory at once, which take 64 MiB; at least the scores of one user."""

GROUPS, GROUPS_PER_RESULT = 1024, 8
"""Scores are divided into ``max(GROUPS, GROUPS_PER_RESULT * k)`` groups, whose maxima are compared
first. These values were the fastest in measurements."""

ROUNDING = 2.0**-24
"""Largest relative error of one operation in float32."""


class Best(NamedTuple):
    """The best news for one user."""

    rows: NDArray[np.int64]
    """Rows of the news, best first ``[found]``."""
    scores: NDArray[np.float32]
    """Score of each of these ``[found]``."""


def excluded_rows(
    news: Vectors,
    clicks: Sequence[list[int]],
    history: bool = True,
    repeated: float | None = None,
) -> list[list[int]]:
    """Return, for each user, the rows that ``search`` must not find.

    Args:
        news: News vectors ``[news, dim]``.
        clicks: Rows that each user clicked ``[users]``.
        history: Whether to leave out the clicked news.
        repeated: Leave out news whose vector has at least this cosine with that of a clicked news
            item; None leaves out none.
    """
    excluded = [list(rows) if history else [] for rows in clicks]
    if repeated is not None:
        for found, rows in zip(excluded, clicks, strict=True):
            for block in blocks(news):
                near = repeats(news, block, rows, repeated)  # type: ignore[arg-type]
                found += (block.start + np.flatnonzero(near)).tolist()
    return excluded


def search(
    users: NDArray[np.float32] | Users,
    news: Vectors,
    k: int,
    excluded: Sequence[Sequence[int]] = (),
    allowed: NDArray[np.bool_] | None = None,
    best: Sequence[Callable[[NDArray[np.float32]], Best]] | None = None,
) -> Iterator[Best]:
    """Score all news for all users, and yield each user's best.

    Args:
        users: Users, or user vectors ``[users, interests, dim]``.
        news: News vectors ``[news, dim]``.
        k: Number of news to find for each user, from 1 to the number of all news.
        excluded: For each user, the rows that must not be found ``[users]``; empty excludes none.
        allowed: False for news that must not be found for any user ``[news]``.
        best: For each user, finds the best news by the scores of all, minus infinity for news that
            must not be found ``[news]``; None finds the ``k`` highest scores.

    Yields:
        The ``k`` best news of each user; fewer if fewer may be found.
    """
    at_once = max(1, min(len(users), SCORES_AT_ONCE // len(news)))
    # Use one array for all blocks: allocating it anew would cost more than computing the scores.
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
            if best is not None:
                yield best[user](row)
                continue
            rows = top_k(row, k)
            yield Best(rows, row[rows])


def top_k(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the positions of the highest scores, best first, ties by position ``[found]``.

    Args:
        scores: Scores without NaN; minus infinity is never found ``[news]``.
        k: Number of scores, from 1 to all; fewer are found if fewer are finite.
    """
    rows = np.flatnonzero(scores >= _low_bar(scores, k))
    return rows[np.argsort(-scores[rows], kind="stable")[:k]]


def _low_bar(scores: NDArray[np.float32], k: int) -> np.float32:
    """Return a bound that at least ``k`` scores reach, but not many more."""
    # The k highest group maxima are scores themselves, so at least k scores reach the k-th of them.
    # Computing maxima is much cheaper than partitioning all scores. Groups are strided, because
    # neighbours (such as news of one day) may be similar, and the best should be in many groups.
    groups = max(GROUPS, GROUPS_PER_RESULT * k)
    if len(scores) >= 2 * groups:
        whole = len(scores) - len(scores) % groups
        maxima = scores[:whole].reshape(-1, groups).max(axis=0)
        scores = np.concatenate([maxima, scores[whole:]])
    bar = np.partition(scores, len(scores) - k)[len(scores) - k]
    low: np.float32 = np.maximum(bar, np.finfo(np.float32).min)  # excludes minus infinity
    return low


def score_alone(user: Users, news: Vectors, rows: NDArray[np.integer]) -> Scores:
    """Score some news for one user, each news item by itself ``[rows]``.

    The last bits of a matrix product depend on its shape and on the number of threads. Here every
    product is a sum over one pair of vectors, so a score depends on nothing else.

    Args:
        user: One user.
        news: News vectors ``[news, dim]``.
        rows: Rows of the news to score.
    """
    vectors = user.real_vectors(0)
    combine = user.combine if user.vectors.shape[1] > 1 else None
    found = np.empty(len(rows), np.float32)
    # Below FEW_NEWS, with_clicks sums in one order.
    step = max(1, min(FEW_NEWS - 1, NUMBERS_AT_ONCE // vectors.size))
    for start in range(0, len(rows), step):
        block = news[rows[start : start + step]]
        products = np.add.reduce(vectors[:, None] * block, axis=2)
        found[start : start + step] = (combine or highest)(products)
    return found


def best_alone(scores: Scores, user: Users, news: Vectors, k: int, longest: float) -> Best:
    """Return one user's best news by ``score_alone``, from scores that may be a little off.

    Args:
        scores: Scores by ``match_all``; minus infinity for news that must not be found ``[news]``.
        user: One user.
        news: News vectors ``[news, dim]``.
        k: Number of news to find, from 1 to the number of all news.
        longest: Largest length of a news vector.
    """
    # The k-th best exact score is at least the k-th best given score less the error. So news with a
    # given score that is lower than this by more than the error is not among the best. A sum over
    # dim products is wrong by at most dim roundings of the lengths' product, whatever its order.
    # The factor 16 covers two such sums, a score that adds two products, and what combines them; 64
    # its few operations.
    length = float(np.linalg.norm(user.real_vectors(0), axis=1).max()) * longest
    error = 16 * ROUNDING * ((news.shape[1] + 64) * length + 64)
    rows = np.flatnonzero(scores >= _low_bar(scores, k) - np.float32(error))
    exact = score_alone(user, news, rows)
    places = top_k(exact, min(k, len(exact))) if len(exact) else rows
    return Best(rows[places], exact[places])
