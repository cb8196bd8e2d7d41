"""The tables of a store's news, and what is done with single rows."""

import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from newsrec.serving.items import NewsItem, to_micros, to_time

NEWS_FILE = "news.sqlite"
TABLES = (
    # abstract is null if it is not known: the files of an export have no abstracts
    "CREATE TABLE news (number INTEGER PRIMARY KEY AUTOINCREMENT, news_id TEXT NOT NULL UNIQUE, "
    "title TEXT NOT NULL, category TEXT NOT NULL, subcategory TEXT NOT NULL, abstract TEXT, "
    "published INTEGER, folded TEXT NOT NULL)",
    "CREATE INDEX newest ON news (published, number)",
    # used is null until the export answers
    "CREATE TABLE exports (number INTEGER PRIMARY KEY AUTOINCREMENT, version TEXT NOT NULL UNIQUE, "
    "path TEXT NOT NULL, used INTEGER)",
    # place is the number of the export times 2^40, plus the number of the news item
    "CREATE TABLE vectors (place INTEGER PRIMARY KEY, text_hash TEXT NOT NULL, "
    "vector BLOB NOT NULL)",
    # export is null if the news item was changed, and otherwise the one that made its vector
    "CREATE TABLE changes (seq INTEGER PRIMARY KEY AUTOINCREMENT, news_id TEXT NOT NULL, "
    "export INTEGER, time REAL NOT NULL)",
)
PLACE = 1 << 40
LOG_KEPT = 100_000
"""Changes that are kept. A process that is further behind reads all news."""
EXPORTS_KEPT = 2
"""Exports whose vectors are kept: the one that answers, and the one before."""
MOST_WORDS = 20
"""Words of a search that count."""
ITEM = "n.news_id, n.title, n.category, n.subcategory, n.abstract, n.published"
FIRST_AND_LAST = "SELECT (SELECT min(seq) FROM changes), (SELECT max(seq) FROM changes)"
"""Two queries that an index answers; one with both would read all changes."""
HAD_NEWS = "SELECT 1 FROM news UNION ALL SELECT 1 FROM exports WHERE used NOTNULL"
UNCHANGED = "SELECT 1 FROM news n WHERE number = ? AND title = ? AND category = ? AND "
UNCHANGED += "subcategory = ? AND abstract IS ?"


WITH_VECTORS = f"{ITEM}, v.text_hash, v.vector"
VECTORS = "LEFT JOIN vectors v ON v.place = :place + n.number"
ALL_NEWS = f"SELECT n.news_id, {WITH_VECTORS} FROM news n {VECTORS} ORDER BY n.number"
CHANGED_NEWS = (
    f"SELECT c.news_id, {WITH_VECTORS} FROM (SELECT news_id, max(seq) last FROM changes WHERE "
    "seq > :seq AND (export IS NULL OR export = :export) GROUP BY news_id) c LEFT JOIN news n "
    f"ON n.news_id = c.news_id {VECTORS} ORDER BY c.last"
)


class Export(NamedTuple):
    """An export that a store knows."""

    number: int
    version: str
    path: Path


def plain(item: NewsItem) -> tuple[Any, ...]:
    """Return an item in which an abstract that is not known equals an empty one."""
    published = None if item.published is None else to_micros(item.published)
    return (*item[:4], item.abstract or "", published)


def places(export: int) -> tuple[int, int]:
    """Return the first and the last place of an export's vectors."""
    return export * PLACE, (export + 1) * PLACE - 1


def to_item(row: Sequence[Any]) -> NewsItem:
    """Return a news item from a row with the columns ``ITEM``."""
    return NewsItem._make((*row[:5], None if row[5] is None else to_time(row[5])))


def put(db: sqlite3.Connection, item: NewsItem, number: int | None) -> int:
    """Write a news item over the one with this number, or as a new one; return its number."""
    published = None if item.published is None else to_micros(item.published)
    values = (*item[:5], published, item.title.casefold())
    if number is None:
        insert = "INSERT INTO news (news_id, title, category, subcategory, abstract, published, "
        insert += "folded) VALUES (?, ?, ?, ?, ?, ?, ?)"
        return int(db.execute(insert, values).lastrowid or 0)
    update = "UPDATE news SET news_id = ?, title = ?, category = ?, subcategory = ?, abstract = ?, "
    db.execute(update + "published = ?, folded = ? WHERE number = ?", (*values, number))
    return number


def hash_of(db: sqlite3.Connection, export: Export, number: int) -> str | None:
    """Return the hash of the text that a vector was made from; None if there is no vector."""
    place = export.number * PLACE + number
    row = db.execute("SELECT text_hash FROM vectors WHERE place = ?", (place,)).fetchone()
    return None if row is None else str(row[0])


def delete_vectors(db: sqlite3.Connection, number: int, keep: Export | None = None) -> None:
    """Delete a news item's vectors by all exports but one."""
    kept = keep.number if keep else 0
    db.execute(
        "DELETE FROM vectors WHERE place IN (SELECT number * ? + ? FROM exports WHERE number != ?)",
        (PLACE, number, kept),
    )


def log(db: sqlite3.Connection, changes: Sequence[tuple[str, int | None]]) -> None:
    """Add changes to the log, and trim it."""
    now = time.time()
    insert = "INSERT INTO changes (news_id, export, time) VALUES (?, ?, ?)"
    db.executemany(insert, [(*change, now) for change in changes])
    db.execute("DELETE FROM changes WHERE seq <= (SELECT max(seq) FROM changes) - ?", (LOG_KEPT,))
