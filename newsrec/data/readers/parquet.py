"""Reads a user's own data from Parquet: news and impressions, or news and a log of clicks.

Each split has ``news.parquet`` and either ``impressions.parquet`` or ``clicks.parquet``. Each may
be a folder of files. ``docs/data.md`` describes the columns.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from newsrec.data.readers import annotations
from newsrec.data.readers import parquet_checks as checks
from newsrec.data.readers.base import NEWS_TABLE, Divided, Impressions, Pass, Rows, ignore
from newsrec.data.readers.clicks import SplitClicks, read_sampling
from newsrec.data.readers.parquet_columns import as_text, is_filled, is_short, shown, too_long
from newsrec.data.readers.parquet_files import (
    CLICKS,
    IMPRESSIONS,
    NEWS,
    SAMPLING,
    find_splits,
    has_parquet,
    part_of,
)
from newsrec.data.readers.parquet_impressions import divide_impressions, read_impressions
from newsrec.data.readers.parquet_parts import keep
from newsrec.data.readers.parquet_table import ParquetTable, open_parquet, readable
from newsrec.data.readers.source import SourceFile
from newsrec.errors import DataError

CLICKS_PER_PART = 1 << 16
MOST_CLICK_PARTS = 1000
MOST_TEXT = 1 << 31
"""Most bytes of all texts of a column of news: Arrow keeps no more in one array."""
REQUIRED = {"news_id": checks.an_id, "title": checks.a_text}
OPTIONAL = {"category": checks.a_name, "subcategory": checks.a_name, "abstract": checks.a_text}
OWN_COLUMNS = {name: name for name in NEWS_TABLE}
"""Column of each field of ``NEWS_TABLE`` in own data."""
CLICKS_REQUIRED = {"user_id": checks.an_id, "time": checks.a_time, "news_id": checks.an_id}


class ParquetReader:
    """Reads Parquet; see ``newsrec.data.readers.base.Reader``."""

    name = "parquet"
    version = 1
    file_names = f"{NEWS} and {IMPRESSIONS} (or {CLICKS})"
    submission = "prediction.txt"

    def recognizes(self, root: Path) -> bool:
        """Return whether a split has a Parquet file, or lies there under another name."""
        return has_parquet(root)

    def find_splits(self, root: Path) -> dict[str, tuple[SourceFile, ...]]:
        """Return the files of each split; with clicks, those of the splits before it, too."""
        return find_splits(root)

    def news(
        self, files: tuple[SourceFile, ...], on_read: Callable[[int], None] = ignore
    ) -> tuple[Pass, Iterator[Rows]]:
        """Read a split's ``news.parquet``."""
        own, place = part_of(files, NEWS)[0]
        return read_news_table(own, place, on_read)

    def impressions(
        self,
        files: tuple[SourceFile, ...],
        ids: pa.Array,
        on_read: Callable[[int], None] = ignore,
    ) -> tuple[Pass, Iterator[Impressions]]:
        """Read a split's ``impressions.parquet``, or make impressions from ``clicks.parquet``."""
        shown = part_of(files, IMPRESSIONS)
        if shown:
            return read_impressions(*shown[0], ids, on_read)
        clicks = _clicks(files, on_read)
        sampling = read_sampling(clicks[0].settings)

        def blocks() -> Iterator[Impressions]:
            yield from SplitClicks.of(clicks[0], clicks[1:], ids).impressions(sampling)

        return clicks[0], blocks()

    def divide(self, files: tuple[SourceFile, ...], most_bytes: int) -> Divided | str:
        """Divide a split's ``impressions.parquet`` between row groups.

        Without that file, the impressions that are made of clicks are divided by time. Each process
        then reads all clicks, once for all its parts.
        """
        shown = part_of(files, IMPRESSIONS)
        if shown:
            return divide_impressions(*shown[0], most_bytes)
        own = _clicks(files)[0]
        num_rows = 0
        for file in own.files:
            with readable(file), open_parquet(file.path) as parquet:
                num_rows += parquet.metadata.num_rows
        parts = min(max(num_rows // CLICKS_PER_PART, 1), MOST_CLICK_PARTS)
        num_bytes = sum(file.size for file in own.files) // parts
        key = token_hex()
        return Divided(own, [_ClicksPart(files, n, parts, num_bytes, key) for n in range(parts)])


class _ClicksPart(NamedTuple):
    """Some impressions made of clicks; see ``newsrec.data.readers.base.Part``."""

    files: tuple[SourceFile, ...]
    number: int
    parts: int
    num_bytes: int
    key: str
    """The same for all parts of a split, which share its clicks in a process."""

    def read(self, ids: pa.Array) -> tuple[Pass, Iterator[Impressions]]:
        """Make these impressions; the first part also reports on the clicks."""
        clicks = _clicks(self.files)
        sampling = read_sampling(clicks[0].settings)

        def blocks() -> Iterator[Impressions]:
            split = keep(self.key, lambda: SplitClicks.of(clicks[0], clicks[1:], ids))
            yield from split.impressions(sampling, self.number, self.parts)

        done = clicks[0]
        if self.number:
            done.files, done.settings = [], []
        return done, blocks()


def _clicks(
    files: tuple[SourceFile, ...], on_read: Callable[[int], None] = ignore
) -> list[ParquetTable]:
    """Return a split's table of clicks, and those of the splits before it, unread."""
    clicks = [
        ParquetTable(own, place, CLICKS_REQUIRED, {}, on_read)
        for own, place in part_of(files, CLICKS)
    ]
    clicks[0].settings = [file for file in files if file.path.name == SAMPLING]
    return clicks


def read_news_table(
    files: list[SourceFile],
    place: SourceFile,
    on_read: Callable[[int], None] = ignore,
    columns: Mapping[str, str] = OWN_COLUMNS,
    annotated: annotations.Columns = annotations.OWN,
) -> tuple[Pass, Iterator[Rows]]:
    """Read a table of news, ``columns`` naming the column of each field; see ``Reader.news``.

    ``annotated`` names the optional columns of sentiments and entities.
    """
    required, optional = (
        {columns[name]: check for name, check in checked.items() if name in columns}
        for checked in (REQUIRED, OPTIONAL)
    )
    table = ParquetTable(files, place, required, optional | annotated.checks(), on_read)

    def blocks() -> Iterator[Rows]:
        total: Counter[str] = Counter()
        for rows in table.map(partial(_parse_news, columns, annotated)):
            for name in rows.table.column_names:
                total[name] += annotations.text_bytes(rows.column(name))
                if total[name] >= MOST_TEXT:
                    raise DataError(
                        f"{place}: the column {name} has over {MOST_TEXT >> 30} GB of text. Cut "
                        "the texts: the model reads the first words of each."
                    )
            yield rows

    return table, blocks()


def _parse_news(columns: Mapping[str, str], annotated: annotations.Columns, rows: Rows) -> Rows:
    names = {field: name for field, name in columns.items() if name in rows.table.column_names}
    for name in names.values():
        rows = rows.require(is_short(rows.column(name)), name, too_long(), shown(rows, name))
    for name in names.values():
        column = rows.column(name)
        lost = pc.and_(column.is_valid(), as_text(column).is_null())
        rows = rows.require(pc.invert(lost), name, "not UTF-8", shown(rows, name))
    name = names["news_id"]
    good = is_filled(as_text(rows.column(name)))
    rows = rows.require(good, name, "null or empty", shown(rows, name))
    rows, more = annotations.read_annotations(rows, annotated)
    empty = pa.array([""] * rows.num_rows, pa.string())
    texts = {field: pc.fill_null(as_text(rows.column(name)), "") for field, name in names.items()}
    return rows._replace(table=pa.table({n: texts.get(n, empty) for n in NEWS_TABLE} | more))
