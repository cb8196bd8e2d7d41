"""Proposes news that is then scored exactly, by an index that follows the changes of the news."""

import logging
import threading
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from newsrec.errors import UserError
from newsrec.serving.index import BEST, Index, refusal
from newsrec.serving.matching import Matching, Users
from newsrec.serving.rules import Rules
from newsrec.serving.slots import Slots

log = logging.getLogger(__name__)

SPARE = 8
"""With caps and near-duplicates, so many times the news asked for are proposed."""


class Proposals:
    """An index over the rows of slots, built in the background; threads may share it.

    While it is built, and with few news, nothing is proposed, and all news is scored.

    Args:
        above: Number of news above which there is an index.
        matching: How the export makes scores.

    Raises:
        UserError: If ``above`` is invalid, the export cannot have an index, or the package
            faiss-cpu is missing.
    """

    def __init__(self, above: int, matching: Matching) -> None:
        if isinstance(above, bool) or not isinstance(above, int) or above < 0:
            raise UserError(f"index_above is {above!r}; it must be a number of news, 0 or more.")
        reason = refusal(matching)
        if reason:
            raise UserError(f"{reason} Leave index_above out to score all news.")
        Index(np.arange(1), np.ones((1, 1), np.float32))  # says now if the package is missing
        self.above = above
        self._lock = threading.Lock()
        self._slots: Slots | None = None
        self._index: Index | None = None
        self._missed: set[int] | None = None
        """Rows that changed since the build of an index began; None if none is built."""

    @property
    def building(self) -> bool:
        """Whether an index is being built."""
        return self._missed is not None

    def update(self, slots: Slots, rows: Iterable[int]) -> None:
        """Take in that rows were filled or left, or that the slots are new ones."""
        with self._lock:
            if slots is not self._slots:
                self._slots, self._index, self._missed = slots, None, None
            changed = list(rows)
            if self._missed is not None:
                self._missed.update(changed)
            if self._index is not None and changed:
                _follow(self._index, slots, changed)
            grown = self._index is None or self._index.outgrown
            if grown and len(slots) > self.above and self._missed is None:
                self._missed = set()
                threading.Thread(target=self._build, args=(slots,), daemon=True).start()

    def _build(self, slots: Slots) -> None:
        try:
            with slots.view() as view:
                rows = np.flatnonzero(view.alive)
                vectors = view.vectors[rows]
            index = Index(rows, vectors) if len(rows) else None
        except Exception:
            log.exception("The index cannot be built; all news is scored.")
            index = None
        with self._lock:
            if slots is self._slots:  # and was not replaced meanwhile
                if index is not None and self._missed:
                    _follow(index, slots, self._missed)
                self._index, self._missed = index, None

    def search(
        self, users: Users, k: int, rules: Rules, allowed: NDArray[np.bool_]
    ) -> NDArray[np.int64] | None:
        """Return rows among which one user's best news probably are; None proposes nothing.

        Args:
            users: The user.
            k: Number of news asked for.
            rules: The rules. With ``half_life``, ``diversity`` and ``calibration`` nothing is
                proposed: the best news may then have low scores.
            allowed: False for rows that must not be found ``[rows]``.
        """
        index = self._index
        turned = rules.half_life is not None or rules.diversity > 0 or rules.calibration > 0
        if index is None or turned:
            return None
        number = max(BEST, k if rules.by_score_alone else SPARE * max(k, BEST))
        return index.search(users.real_vectors(0), number, allowed)


def _follow(index: Index, slots: Slots, rows: Iterable[int]) -> None:
    """Give an index what is now in some rows."""
    changed = np.unique(np.fromiter(rows, np.int64))
    with slots.view() as view:
        index.remove(changed)
        filled = changed[view.alive[changed]]
        if len(filled):
            index.add(filled, view.vectors[filled])
