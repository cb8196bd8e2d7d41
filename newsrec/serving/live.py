"""Recommends from a catalogue that changes all the time; see ``LiveRecommender``."""

import logging
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from newsrec.errors import StoreError, UserError
from newsrec.serving.arguments import look_up
from newsrec.serving.clicks import ClickStore
from newsrec.serving.engines import Engines
from newsrec.serving.folder import ExportFolder
from newsrec.serving.items import Click, NewsItem, check_clicks, check_items, check_text, check_time
from newsrec.serving.live_ranking import place, rank, recommend
from newsrec.serving.live_results import Answer, Near, Placed, Recommended, Stats, UserClicks
from newsrec.serving.results import AddedNews
from newsrec.serving.rules import Rules
from newsrec.serving.store import NewsStore, store_folder

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

log = logging.getLogger(__name__)

DEFAULT_RULES = Rules()
PURGE_S = 3600.0
"""Pause between two looks for clicks that are too old."""


class LiveRecommender:
    """An export's encoders over the news and clicks of a store; threads may share it.

    Each call first takes in what other threads and processes wrote, so it sees all writes that were
    acknowledged before. What a method wrote is on the disk when it returns.

    Args:
        export: The exported folder; None is the one that answers in the store.
        store: Folder of the store.
        retention_days: As in ``open``.
        threads: As in ``open``.
        index_above: As in ``open``.
    """

    def __init__(
        self,
        export: ExportFolder | None,
        store: Path,
        retention_days: float | None = None,
        threads: int | None = None,
        index_above: int | None = None,
    ) -> None:
        self.store = store
        self._stop = threading.Event()
        self._clicks = ClickStore(store, retention_days)
        try:
            self._clicks.purge()
            self._news = NewsStore(store)
            try:
                self._engines = Engines(self._news, export, threads, index_above)
            except BaseException:
                self._news.close()
                raise
        except BaseException:
            self._clicks.close()
            raise
        self._purging = threading.Thread(target=self._purge, daemon=True)
        if retention_days is not None:
            self._purging.start()

    @classmethod
    def open(
        cls,
        export: str | Path | None,
        store: str | Path | None = None,
        *,
        retention_days: float | None = None,
        threads: int | None = None,
        index_above: int | None = None,
    ) -> "LiveRecommender":
        """Open a store with an export, which is only read.

        A new store takes over the export's news and vectors. If news of a store lack vectors of
        this export, these are made in the background. Until they are, the export that answered last
        still answers. If that one is gone, ``ready`` is False, and answers only contain news that
        have a vector.

        Args:
            export: The exported folder; None is the one that answers in the store.
            store: Folder of the store; None is the export's name with ``.store`` behind it.
            retention_days: Age at which clicks are deleted: they count no more from then on, and
                are gone from the disk within a day. None keeps them.
            threads: Threads of the encoders; None uses all cores.
            index_above: Number of news above which an index proposes what is scored, except with
                ``half_life``, ``diversity``, ``calibration`` or few allowed news; None scores all.

        Raises:
            UserError: If the export or the store cannot be used.
        """
        path = store_folder(export, store)
        folder = None if export is None else ExportFolder(export)
        return cls(folder, path, retention_days, threads, index_above)

    @property
    def version(self) -> str:
        """Short hash of the export whose vectors answer now."""
        return self._engines.engine.version

    @property
    def ready(self) -> bool:
        """Whether all news can be recommended; False at the start until their vectors are made."""
        return not self._engines.starting

    def switch(self, export: str | Path) -> None:
        """Make the vectors of another export in the background, then answer with it.

        All processes on the store then change to it. Nothing is lost if the process is killed
        before: the vectors made so far are in the store, and the rest is made when the export is
        opened again.

        Raises:
            UserError: If the folder cannot be used, or an export is being prepared already.
        """
        self._engines.switch(ExportFolder(export))

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until no export is being prepared; False if one still is after ``seconds``."""
        return self._engines.wait(seconds)

    def refresh(self) -> None:
        """Take in what others wrote; each other call does so, too."""
        self._engines.refresh()

    def recommend(
        self,
        history: Sequence[str] | None = None,
        user_id: str | None = None,
        k: int = 10,
        rules: Rules = DEFAULT_RULES,
        explain: bool = False,
        now: datetime | None = None,
    ) -> Answer:
        """Return the best news for a user.

        Args:
            history: Ids of the news that the user clicked, oldest first.
            user_id: A user whose clicks are in the store, instead of a history. Without both, and
                for a user without clicks, the history is empty.
            k: Number of news; fewer are returned if fewer are allowed.
            rules: What may be recommended.
            explain: Whether to say how much each click adds to each score.
            now: Time from which ages count; None is the time of the call.

        Raises:
            UserError: If an argument is invalid.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise UserError(f"k is {k!r}; it must be a number, 1 or more.")
        ids = self._history(history, user_id)
        look_up(rules.exclude, {}, "exclude")
        at = _seconds(now)
        return recommend(self._engines.refresh(), ids, int(k), rules, at, explain)

    def rank(
        self,
        candidates: Sequence[str],
        history: Sequence[str] | None = None,
        user_id: str | None = None,
        explain: bool = False,
    ) -> Answer:
        """Return all candidates, best first; unknown ones have the score of the mean vector.

        Args:
            candidates: Ids of the news to rank, each once.
            history: As in ``recommend``; so are the following.
            user_id: A user whose clicks are in the store.
            explain: Whether to say how much each click adds to each score.

        Raises:
            UserError: If an argument is invalid.
        """
        look_up(candidates, {}, "candidates", once=True)
        ids = self._history(history, user_id)
        return rank(self._engines.refresh(), ids, candidates, _seconds(None), explain)

    def _history(self, history: Sequence[str] | None, user_id: str | None) -> Sequence[str]:
        """Return the history that was given, or that of a user of the store."""
        if user_id is None:
            look_up(history or [], {}, "history")
            return history or []
        if history is not None:
            raise UserError("Both history and user_id were given; give one of them.")
        check_text(user_id, "user_id", "user_id")
        return [news_id for news_id, _ in self._clicks.of(user_id)]

    def upsert_news(self, items: Sequence[NewsItem]) -> AddedNews:
        """Add news, or replace those with the same ids, all or none of them.

        A vector is made only if the text that the model reads is new.

        Raises:
            UserError: If an item is invalid, or cannot be encoded or stored.
        """
        checked = check_items(items)
        return self._engines.refresh().upsert(checked)

    def delete_news(self, news_id: str) -> bool:
        """Delete a news item; False if there was none."""
        gone = self._news.delete(check_text(news_id, "news_id", "news_id"))
        self._engines.refresh()
        return gone

    def news_item(self, news_id: str) -> NewsItem | None:
        """Return a news item; None if there is none."""
        return self._news.item(check_text(news_id, "news_id", "news_id"))

    def find_news(self, text: str, k: int = 20) -> list[NewsItem]:
        """Return news whose titles contain each word of a text, newest first; all for no word."""
        return self._news.find(check_text(text, "title", "text"), k)

    def place_headline(self, item: NewsItem, history: Sequence[str], k: int = 10) -> Placed:
        """Return where a news item would rank for a user, and the news nearest to it.

        The history does not count. The item is not stored, and its id may be empty; with an id of
        the catalogue the catalogue's vector is placed.

        Args:
            item: The news item.
            history: Ids of the news that the user clicked, oldest first.
            k: Number of news that are near.

        Raises:
            UserError: If an argument is invalid, or the export cannot encode news.
        """
        check_items([item._replace(news_id=item.news_id or "headline")])
        ids = self._history(history, None)
        return place(self._engines.refresh(), item, ids, k)

    def add_clicks(self, clicks: Sequence[Click]) -> int:
        """Store clicks, all or none, and return how many of them were new.

        The news need not be known, or may be deleted: they count once they are in the catalogue.

        Raises:
            UserError: If a click is invalid, or cannot be stored.
        """
        return self._clicks.add(check_clicks(clicks))

    def user(self, user_id: str) -> UserClicks | None:
        """Return a user's clicks, oldest first; None if there are none."""
        clicks = self._clicks.of(check_text(user_id, "user_id", "user_id"))
        return UserClicks(user_id, clicks) if clicks else None

    def users(self, k: int = 50) -> list[str]:
        """Return the users who clicked last."""
        return self._clicks.users(k)

    def delete_user(self, user_id: str) -> bool:
        """Delete a user's clicks, from the disk too; False if there were none."""
        return self._clicks.delete(check_text(user_id, "user_id", "user_id"))

    def stats(self) -> Stats:
        """Return sizes and state, without taking in what others wrote."""
        engine, building = self._engines.engine, self._engines.building
        news, lacking = self._news.counts((building or engine).export) if building else (0, 0)
        users, clicks = self._clicks.counts()
        return Stats(
            len(engine.slots), users, clicks, engine.slots.num_free, engine.lag(),
            building.version if building else None, news - lacking, news,
        )  # fmt: skip

    def _purge(self) -> None:
        while not self._stop.wait(PURGE_S):
            try:
                self._clicks.purge()
            except StoreError as error:
                log.warning("Old clicks could not be deleted: %s", error)

    def close(self) -> None:
        """Close the store; work in the background ends first."""
        self._stop.set()
        self._engines.close()
        if self._purging.is_alive():
            self._purging.join()
        self._news.close()
        self._clicks.close()


def _seconds(now: datetime | None) -> float:
    """Return a time in seconds since 1970; None is the present."""
    return (datetime.now(UTC) if now is None else check_time(now, "now")).timestamp()
