"""Explains scores: how much each click of the history adds; see ``newsrec.attribution``.

With ``late``, the share of the most similar clicks is exact, and only the product with the user
vector is divided by runs of the encoder.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.attribution import Attributions, attribute, runs
from newsrec.serving.matching import Users, match_all
from newsrec.serving.sessions import Encoders
from newsrec.serving.vectors import Vectors


class Explanation(NamedTuple):
    """What adds up to the score of a news item: ``clicks``, ``rest`` and ``age``."""

    clicks: list[tuple[str, float]]
    """Id of each click that the model reads, oldest first, and what it adds to the score."""
    rest: float
    """What no click adds: the score of a user whose clicks the model cannot see."""
    age: float
    """What was added for the age of the news item, 0 or less."""
    method: str
    """``exact`` if the score is linear in the clicks, else ``shapley``."""

    def plain(self) -> dict[str, Any]:
        """Return the explanation as values for JSON."""
        clicks = [{"news_id": news_id, "value": value} for news_id, value in self.clicks]
        return {"clicks": clicks, "rest": self.rest, "age": self.age, "method": self.method}


def explain(
    encoders: Encoders,
    history: Sequence[int],
    news: Vectors,
    candidates: Sequence[int] | NDArray[np.integer],
) -> Attributions:
    """Divide the scores of some news among the last ``max_history`` clicks of one history.

    Args:
        encoders: The encoders.
        history: Rows of ``news`` that the user clicked, oldest first; may be empty.
        news: News vectors ``[news, dim]``.
        candidates: Rows of ``news`` to explain.
    """
    clicked = news[np.asarray(history[-encoders.max_history :], dtype=np.int64)]
    what, vectors = runs(len(clicked)), news[np.asarray(candidates, dtype=np.int64)]
    local = np.concatenate([np.zeros((1, encoders.dim), np.float32), clicked])  # row 0 is no click
    histories = what.kept * np.arange(1, len(local))
    users = encoders.users(histories.tolist(), local)
    if encoders.matching.head != "late":
        return attribute(what, match_all(users, vectors))
    clicks = users.vectors[-1, 1 : 1 + len(clicked)]
    scores = match_all(Users(users.vectors[:, :1]), vectors)
    most = encoders.matching.settings["clicks"]
    return attribute(what, scores, np.matmul(clicks, vectors.T), most)


def explanations(
    attributions: Attributions,
    history: Sequence[str],
    ages: NDArray[np.floating] | None = None,
) -> list[Explanation]:
    """Return an explanation for each news item.

    Args:
        attributions: What ``explain`` returned.
        history: Ids of the clicks; the last ones are those that were read.
        ages: Age term of each news item ``[news]``; None is 0.
    """
    number = attributions.values.shape[1]
    read = history[len(history) - number :]
    terms = np.zeros(len(attributions.rest)) if ages is None else ages
    method = "exact" if attributions.exact else "shapley"
    return [
        Explanation(list(zip(read, values, strict=True)), rest, age, method)
        for values, rest, age in zip(
            attributions.values.tolist(), attributions.rest.tolist(), terms.tolist(), strict=True
        )
    ]
