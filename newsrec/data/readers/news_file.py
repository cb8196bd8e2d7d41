"""Reads a single file of news, in any of the formats."""

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from newsrec.data.readers.base import NEWS_TABLE
from newsrec.data.readers.ebnerd import NEWS_COLUMNS as ARTICLES
from newsrec.data.readers.ebnerd import EbnerdReader
from newsrec.data.readers.mind import MindReader
from newsrec.data.readers.news import distinct, merge_news
from newsrec.data.readers.parquet import read_news_table
from newsrec.data.readers.source import SourceFile
from newsrec.errors import DataError, MissingDataError
from newsrec.places import looked_for
from newsrec.sniff import is_binary, kind_of

log = logging.getLogger(__name__)


def read_news(path: str | Path, on_bad_line: str = "error") -> pa.Table:
    """Return the news of a ``news.tsv``, each id once, with the columns ``NEWS_TABLE``.

    ``path`` is a ``news.tsv``, a ``news.parquet`` or EB-NeRD's ``articles.parquet``.
    ``on_bad_line`` error stops at a line that cannot be read, drop leaves it out.
    """
    file = SourceFile(Path(path))
    if not Path(path).is_file():
        near = looked_for(path)
        raise MissingDataError(
            f"{path}: there is no such file.{' ' if near else ''}{near} Name a news.tsv as MIND "
            "has them, or a news.parquet."
        )
    kind = kind_of(Path(path))
    if kind is None and is_binary(Path(path)):
        kind = "not a text file"
    if kind is not None and kind not in ("an empty file", "a Parquet file"):
        raise DataError(
            f"{path} is {kind}, not a news.tsv, which has lines of 8 columns with tabs between "
            "them. Write it like that or as a news.parquet, or unpack it."
        )
    reader: EbnerdReader | MindReader = MindReader()
    if kind == "a Parquet file" and _has_articles(file):
        reader, kind = EbnerdReader(), None
    done, blocks = (
        read_news_table([file], file) if kind == "a Parquet file" else reader.news((file,))
    )
    rows = merge_news(blocks)
    if rows.num_bad:
        unit = done.unit
        first = min(rows.bad, key=lambda line: line.line).in_words(unit)
        if on_bad_line == "error":
            raise DataError(
                f"{path}, {first}. Correct the {unit}; --on_bad_line drop leaves such {unit}s out."
            )
        log.warning("%s: %d %ss dropped, the first is %s", path, rows.num_bad, unit, first)
    return distinct(rows.table).select(NEWS_TABLE)


def _has_articles(file: SourceFile) -> bool:
    """Return whether a Parquet file has EB-NeRD's columns."""
    try:
        names = pq.read_schema(file.path).names
    except pa.ArrowInvalid:
        return False  # the reader says what is wrong
    return ARTICLES["news_id"] in names and "news_id" not in names
