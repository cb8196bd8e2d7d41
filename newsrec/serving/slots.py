"""News vectors in one array with free rows, to which threads add and from which they delete.

A row is written only while nobody can see it: a news item that is replaced gets another row, and a
row that became free is used again when all views that could see its news item are closed. So a
thread that ranks sees the news of one moment, without a copy of the vectors and without making
those who write wait.
"""

import contextlib
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.serving.items import NewsItem

FIRST_ROOM = 1024
"""Rows of an empty array."""


class View(NamedTuple):
    """The news of one moment; a row is a position in each array."""

    vectors: NDArray[np.float32]
    """Vectors; rows without a news item have any numbers ``[rows, dim]``."""
    alive: NDArray[np.bool_]
    """Whether a row has a news item ``[rows]``."""
    category: NDArray[np.int32]
    """Code of each news item's category ``[rows]``."""
    published: NDArray[np.float64]
    """Seconds since 1970; NaN if not known ``[rows]``."""
    items: Sequence[NewsItem]
    """The news items, without abstracts ``[rows]``."""
    unknown: NDArray[np.float32]
    """Mean of all vectors ``[dim]``."""
    num_news: int
    found: list[list[int | None]]
    """Row of each id that was asked for, list by list; None if it is unknown."""


class _Arrays(NamedTuple):
    vectors: NDArray[np.float32]
    category: NDArray[np.int32]
    published: NDArray[np.float64]

    @classmethod
    def of(cls, rows: int, dim: int) -> "_Arrays":
        return cls(
            np.empty((rows, dim), np.float32), np.empty(rows, np.int32), np.empty(rows, np.float64)
        )


class Slots:
    """The news that can be recommended, in memory; threads may share it.

    Args:
        dim: Size of the vectors.
    """

    def __init__(self, dim: int) -> None:
        self.codes: dict[str, int] = {"": -1}
        """Code of each category that there ever was; -1 for none."""
        self._lock = threading.Lock()
        self._arrays = _Arrays.of(FIRST_ROOM, dim)
        self._items: list[NewsItem] = []
        self._rows: dict[str, int] = {}
        self._hashes: dict[str, str] = {}
        self._alive = np.zeros(0, np.bool_)
        self._sum = np.zeros(dim, np.float64)
        self._unknown = np.zeros(dim, np.float32)
        self._free: list[int] = []
        self._moment = 0
        self._views: Counter[int] = Counter()  # open views by their moment
        self._left: deque[tuple[int, int]] = deque()  # last moment at which a row was seen, and row

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_free(self) -> int:
        """Rows of the array without a news item."""
        return len(self._arrays.vectors) - len(self._rows)

    def text_hash(self, news_id: str) -> str | None:
        """Return the hash of the text that a vector was made from; None if there is no such id."""
        return self._hashes.get(news_id)

    def put(
        self, news: Iterable[tuple[NewsItem, str, NDArray[np.float32]]], deleted: Iterable[str] = ()
    ) -> list[int]:
        """Delete news, and then add news, replacing those with the same ids; seen as one change.

        Args:
            news: Each item, the hash of its text, and its vector ``[dim]``.
            deleted: Ids; unknown ones are left out.

        Returns:
            Rows that were filled or left.
        """
        with self._lock:
            alive = self._alive.copy()
            filled: list[int] = []
            dead = [self._leave(news_id) for news_id in deleted if news_id in self._rows]
            for item, text_hash, vector in news:
                if item.news_id in self._rows:
                    dead.append(self._leave(item.news_id))
                if self._free:
                    row = self._free.pop()
                    self._items[row] = item._replace(abstract=None)
                else:
                    row = len(self._items)
                    self._items.append(item._replace(abstract=None))
                    if row == len(self._arrays.vectors):
                        self._grow()
                    if row >= len(alive):
                        more = np.zeros(max(FIRST_ROOM, len(alive)), np.bool_)
                        alive = np.concatenate([alive, more])
                published = np.nan if item.published is None else item.published.timestamp()
                code = self.codes.setdefault(item.category, len(self.codes) - 1)
                self._arrays.vectors[row] = vector
                self._arrays.category[row] = code
                self._arrays.published[row] = published
                self._sum += vector
                self._rows[item.news_id], self._hashes[item.news_id] = row, text_hash
                alive[row] = True
                filled.append(row)
            alive[dead] = False
            self._alive = alive[: len(self._items)]
            self._unknown = (self._sum / max(len(self._rows), 1)).astype(np.float32)
            self._moment += 1
            self._reclaim()
        return filled + dead

    def _leave(self, news_id: str) -> int:
        """Take a news item from its row, which stays as it is until no view can see it."""
        row = self._rows.pop(news_id)
        del self._hashes[news_id]
        self._sum -= self._arrays.vectors[row]
        self._left.append((self._moment, row))
        return row

    def _grow(self) -> None:
        """Double the arrays; open views keep the old ones."""
        old, (rows, dim) = self._arrays, self._arrays.vectors.shape
        self._arrays = _Arrays.of(2 * rows, dim)
        for name, before in old._asdict().items():
            getattr(self._arrays, name)[:rows] = before

    def _reclaim(self) -> None:
        """Make rows free that no open view can see."""
        oldest = min(self._views, default=self._moment)
        while self._left and self._left[0][0] < oldest:
            self._free.append(self._left.popleft()[1])

    @contextlib.contextmanager
    def view(self, *ids: Sequence[str]) -> Iterator[View]:
        """Return the news of this moment, and the rows of some ids.

        Rows keep their content until the view is closed, so close it soon.
        """
        with self._lock:
            moment, size = self._moment, len(self._items)
            self._views[moment] += 1
            vectors, category, published = self._arrays
            found = [[self._rows.get(news_id) for news_id in some] for some in ids]
            view = View(
                vectors[:size], self._alive, category[:size], published[:size], self._items,
                self._unknown, len(self._rows), found,
            )  # fmt: skip  # fmt: skip
        try:
            yield view
        finally:
            with self._lock:
                self._views[moment] -= 1
                if not self._views[moment]:
                    del self._views[moment]
                    self._reclaim()
