"""Computes scores like ``newsrec.model.matching``, but with numpy only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsrec.serving.vectors import Vectors, part, products

NEWS_AT_ONCE = 8192
"""News whose products with all vectors of a user are in memory at once."""

FEW_NEWS = 1024
"""With fewer, ``np.partition`` finds the largest products faster than comparing whole rows."""

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Users:
    """All vectors from which users are scored, and how their products become one score."""

    vectors: NDArray[np.float32]
    """Vectors of each user ``[users, vectors, dim]``."""
    mask: NDArray[np.bool_] | None = None
    """With ``late``, True where a click is real; vector 0 is the user's own and has no entry here
    ``[users, vectors - 1]``."""
    combine: Callable[[Scores], Scores] | None = None
    """Turns one user's products ``[vectors, news]`` into scores ``[news]``; None takes the highest
    product."""

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice) -> "Users":
        mask = None if self.mask is None else self.mask[rows]
        return Users(self.vectors[rows], mask, self.combine)

    def real_vectors(self, user: int) -> NDArray[np.float32]:
        """Return a user's vectors without those of clicks that are padding ``[vectors, dim]``."""
        vectors: NDArray[np.float32] = self.vectors[user]
        return vectors if self.mask is None else vectors[np.append(True, self.mask[user])]


def match_all(
    users: NDArray[np.float32] | Users, news: Vectors, out: Scores | None = None
) -> Scores:
    """Score all news for all users.

    Args:
        users: Users, or user vectors ``[users, interests, dim]``.
        news: News vectors ``[news, dim]``.
        out: Array to write the scores into ``[users, news]``.

    Returns:
        Scores ``[users, news]``.
    """
    users = users if isinstance(users, Users) else Users(users)
    if users.vectors.shape[1] == 1:  # one product is its own highest, in every matching
        return products(users.vectors[:, 0], news, out)
    if out is None:
        out = np.empty((len(users), len(news)), dtype=np.float32)
    combine = users.combine or highest
    for user in range(len(users)):
        vectors = users.real_vectors(user)
        for start in range(0, len(news), NEWS_AT_ONCE):
            block = slice(start, start + NEWS_AT_ONCE)
            out[user, block] = combine(products(vectors, part(news, block)))
    return out


def highest(products: Scores) -> Scores:
    """Return the highest of the products of each news item ``[vectors, news]``."""
    best: Scores = products.max(axis=0)
    return best


def with_clicks(products: Scores, clicks: int) -> Scores:
    """Add the mean of the largest products with clicks to the product with the user vector.

    Args:
        products: Product with the user vector, then with each click; changed
            ``[1 + clicks, news]``.
        clicks: Most products to average.
    """
    num_clicks, num_news = len(products) - 1, products.shape[1]
    taken = min(clicks, num_clicks)
    scores: Scores = products[0]
    if not taken:
        return scores
    if num_news < FEW_NEWS:
        largest = np.partition(products[1:], num_clicks - taken, axis=0)[num_clicks - taken :]
    else:
        largest = products[1 : 1 + taken]  # moves the largest here, whole rows at a time
        spare = np.empty_like(products[0])
        for row in range(1, num_clicks):
            for place in range(min(row, taken)):
                above, below = products[1 + place], products[1 + row]
                np.maximum(above, below, out=spare)
                np.minimum(above, below, out=below)
                above[:] = spare
    scores = scores + largest.mean(axis=0)
    return scores


def smooth_highest(products: Scores, temperature: float) -> Scores:
    """Return the smooth maximum of the products of each news item ``[vectors, news]``."""
    best = products.max(axis=0)
    mean = np.exp((products - best) / np.float32(temperature)).mean(axis=0)
    scores: Scores = best + np.float32(temperature) * np.log(mean)
    return scores


OUTPUTS = {
    "dot": ("user_vector",),
    "late": ("user_vector", "click_vectors", "click_mask"),
    "interests": ("user_vector", "interest_vectors"),
}
"""Outputs of the user encoder's graph for each way to make scores, in their order."""


COMBINE = ("logsumexp", "max")
"""Ways in which ``interests`` makes one score of its products."""


class Matching:
    """How an exported model makes scores.

    Args:
        settings: ``matching`` in ``manifest.json``, checked; None is ``dot``, as in folders that
            were written before there were others.
    """

    def __init__(self, settings: Mapping[str, Any] | None) -> None:
        self.settings = settings or {"head": "dot"}
        self.head: str = self.settings["head"]
        self.outputs = OUTPUTS[self.head]

    def num_vectors(self, history: int) -> int:
        """Return the number of vectors of users whose longest history is this."""
        return 1 + history if self.head == "late" else self.settings.get("interests", 1)

    def shapes(self, users: int, history: int, dim: int) -> list[tuple[int, ...]]:
        """Return the shapes of the outputs for histories that are padded to this length."""
        if self.head == "late":
            return [(users, dim), (users, history, dim), (users, history)]
        vectors = (users, self.num_vectors(history), dim)
        return [(users, dim), vectors] if self.head == "interests" else [(users, dim)]

    def users(self, outputs: Sequence[NDArray[Any]]) -> Users:
        """Return users from the outputs of the user encoder's graph."""
        if self.head == "late":
            vectors = np.concatenate([outputs[0][:, None], outputs[1]], axis=1)
            return Users(vectors, outputs[2], self.combine)
        return Users(
            outputs[-1].reshape(len(outputs[0]), -1, outputs[0].shape[1]), None, self.combine
        )

    def combine(self, products: Scores) -> Scores:
        """Turn one user's products ``[vectors, news]`` into scores ``[news]``."""
        if self.head == "late":
            return with_clicks(products, self.settings["clicks"])
        if self.settings.get("combine") == "logsumexp":
            return smooth_highest(products, self.settings["temperature"])
        return highest(products)
