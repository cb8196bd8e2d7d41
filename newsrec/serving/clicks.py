"""The clicks of a store, in an SQLite file of their own.

They are apart from the news so that the file can be written anew after a deletion. SQLite's
``secure_delete`` alone does not suffice: parts of rows stay where pages were split.
"""

import time
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path

from newsrec.errors import UserError
from newsrec.serving.database import Database
from newsrec.serving.items import Click, to_micros, to_time

CLICKS_FILE = "clicks.sqlite"
TABLES = (
    "CREATE TABLE clicks (user_id TEXT NOT NULL, time INTEGER NOT NULL, news_id TEXT NOT NULL, "
    "PRIMARY KEY (user_id, time, news_id)) WITHOUT ROWID",
    "CREATE INDEX clicked_last ON clicks (time)",
    # one row for each deletion of which rests may be in the file
    "CREATE TABLE rests (number INTEGER PRIMARY KEY AUTOINCREMENT)",
)
DAY = 86_400 * 10**6
"""Microseconds of a day."""


class ClickStore:
    """The clicks of a store; threads may share it.

    Args:
        folder: Folder of the store, which is created if it is absent.
        retention_days: Age at which clicks are deleted; None keeps them.

    Raises:
        StoreError: If the store cannot be used.
        UserError: If ``retention_days`` is not a number above 0.
    """

    def __init__(self, folder: Path, retention_days: float | None = None) -> None:
        if retention_days is not None and not (
            isinstance(retention_days, int | float) and 0 < retention_days < float("inf")
        ):
            raise UserError(f"retention_days is {retention_days!r}; it must be above 0, or None.")
        self.database = Database(folder / CLICKS_FILE, TABLES, erase=True)
        self.retention_days = retention_days
        self._remove_rests()  # of a process that was killed while it did so

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def _oldest(self) -> int:
        """Return the time of the oldest clicks that are kept, in microseconds since 1970."""
        if self.retention_days is None:
            return -(2**63)
        return int(time.time() * 1e6 - self.retention_days * DAY)

    def add(self, clicks: Sequence[Click]) -> int:
        """Store clicks, except those that are too old to be kept; return how many were new."""
        oldest = self._oldest()
        rows = [(click.user_id, to_micros(click.time), click.news_id) for click in clicks]
        rows = [row for row in rows if row[1] >= oldest]
        with self.database.write() as db:
            before = db.total_changes
            db.executemany("INSERT OR IGNORE INTO clicks VALUES (?, ?, ?)", rows)
            return db.total_changes - before

    def of(self, user_id: str) -> list[tuple[str, datetime]]:
        """Return the news ids and times in UTC of a user's clicks, oldest first."""
        with self.database.read() as db:
            rows = db.execute(
                "SELECT news_id, time FROM clicks WHERE user_id = ? AND time >= ? "
                "ORDER BY time, news_id",
                (user_id, self._oldest()),
            ).fetchall()
        return [(news_id, to_time(micros)) for news_id, micros in rows]

    def users(self, k: int) -> list[str]:
        """Return the users whose last clicks are the newest."""
        found: dict[str, None] = {}
        newest = "SELECT user_id FROM clicks WHERE time >= ? ORDER BY time DESC"
        with self.database.read() as db, closing(db.execute(newest, (self._oldest(),))) as rows:
            for (user_id,) in rows:
                if len(found) == k:
                    break
                found[user_id] = None
        return list(found)

    def counts(self) -> tuple[int, int]:
        """Return the numbers of users and of clicks."""
        with self.database.read() as db:
            users, clicks = db.execute(
                "SELECT count(DISTINCT user_id), count(*) FROM clicks"
            ).fetchone()
        return users, clicks

    def delete(self, user_id: str) -> bool:
        """Delete a user's clicks, from the disk too; False if there were none."""
        return self._delete("user_id = ?", user_id) > 0

    def purge(self) -> int:
        """Delete clicks that are too old, from the disk too; return how many.

        The limit moves once a day, so that many processes together write the file anew once a day.
        """
        if self.retention_days is None:
            return 0
        return self._delete("time < ?", self._oldest() // DAY * DAY)

    def _delete(self, where: str, value: str | int) -> int:
        with self.database.write() as db:
            gone = db.execute(f"DELETE FROM clicks WHERE {where}", (value,)).rowcount
            if gone:
                db.execute("INSERT INTO rests DEFAULT VALUES")
        self._remove_rests()
        return gone

    def _remove_rests(self) -> None:
        """Write the file anew if rests of deleted clicks may be in it."""
        with self.database.read() as db:
            (last,) = db.execute("SELECT max(number) FROM rests").fetchone()
        if last is not None:
            self.database.rebuild()
            with self.database.write() as db:
                db.execute("DELETE FROM rests WHERE number <= ?", (last,))
