"""The results that a live recommender returns."""

from datetime import datetime
from typing import NamedTuple

from newsrec.serving.explain import Explanation


class Recommended(NamedTuple):
    """A news item with its score for a user."""

    news_id: str
    score: float
    """After the age term."""
    title: str | None
    """None, as are the following, if the catalogue lacks a candidate."""
    category: str | None
    subcategory: str | None
    published: datetime | None
    age_hours: float | None
    """None if the time of publication is not known."""
    explanation: Explanation | None = None
    """None if it was not asked for."""


class Answer(NamedTuple):
    """News for one user, best first."""

    news: list[Recommended]
    history: list[str]
    """Ids of the clicks that the model read, oldest first."""
    unknown_history: list[str]
    """Ids of the history that the catalogue lacks, each once; they were left out."""
    unknown_candidates: list[str]
    """Candidates that the catalogue lacks; they have the score of the catalogue's mean vector."""
    version: str
    """Short hash of the export that answered."""


class Near(NamedTuple):
    """A news item near a headline."""

    news_id: str
    title: str
    category: str
    cosine: float


class Placed(NamedTuple):
    """Where a headline would rank for a user."""

    score: float
    rank: int
    """1 if no news item that is not in the history has a higher score."""
    of: int
    """Number of news that are not in the history, the headline not counted."""
    near: list[Near]
    """The nearest news by their vectors, nearest first."""
    version: str


class UserClicks(NamedTuple):
    """The clicks of a user, oldest first."""

    user_id: str
    clicks: list[tuple[str, datetime]]
    """News id and time in UTC of each click."""


class Stats(NamedTuple):
    """Sizes and state of a live recommender."""

    news: int
    """News that answers can contain."""
    users: int
    clicks: int
    free_slots: int
    """Rows of the array of vectors that hold no news item."""
    lag_seconds: float
    """Age of the oldest write that answers do not show yet; 0 if they show all."""
    encoding: str | None
    """Version of the export whose vectors are being made in the background; None if none are."""
    encoded: int
    """News of the store that have a vector of this export; of ``encode_total``."""
    encode_total: int
