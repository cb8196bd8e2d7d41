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
    """One reader's candidates in a new order."""

    news_ids: list[str]
    """Best first; candidates with equal scores in the order in which they were given."""
    scores: NDArray[np.float32]
    """Their scores ``[news_ids]``."""
    unknown_history: list[str]
    """Ids of the history that the catalogue does not know, each once: they were left out."""
    unknown_candidates: list[str]
    """Candidates that the catalogue does not know: they have the unknown story's score."""


class AddedNews(NamedTuple):
    """What became of stories that were to be added; the first two were encoded."""

    added: int
    """Stories whose id was new."""
    replaced: int
    """Stories whose id was known with another text."""
    unchanged: int
    """Stories whose id was known with the same text."""
