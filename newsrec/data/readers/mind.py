"""Reads MIND's tab-separated files: ``news.tsv`` and ``behaviors.tsv`` of each split."""

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from newsrec.data.readers.base import NEWS_TABLE, Impressions, Pass, Rows
from newsrec.data.readers.behaviors import Parser
from newsrec.data.readers.ebnerd import NEWS_COLUMNS as ARTICLES
from newsrec.data.readers.ebnerd import EbnerdReader
from newsrec.data.readers.mind_files import BEHAVIORS_COLUMNS, NAMES, NEWS_COLUMNS, find_splits
from newsrec.data.readers.news import distinct, merge_news
from newsrec.data.readers.parquet import read_news_table
from newsrec.data.readers.source import SourceFile
from newsrec.data.readers.tsv import LONGEST_LINE, TsvFile
from newsrec.errors import DataError, MissingDataError, UserError
from newsrec.places import looked_for
from newsrec.sniff import is_binary, kind_of

log = logging.getLogger(__name__)

VOTERS = 100
"""Number of first lines that decide whether a file has labels, since one alone may be damaged."""


def _ignore(num_bytes: int) -> None:
    pass


class MindReader:
    """Reads MIND's format; see ``newsrec.data.readers.base.Reader``."""

    name = "mind"
    file_names = " and ".join(NAMES)
    submission = "prediction.txt"

    def recognizes(self, root: Path) -> bool:
        """Accept any folder; ``find_splits`` reports what it lacks."""
        return True

    def find_splits(self, root: Path) -> dict[str, tuple[SourceFile, ...]]:
        """Return the two files of each split."""
        return {**find_splits(root)}

    def news(
        self, files: tuple[SourceFile, ...], on_read: Callable[[int], None] = _ignore
    ) -> tuple[Pass, Iterator[Rows]]:
        """Read a split's ``news.tsv``."""
        file = TsvFile(files[0], NEWS_COLUMNS, NEWS_TABLE, on_read)
        return file, file.map(_parse_news)

    def impressions(
        self,
        files: tuple[SourceFile, ...],
        ids: pa.Array,
        on_read: Callable[[int], None] = _ignore,
    ) -> tuple[Pass, Iterator[Impressions]]:
        """Read a split's ``behaviors.tsv``."""
        file = TsvFile(files[1], BEHAVIORS_COLUMNS, on_read=on_read)
        return file, file.map(Parser(ids, has_labels(files[1])).parse)


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
    return distinct(rows.table)


def _has_articles(file: SourceFile) -> bool:
    """Return whether a Parquet file has EB-NeRD's columns."""
    try:
        names = pq.read_schema(file.path).names
    except pa.ArrowInvalid:
        return False  # the reader says what is wrong
    return ARTICLES["news_id"] in names and "news_id" not in names


def _parse_news(rows: Rows) -> Rows:
    ids = rows.column("news_id")
    header = pc.match_substring_regex(ids, "(?i)^news_?id$")
    rows = rows.require(pc.invert(header), "news_id", "a header line, which MIND's files lack")
    good = pc.match_substring_regex(rows.column("news_id"), "^[^ ]+$")
    return rows.require(good, "news_id", "empty or with a space")


def has_labels(file: SourceFile) -> bool:
    """Return whether most of a file's first lines have candidates that end in ``-0`` or ``-1``."""
    labelled = bare = 0
    with contextlib.suppress(UserError), file.open() as stream:  # damage is reported later
        for line in itertools.islice(iter(lambda: stream.readline(LONGEST_LINE), b""), VOTERS):
            fields = line.rstrip(b"\r\n").split(b"\t")
            if len(fields) == len(BEHAVIORS_COLUMNS):
                ends = {word.endswith((b"-0", b"-1")) for word in fields[-1].split(b" ")}
                labelled += ends == {True}
                bare += ends == {False}
    return labelled > 0 and labelled >= bare  # an accident can remove labels, but not add them
