"""The results that a recommender returns."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Recommendations(NamedTuple):
    """The best news of the catalogue for one user."""

    news_ids: list[str]
    """Best first; news with equal scores in the order of the catalogue."""
    scores: NDArray[np.float32]
    """Score of each of ``news_ids`` ``[news_ids]``."""
    unknown_history: list[str]
    """Ids of the history that are not in the catalogue, each once; they were left out."""


class Ranking(NamedTuple):
    """One user's candidates with their scores, in the given order and ranked."""

    candidates: list[str]
    """Ids of the candidates, in the order in which they were given."""
    candidate_scores: NDArray[np.float32]
    """Score of each of ``candidates`` ``[candidates]``."""
    ranked_ids: list[str]
    """The same ids, best first; candidates with equal scores in the given order."""
    ranked_scores: NDArray[np.float32]
    """Score of each of ``ranked_ids``, descending ``[candidates]``."""
    unknown_history: list[str]
    """Ids of the history that are not in the catalogue, each once; they were left out."""
    unknown_candidates: list[str]
    """Candidates that are not in the catalogue. They get the score of the catalogue's mean vector;
    with dot products this is the user's mean score over the whole catalogue.
    ``tests/benchmarks/unknown.py`` compares other rules, and none is clearly better."""

    @property
    def news_ids(self) -> list[str]:
        """``ranked_ids``, under the name that ``Recommendations`` uses."""
        return self.ranked_ids

    @property
    def scores(self) -> NDArray[np.float32]:
        """Removed, because the name did not say the order of the scores.

        Raises:
            AttributeError: Always; the message names the two replacements.
        """
        raise AttributeError(
            "Ranking.scores had an unclear order and was removed. candidate_scores are in the "
            "order of the candidates that you gave, ranked_scores (what scores was) in that of "
            "ranked_ids"
        )


class AddedNews(NamedTuple):
    """Numbers of news that ``add_news`` added, replaced and left unchanged."""

    added: int
    """News whose id was new; they were encoded."""
    replaced: int
    """News whose id was known with another text; they were encoded again."""
    unchanged: int
    """News whose id was known with the same text; they keep their vectors."""
