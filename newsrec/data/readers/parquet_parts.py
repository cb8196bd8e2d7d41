"""Divides a Parquet table between row groups, so that several processes can read it."""

from collections.abc import Callable, Hashable, Mapping
from typing import NamedTuple, TypeVar

from newsrec.data.readers.parquet_table import Check, ParquetTable, Piece, open_parquet, readable
from newsrec.data.readers.source import SourceFile

Value = TypeVar("Value")

_kept: dict[Hashable, object] = {}


class Span(NamedTuple):
    """Successive rows of a table: whole row groups of one or more files."""

    place: SourceFile
    pieces: tuple[Piece, ...]
    first_row: int
    num_bytes: int
    """About how many bytes of its files these rows are."""

    def open(self, required: Mapping[str, Check], optional: Mapping[str, Check]) -> ParquetTable:
        """Return a table of these rows, with hashes only of files that begin in them."""
        table = ParquetTable([p.file for p in self.pieces], self.place, required, optional)
        table.pieces, table.first_row = list(self.pieces), self.first_row
        table.files = [piece.file for piece in self.pieces if not piece.begin]
        return table


def divide(table: ParquetTable, most_bytes: int) -> list[Span]:
    """Divide a table; a span ends with the row group that brings it to ``most_bytes``."""
    spans: list[Span] = []
    pieces: list[Piece] = []
    row = first_row = num_bytes = 0
    for file in table.files:
        with readable(file), open_parquet(file.path) as parquet:
            info = parquet.metadata
            rows = [info.row_group(group).num_rows for group in range(info.num_row_groups)]
            if sum(rows) != info.num_rows:  # a damaged footer, reported when the file is read
                rows = [info.num_rows]
        begin = 0
        for end, more in enumerate(rows or [0], start=1):
            row += more
            num_bytes += file.size * more // max(info.num_rows, 1)
            full = num_bytes >= most_bytes and row > first_row
            if full or end >= len(rows):
                pieces.append(Piece(file, begin, end if begin or end < len(rows) else None))
                begin = end
            if full:
                spans.append(Span(table.file, tuple(pieces), first_row, num_bytes))
                pieces, first_row, num_bytes = [], row, 0
    if row > first_row or not spans:
        spans.append(Span(table.file, tuple(pieces), first_row, num_bytes))
    else:  # the last files have no rows
        spans[-1] = spans[-1]._replace(pieces=(*spans[-1].pieces, *pieces))
    return spans


def keep(key: Hashable, make: Callable[[], Value]) -> Value:
    """Return what ``make`` returns; it is called again only when another key comes."""
    if key not in _kept:
        _kept.clear()
        _kept[key] = make()
    found: Value = _kept[key]  # type: ignore[assignment]
    return found
