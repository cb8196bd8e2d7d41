"""The news of a store, and their vectors by each export that served them, in one SQLite file.

Each change of a news item adds its id to a log with increasing numbers. A process that knows the
number up to which it has read the log then reads only the news that were changed since.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from newsrec.errors import UserError
from newsrec.serving.database import Database
from newsrec.serving.items import NewsItem
from newsrec.serving.news_rows import (
    ALL_NEWS,
    CHANGED_NEWS,
    EXPORTS_KEPT,
    FIRST_AND_LAST,
    HAD_NEWS,
    ITEM,
    MOST_WORDS,
    NEWS_FILE,
    PLACE,
    TABLES,
    UNCHANGED,
    Export,
    delete_vectors,
    hash_of,
    log,
    places,
    plain,
    put,
    to_item,
)
from newsrec.serving.results import AddedNews


class StoredItem(NamedTuple):
    """A news item, and its vector by an export."""

    item: NewsItem
    text_hash: str | None
    """Hash of the text that the vector was made from; None if there is no vector yet."""
    vector: bytes | None
    """Its float32 numbers."""


class ToEncode(NamedTuple):
    """A news item that lacks a vector."""

    number: int
    item: NewsItem


class Changes(NamedTuple):
    """What was changed since a process last looked."""

    seq: int
    """Number of the last change."""
    all: bool
    """Whether these are all news, and not only the changed ones."""
    news: Iterator[tuple[str, StoredItem | None]]
    """Id and content of each news item; None if it was deleted."""


class NewsStore:
    """The news of a store; threads may share it.

    Args:
        folder: Folder of the store, which is created if it is absent.

    Raises:
        StoreError: If the store cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = Database(folder / NEWS_FILE, TABLES)

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def register(self, version: str, path: Path) -> Export:
        """Note where an export is, and return it."""
        with self.database.write() as db:
            db.execute(
                "INSERT INTO exports (version, path) VALUES (?, ?) "
                "ON CONFLICT (version) DO UPDATE SET path = excluded.path",
                (version, str(path.resolve())),
            )
            (number,) = db.execute(
                "SELECT number FROM exports WHERE version = ?", (version,)
            ).fetchone()
        return Export(number, version, path)

    def current(self) -> Export | None:
        """Return the export that answers; None if there never was one."""
        with self.database.read() as db:
            row = db.execute(
                "SELECT number, version, path FROM exports WHERE used NOTNULL ORDER BY used DESC"
            ).fetchone()
        return None if row is None else Export(row[0], row[1], Path(row[2]))

    def announce(self, export: Export) -> None:
        """Make an export the one that answers, and delete the vectors of old ones."""
        with self.database.write() as db:
            used = db.execute("SELECT number FROM exports WHERE used NOTNULL ORDER BY used DESC")
            numbers = [number for (number,) in used]
            if numbers[:1] == [export.number]:
                return
            # a number that grows, and no time, since a clock may go back
            db.execute(
                "UPDATE exports SET used = 1 + ifnull((SELECT max(used) FROM exports), 0) "
                "WHERE number = ?",
                (export.number,),
            )
            numbers = [export.number, *(n for n in numbers if n != export.number)]
            for old in numbers[EXPORTS_KEPT:]:
                db.execute("DELETE FROM vectors WHERE place BETWEEN ? AND ?", places(old))
                db.execute("UPDATE exports SET used = NULL WHERE number = ?", (old,))

    def forget_exports(self) -> None:
        """Delete the vectors of all exports but the one that answers."""
        current = self.current()
        with self.database.write() as db:
            number = current.number if current else 0
            db.execute("DELETE FROM vectors WHERE place NOT BETWEEN ? AND ?", places(number))
            db.execute("UPDATE exports SET used = NULL WHERE number != ?", (number,))

    def upsert(
        self,
        items: Sequence[NewsItem],
        export: Export | None = None,
        hashes: Sequence[str] = (),
        vectors: Mapping[str, bytes] | None = None,
        if_new: bool = False,
    ) -> AddedNews | list[int]:
        """Add news, or replace those with the same id, in one transaction.

        Args:
            items: The news, each once.
            export: The export that made the vectors; None stores none.
            hashes: Hash of the text that the export reads of each item.
            vectors: Vector by hash, for those that the store lacks.
            if_new: Whether to do nothing unless the store never had news.

        Returns:
            Numbers of added, replaced and unchanged news. If a vector is needed that is not given,
            nothing is changed, and the places of these news are returned.
        """
        vectors = vectors or {}
        with self.database.write() as db:
            if if_new and db.execute(HAD_NEWS).fetchone():
                return AddedNews(0, 0, len(items))
            added, changed, lacking = 0, [], []
            for place, item in enumerate(items):
                row = db.execute(
                    f"SELECT n.number, {ITEM} FROM news n WHERE news_id = ?", (item.news_id,)
                ).fetchone()
                known, vector, text_hash = row and to_item(row[1:]), None, ""
                if export is not None:
                    text_hash = hashes[place]
                    if row is None or hash_of(db, export, row[0]) != text_hash:
                        vector = vectors.get(text_hash)
                        if vector is None:
                            lacking.append(place)
                            continue
                if known is not None and vector is None and plain(known) == plain(item):
                    continue
                number = put(db, item, None if row is None else row[0])
                if known is None or plain(known)[:5] != plain(item)[:5]:
                    delete_vectors(db, number, keep=export)
                if vector is not None and export is not None:
                    replace = "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)"
                    db.execute(replace, (export.number * PLACE + number, text_hash, vector))
                added += known is None
                changed.append((item.news_id, None))
            if lacking:
                db.execute("ROLLBACK")
                return lacking
            log(db, changed)
        return AddedNews(added, len(changed) - added, len(items) - len(changed))

    def delete(self, news_id: str) -> bool:
        """Delete a news item; False if there is none."""
        with self.database.write() as db:
            row = db.execute("SELECT number FROM news WHERE news_id = ?", (news_id,)).fetchone()
            if row is not None:
                delete_vectors(db, row[0])
                db.execute("DELETE FROM news WHERE number = ?", row)
                log(db, [(news_id, None)])
        return row is not None

    @contextlib.contextmanager
    def changes(self, export: Export, seq: int | None) -> Iterator[Changes]:
        """Read what was changed after a change, with the vectors of an export.

        Args:
            export: The export.
            seq: Number of the change; None reads all news.
        """
        with self.database.read() as db:
            first, last = db.execute(FIRST_AND_LAST).fetchone()
            everything = seq is None or (first or 0) > seq + 1
            rows = db.execute(
                ALL_NEWS if everything else CHANGED_NEWS,
                {"place": export.number * PLACE, "seq": seq, "export": export.number},
            )
            news = (
                (row[0], None if row[1] is None else StoredItem(to_item(row[1:7]), *row[7:]))
                for row in rows
            )
            yield Changes(last or 0, everything, news)

    def lag(self, seq: int) -> float:
        """Return the age in seconds of the oldest change after this one; 0 if there is none."""
        with self.database.read() as db:
            (since,) = db.execute("SELECT min(time) FROM changes WHERE seq > ?", (seq,)).fetchone()
        return 0.0 if since is None else max(time.time() - since, 0.0)

    def lacking(self, export: Export, after: int, limit: int) -> list[ToEncode]:
        """Return news that lack a vector by an export, of those with numbers after this one."""
        with self.database.read() as db:
            rows = db.execute(
                f"SELECT n.number, {ITEM} FROM news n LEFT JOIN vectors v "
                "ON v.place = ? + n.number WHERE v.place IS NULL AND n.number > ? "
                "ORDER BY n.number LIMIT ?",
                (export.number * PLACE, after, limit),
            ).fetchall()
        return [ToEncode(row[0], to_item(row[1:])) for row in rows]

    def counts(self, export: Export) -> tuple[int, int]:
        """Return the number of news, and how many of them lack a vector by an export."""
        with self.database.read() as db:
            news, lacking = db.execute(
                "SELECT count(*), count(*) - count(v.place) FROM news n "
                "LEFT JOIN vectors v ON v.place = ? + n.number",
                (export.number * PLACE,),
            ).fetchone()
        return news, lacking

    def last_number(self) -> int:
        """Return the largest number of a news item."""
        with self.database.read() as db:
            (number,) = db.execute("SELECT ifnull(max(number), 0) FROM news").fetchone()
        return int(number)

    def add_vectors(
        self,
        export: Export,
        news: Sequence[ToEncode],
        hashes: Sequence[str],
        vectors: Sequence[bytes],
    ) -> int:
        """Add vectors of news that were not changed in the meantime; return how many were new."""
        made = []
        with self.database.write() as db:
            for (number, item), text_hash, vector in zip(news, hashes, vectors, strict=True):
                if db.execute(UNCHANGED, (number, *item[1:5])).fetchone():
                    place = export.number * PLACE + number
                    insert = "INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)"
                    if db.execute(insert, (place, text_hash, vector)).rowcount:
                        made.append((item.news_id, export.number))
            log(db, made)
        return len(made)

    def item(self, news_id: str) -> NewsItem | None:
        """Return a news item; None if there is none."""
        with self.database.read() as db:
            row = db.execute(f"SELECT {ITEM} FROM news n WHERE news_id = ?", (news_id,)).fetchone()
        return None if row is None else to_item(row)

    def find(self, text: str, k: int) -> list[NewsItem]:
        """Return news whose title contains each word of a text, newest first."""
        words = text.casefold().split()[:MOST_WORDS]
        where = " AND ".join(["1", *["instr(n.folded, ?)"] * len(words)])
        with self.database.read() as db:
            rows = db.execute(
                f"SELECT {ITEM} FROM news n WHERE {where} "
                "ORDER BY published DESC, number DESC LIMIT ?",
                (*words, k),
            ).fetchall()
        return [to_item(row) for row in rows]


def store_folder(export: str | Path | None, store: str | Path | None) -> Path:
    """Return the folder of a store; by default the export's name with ``.store`` behind it.

    Raises:
        UserError: If there is no name, or the folder lies in the export.
    """
    if export is None and store is None:
        raise UserError("export and store are None; give one of them.")
    path = Path(os.path.abspath(store or f"{os.path.abspath(export or '')}.store"))
    if export is not None and path.is_relative_to(os.path.abspath(export)):
        raise UserError(
            f"The store {path} lies in {export}, which is only read. Choose another folder for "
            "the store."
        )
    return path
