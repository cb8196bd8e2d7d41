"""What a recommender answers."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Recommendations(NamedTuple):
    """The best stories of the catalogue for one reader."""

    news_ids: list[str]
    """Best first; stories with equal scores in the order of the catalogue."""
    scores: NDArray[np.float32]
    """Their scores ``[news_ids]``."""
    unknown_history: list[str]
    """Ids of the history that the catalogue does not know, each once: they were left out."""


class Ranking(NamedTuple):
    """One user's candidates: their scores as they were given, and the order that these make."""

    candidates: list[str]
    """As they were given."""
    candidate_scores: NDArray[np.float32]
    """Score of each of ``candidates``, in that order ``[candidates]``."""
    ranked_ids: list[str]
    """Best first; candidates with equal scores in the order in which they were given."""
    ranked_scores: NDArray[np.float32]
    """Score of each of ``ranked_ids``, falling ``[candidates]``."""
    unknown_history: list[str]
    """Ids of the history that the catalogue does not know, each once: they were left out."""
    unknown_candidates: list[str]
    """Candidates that the catalogue does not know. Their score is the user's mean over the whole
    catalogue; of the rules compared by ``tests/benchmarks/unknown.py``, none is clearly better."""

    @property
    def news_ids(self) -> list[str]:
        """``ranked_ids``, as recommendations call them."""
        return self.ranked_ids

    @property
    def scores(self) -> NDArray[np.float32]:
        """Nothing: the name does not say in which order.

        Raises:
            AttributeError: Always; names the two that say it.
        """
        raise AttributeError(
            "Ranking.scores could be read two ways and is gone. candidate_scores are in the order "
            "of the candidates that you gave, ranked_scores (what scores was) in that of ranked_ids"
        )


class AddedNews(NamedTuple):
    """What became of stories that were to be added; the first two were encoded."""

    added: int
    """Stories whose id was new."""
    replaced: int
    """Stories whose id was known with another text."""
    unchanged: int
    """Stories whose id was known with the same text."""
