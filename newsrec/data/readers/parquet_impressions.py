"""Turns rows of ``impressions.parquet`` into arrays, one block at a time."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from newsrec.console import counted
from newsrec.data.ragged import Ragged
from newsrec.data.readers import parquet_checks as checks
from newsrec.data.readers.base import Divided, Impressions, Pass, Rows
from newsrec.data.readers.parquet_columns import (
    NO_TIME,
    Lists,
    Lookup,
    as_bools,
    as_seconds,
    as_text,
    is_filled,
    is_short,
    shown,
    too_long,
)
from newsrec.data.readers.parquet_parts import Span, divide
from newsrec.data.readers.parquet_table import ParquetTable
from newsrec.data.readers.source import SourceFile

VOTERS = 100
"""Number of first rows that decide whether a file has labels, and whether its impressions have
numbers, since one alone may be damaged."""
NUMBER = "^[0-9]{1,18}$"
REQUIRED = {
    "user_id": checks.an_id,
    "time": checks.a_time,
    "history": checks.ids,
    "candidates": checks.ids,
}
OPTIONAL = {"impression_id": checks.an_id, "labels": checks.flags}


def read_impressions(
    files: list[SourceFile], place: SourceFile, ids: pa.Array, on_read: Callable[[int], None]
) -> tuple[Pass, Iterator[Impressions]]:
    """Read a table of impressions; see ``Reader.impressions``."""
    table = ParquetTable(files, place, REQUIRED, OPTIONAL, on_read)
    return table, table.map(_Parser(ids, *_kind_of(table)).parse)


class Part(NamedTuple):
    """Some rows of a table of impressions; see ``newsrec.data.readers.base.Part``."""

    span: Span
    labelled: bool
    """Whether the table has labels."""
    numbered: bool
    """Whether its impressions have numbers."""

    @property
    def num_bytes(self) -> int:
        """About how many bytes of its files these rows are."""
        return self.span.num_bytes

    def read(self, ids: pa.Array) -> tuple[Pass, Iterator[Impressions]]:
        """Read these rows, as ``read_impressions`` reads the whole table."""
        table = self.span.open(REQUIRED, OPTIONAL)
        return table, table.map(_Parser(ids, self.labelled, self.numbered).parse)


def divide_impressions(files: list[SourceFile], place: SourceFile, most_bytes: int) -> Divided:
    """Divide a table of impressions, so that several processes can read it."""
    table = ParquetTable(files, place, REQUIRED, OPTIONAL)
    kind = _kind_of(table)
    return Divided(table, [Part(span, *kind) for span in divide(table, most_bytes)])


def _kind_of(table: ParquetTable) -> tuple[bool, bool]:
    """Return whether a table has labels, and whether it has numbers, judged by its first rows."""
    labelled = numbered = False
    if "labels" in table.columns:
        valid = as_bools(table.head("labels", VOTERS).is_valid())
        labelled = 2 * int(valid.sum()) >= len(valid) and bool(valid.any())
    if "impression_id" in table.columns:
        texts = as_text(table.head("impression_id", VOTERS))
        numbers = as_bools(pc.fill_null(pc.match_substring_regex(texts, NUMBER), False))
        numbered = 2 * int(numbers.sum()) >= len(numbers)
    return labelled, numbered


class _Parser:
    """Turns rows of ``impressions.parquet`` into arrays.

    Args:
        ids: News ids of the real news.
        labelled: Whether the table has labels.
        numbered: Whether its impressions have numbers.
    """

    def __init__(self, ids: pa.Array, labelled: bool, numbered: bool) -> None:
        self.history, self.candidates = Lookup(ids), Lookup(ids)
        self.labelled, self.numbered = labelled, numbered

    def parse(self, rows: Rows) -> Impressions:
        """Return the rows that can be read as arrays; bad rows are listed in ``rows``."""
        if self.numbered:
            texts = as_text(rows.column("impression_id"))
            good = as_bools(pc.fill_null(pc.match_substring_regex(texts, NUMBER), False))
            rows = rows.require(
                good, "impression_id", "not a whole number", shown(rows, "impression_id")
            )
        good = is_short(rows.column("user_id"))
        rows = rows.require(good, "user_id", too_long(), shown(rows, "user_id"))
        good = is_filled(as_text(rows.column("user_id")))
        rows = rows.require(good, "user_id", "null, empty or not UTF-8", shown(rows, "user_id"))
        rows = require_times(rows, "time")
        rows, candidates, labels = self._candidates(rows)
        histories, unknown = self.history.known(Lists.of(rows.column("history")))
        number = rows.lines + 1
        if self.numbered:
            number = as_text(rows.column("impression_id")).cast(pa.int64()).to_numpy()
        return Impressions(
            rows,
            number,
            as_seconds(rows.column("time"))[0],
            as_text(rows.column("user_id")).dictionary_encode(),
            histories,
            unknown,
            candidates,
            labels,
        )

    def _candidates(self, rows: Rows) -> tuple[Rows, Ragged, NDArray[np.int8] | None]:
        rows, lists, candidates = require_candidates(rows, "candidates", self.candidates)
        if "labels" not in rows.table.column_names:
            return rows, candidates, None
        column = rows.column("labels")
        has_labels = as_bools(column.is_valid())
        if not self.labelled:
            if has_labels.any():
                problem = "labels, while most rows have none"
                return self._candidates(rows.require(~has_labels, "labels", problem))
            return rows, candidates, None
        if not has_labels.all():
            problem = "no labels, while most rows have some"
            return self._candidates(rows.require(has_labels, "labels", problem))
        flags = Lists.of(column)
        agree = flags.lengths == lists.lengths
        if not agree.all():
            problem = "not one label for each candidate"

            def both(row: int) -> str:
                labels = counted(flags.lengths[row], "label")
                return f"{counted(lists.lengths[row], 'candidate')}, {labels}"

            return self._candidates(rows.require(agree, "labels", problem, both))
        labels = flags.values.cast(pa.float64()).fill_null(2).to_numpy()
        wrong = (labels != 0) & (labels != 1)
        if wrong.any():
            good, problem = ~flags.rows_with(wrong), "a label other than 0 and 1"
            return self._candidates(rows.require(good, "labels", problem, shown(rows, "labels")))
        return rows, candidates, labels.astype(np.int8)


def require_times(rows: Rows, name: str) -> Rows:
    """Return the rows with a time in the column ``name``; the others are bad."""
    _, good = as_seconds(rows.column(name))
    return rows.require(good, name, NO_TIME, shown(rows, name))


def require_candidates(rows: Rows, name: str, lookup: Lookup) -> tuple[Rows, Lists, Ragged]:
    """Return rows with candidates, their ids (column ``name``), and their catalogue rows."""
    lists = Lists.of(rows.column(name))
    if not lists.lengths.all():
        return require_candidates(
            rows.require(lists.lengths > 0, name, "null or an empty list"), name, lookup
        )
    news = lookup.find(lists.values)
    if not news.all():
        full, word = ~lists.rows_with(news == 0), shown(rows, name)
        rows = rows.require(full, name, "a null or empty id", word)
        return require_candidates(rows, name, lookup)
    return rows, lists, Ragged(news, lists.offsets)
