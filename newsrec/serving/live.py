"""Recommends from a catalogue that changes all the time; see ``LiveRecommender``."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from newsrec.serving.items import Click, NewsItem
from newsrec.serving.live_results import (
    Answer,
    Near,
    Placed,
    Recommended,
    Stats,
    UserClicks,
)
from newsrec.serving.results import AddedNews
from newsrec.serving.rules import Rules

__all__ = [
    "AddedNews",
    "Answer",
    "Click",
    "LiveRecommender",
    "Near",
    "NewsItem",
    "Placed",
    "Recommended",
    "Rules",
    "Stats",
    "UserClicks",
]


class LiveRecommender:
    """An export's encoders over the news and clicks of a store; threads may share it."""

    version: str
    """Short hash of the export whose vectors answer now."""
    ready: bool
    """Whether all news can be recommended; False while many of them lack a vector."""

    @classmethod
    def open(
        cls,
        export: str | Path,
        store: str | Path | None = None,
        *,
        retention_days: float | None = None,
        threads: int | None = None,
        index_above: int | None = None,
    ) -> "LiveRecommender":
        """Open a store with an export; a new store takes over the export's news and vectors."""
        raise NotImplementedError

    def recommend(
        self,
        history: Sequence[str] | None = None,
        user_id: str | None = None,
        k: int = 10,
        rules: Rules = Rules(),  # noqa: B008, it is frozen
        explain: bool = False,
        now: datetime | None = None,
    ) -> Answer:
        """Return the best news for a history, or for a user's clicks in the store."""
        raise NotImplementedError

    def rank(
        self,
        candidates: Sequence[str],
        history: Sequence[str] | None = None,
        user_id: str | None = None,
        explain: bool = False,
    ) -> Answer:
        """Return all candidates, best first."""
        raise NotImplementedError

    def upsert_news(self, items: Sequence[NewsItem]) -> AddedNews:
        """Add news, or replace those with the same id; durable and visible at return."""
        raise NotImplementedError

    def delete_news(self, news_id: str) -> bool:
        """Delete a news item; False if there was none."""
        raise NotImplementedError

    def news_item(self, news_id: str) -> NewsItem | None:
        """Return a news item; None if there is none."""
        raise NotImplementedError

    def find_news(self, text: str, k: int = 20) -> list[NewsItem]:
        """Return news whose title holds each word of a text, newest first."""
        raise NotImplementedError

    def place_headline(self, item: NewsItem, history: Sequence[str], k: int = 10) -> Placed:
        """Return where a news item would rank, and what is near; it is not stored."""
        raise NotImplementedError

    def add_clicks(self, clicks: Sequence[Click]) -> int:
        """Store clicks, and return how many of them were new."""
        raise NotImplementedError

    def user(self, user_id: str) -> UserClicks | None:
        """Return a user's clicks, oldest first; None if there are none."""
        raise NotImplementedError

    def users(self, k: int = 50) -> list[str]:
        """Return the users whose clicks are the newest."""
        raise NotImplementedError

    def delete_user(self, user_id: str) -> bool:
        """Delete a user's clicks from the disk, too; False if there were none."""
        raise NotImplementedError

    def switch(self, export: str | Path) -> None:
        """Make the vectors of another export in the background, then answer with it."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Take in what other processes wrote; each call does this first."""
        raise NotImplementedError

    def stats(self) -> Stats:
        """Return sizes and state."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the store; a background thread ends after its block."""
        raise NotImplementedError
