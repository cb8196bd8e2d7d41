"""What is done with a whole store: Parquet out and in, another export, less space."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from newsrec.console import progress
from newsrec.data.readers.base import Rows
from newsrec.data.readers.news_file import read_news
from newsrec.data.readers.parquet import CLICKS_REQUIRED
from newsrec.data.readers.parquet_columns import NO_TIME, as_text, is_filled, shown
from newsrec.data.readers.parquet_files import CLICKS, NEWS
from newsrec.data.readers.parquet_table import ParquetTable
from newsrec.data.readers.source import SourceFile
from newsrec.errors import DataError, StoreError, UserError
from newsrec.files import publish, require_empty
from newsrec.places import looked_for
from newsrec.serving.clicks import CLICKS_FILE, ClickStore
from newsrec.serving.database import Database
from newsrec.serving.engine import version_of
from newsrec.serving.folder import ExportFolder
from newsrec.serving.items import Click, NewsItem, check_clicks, check_items, to_time
from newsrec.serving.live import LiveRecommender
from newsrec.serving.news_rows import NEWS_FILE
from newsrec.serving.published import as_micros, more_of
from newsrec.serving.results import AddedNews
from newsrec.serving.store import NewsStore

ROWS_AT_ONCE = 50_000
"""Rows of a Parquet file in memory at once."""
TIME = pa.timestamp("us", "UTC")
TABLES = {
    NEWS: (
        "SELECT news_id, title, category, subcategory, abstract, published FROM news "
        "ORDER BY number",
        pa.schema([(name, pa.string()) for name in NewsItem._fields[:5]] + [("published", TIME)]),
    ),
    CLICKS: (
        "SELECT user_id, news_id, time FROM clicks ORDER BY time, user_id, news_id",
        pa.schema([("user_id", pa.string()), ("news_id", pa.string()), ("time", TIME)]),
    ),
}
"""What each file has: a query, and the columns."""


class Imported(NamedTuple):
    """What ``import_store`` did."""

    news: AddedNews
    clicks: int
    """Clicks that the store did not have."""
    known_clicks: int


def export_store(store: Path, output: Path) -> dict[str, int]:
    """Write ``news.parquet`` and ``clicks.parquet``, each as of one moment.

    A file that would have no rows is left out.

    Args:
        store: Folder of the store, which may be in use.
        output: Folder to write, absent or empty.

    Returns:
        Number of rows of each file.

    Raises:
        UserError: If there is no store, or the folder cannot be written.
    """
    require_store(store)
    require_empty(output)
    rows = {}
    with closing(NewsStore(store)) as news, closing(ClickStore(store)) as clicks:
        databases = {NEWS: news.database, CLICKS: clicks.database}

        def build(folder: Path) -> None:
            for name, database in databases.items():
                rows[name] = _write(database, *TABLES[name], folder / name)

        publish(output, build)
    return rows


def _write(database: Database, query: str, schema: pa.Schema, path: Path) -> int:
    number = 0
    with (
        database.read() as db,
        closing(db.execute(query)) as rows,
        pq.ParquetWriter(path, schema) as writer,
    ):
        while block := rows.fetchmany(ROWS_AT_ONCE):
            columns = zip(*block, strict=True)
            arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            number += len(block)
    if not number:
        path.unlink()
    return number


def import_store(store: Path, news: Path | None = None, clicks: Path | None = None) -> Imported:
    """Add the rows of files to a store, which is created if there is none.

    Both files are read before anything is written, and each is added whole or not at all. A service
    on the store makes the vectors of the news.

    Args:
        store: Folder of the store, which may be in use.
        news: As in ``newsrec.data.readers.news_file.read_news``; the column ``published`` of a
            Parquet file counts, too.
        clicks: A ``clicks.parquet``.

    Raises:
        UserError: If a file or the store cannot be used.
    """
    items = [] if news is None else _read_news(news)
    made = [] if clicks is None else _read_clicks(clicks)
    if store.exists() and not store.is_dir():
        raise StoreError(f"{store} is a file, not a folder. Choose another folder for the store.")
    with closing(NewsStore(store)) as news_store, closing(ClickStore(store)) as click_store:
        added = news_store.upsert(items) if items else AddedNews(0, 0, 0)
        assert isinstance(added, AddedNews)
        new = click_store.add(made) if made else 0
    return Imported(added, new, len(made) - new)


def _read_news(path: Path) -> list[NewsItem]:
    table = read_news(path)
    published, unknown = more_of(path)
    columns = [table[name].to_pylist() for name in NewsItem._fields[:5]]
    items = []
    for news_id, title, category, subcategory, abstract in zip(*columns, strict=True):
        abstract = None if news_id in unknown and not abstract else abstract
        time = published.get(news_id)
        items.append(NewsItem(news_id, title, category, subcategory, abstract, time))
    try:
        return check_items(items)
    except UserError as error:
        raise DataError(f"{path}: {error}") from error


def _read_clicks(path: Path) -> list[Click]:
    file = SourceFile(path)
    if not path.is_file():
        said = f"{path}: there is no such file. {looked_for(path)}".strip()
        raise DataError(f"{said} Name a clicks.parquet.")
    table = ParquetTable([file], file, CLICKS_REQUIRED, {})
    made: list[Click] = []
    for rows in table.map(_parse_clicks):
        if rows.bad:
            raise DataError(f"{path}, {rows.bad[0].in_words(table.unit)}. {table.advice}.")
        made += _clicks_of(rows)
    try:
        return check_clicks(made)
    except UserError as error:
        raise DataError(f"{path}: {error}") from error


def _parse_clicks(rows: Rows) -> Rows:
    for name in ("user_id", "news_id"):
        good = is_filled(as_text(rows.column(name)))
        rows = rows.require(good, name, "null, empty or not UTF-8", shown(rows, name))
    return rows.require(as_micros(rows.column("time"))[1], "time", NO_TIME, shown(rows, "time"))


def _clicks_of(rows: Rows) -> Iterator[Click]:
    ids: Sequence[list[str]] = [
        as_text(rows.column(name)).to_pylist() for name in ("user_id", "news_id")
    ]
    micros = as_micros(rows.column("time"))[0].tolist()
    for user_id, news_id, time in zip(*ids, micros, strict=True):
        yield Click(user_id, news_id, to_time(time))


def vacuum_store(store: Path, retention_days: float | None = None) -> tuple[int, int]:
    """Delete old clicks and the vectors of exports that do not answer, and free their space.

    Returns:
        Bytes of the store before and after.

    Raises:
        UserError: If there is no store, or it cannot be used.
    """
    require_store(store)
    before = _bytes_of(store)
    with closing(NewsStore(store)) as news, closing(ClickStore(store, retention_days)) as clicks:
        clicks.purge()
        news.forget_exports()
        for database in (news.database, clicks.database):
            database.rebuild()
    return before, _bytes_of(store)


def switch_store(store: Path, export: Path) -> str:
    """Make the vectors of an export, then let all processes on a store answer with it.

    Args:
        store: Folder of the store, which may be in use.
        export: The exported folder.

    Returns:
        The version of the export.

    Raises:
        UserError: If the store or the export cannot be used.
    """
    require_store(store)
    version = version_of(ExportFolder(export))
    with closing(LiveRecommender.open(export, store)) as live:
        before = live.stats()
        todo = before.encode_total - before.encoded
        with progress("encoding", todo, todo, _rate) as advance:
            done = 0
            while not live.wait(1):
                now = live.stats()
                made = max(todo - (now.encode_total - now.encoded), done) if now.encoding else todo
                advance(made - done)
                done = made
        if live.version != version:
            raise StoreError(f"{store} still answers with {live.version}; see the message above.")
    return version


def _rate(done_per_second: float) -> str:
    return f"{done_per_second:,.0f} news/s"


def require_store(store: Path) -> None:
    """Refuse a folder that is no store.

    Raises:
        StoreError: If it lacks a file.
    """
    for name in (NEWS_FILE, CLICKS_FILE):
        if not (store / name).is_file():
            said = f"{store} is no store: there is no {name} in it. {looked_for(store)}".strip()
            raise StoreError(f"{said} Name the folder given as --store, or EXPORT.store.")


def _bytes_of(store: Path) -> int:
    return sum(path.stat().st_size for path in store.glob("*.sqlite*"))
