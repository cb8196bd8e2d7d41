"""Computes scores like ``newsrec.model.matching``, but with numpy only."""

import numpy as np
from numpy.typing import NDArray


def match_all(
    users: NDArray[np.float32], news: NDArray[np.float32], out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Score all news for all users.

    Args:
        users: User vectors ``[users, interests, dim]``.
        news: News vectors ``[news, dim]``.
        out: Array to write the scores into ``[users, news]``.

    Returns:
        For each user and news item, the highest score over the user's interests ``[users, news]``.
    """
    num_users, interests, dim = users.shape
    if interests == 1:
        scores: NDArray[np.float32] = np.matmul(users[:, 0], news.T, out=out)
        return scores
    each = np.matmul(users.reshape(-1, dim), news.T).reshape(num_users, interests, len(news))
    best: NDArray[np.float32] = each.max(axis=1, out=out)
    return best
