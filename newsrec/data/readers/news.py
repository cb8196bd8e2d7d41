"""MIND's ``news.tsv`` as a table of stories."""

import heapq
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from newsrec.data.fields import FIELDS
from newsrec.data.readers.source import SourceFile
from newsrec.data.readers.tsv import LISTED, NEWS_COLUMNS, Reader, Rows
from newsrec.errors import UserError
from newsrec.places import looked_for
from newsrec.sniff import is_binary, kind_of

log = logging.getLogger(__name__)

KEPT = NEWS_COLUMNS[:5]
"""Columns that are read: the id and the texts."""
MERGED_ROWS = 1 << 19
"""Rows that wait until those that repeat an earlier one are left out."""


def read_news(path: str | Path, on_bad_line: str = "error") -> pa.Table:
    """Return a file's stories, each once.

    Args:
        path: A ``news.tsv``.
        on_bad_line: error stops at a line that cannot be read, drop leaves it out.

    Returns:
        The columns ``KEPT``, in the order of the file.

    Raises:
        UserError: If there is no such file, or a line cannot be read.
    """
    if not Path(path).is_file():
        near = looked_for(path)
        raise UserError(
            f"{path}: there is no such file.{' ' if near else ''}{near} Name a news.tsv as MIND "
            "has them."
        )
    kind = kind_of(Path(path))
    if kind is None and is_binary(Path(path)):
        kind = "not a text file"
    if kind is not None and kind != "an empty file":
        raise UserError(
            f"{path} is {kind}, not a news.tsv: lines of 8 columns with a tab "
            "between them. Write it as such, or unpack it."
        )
    reader = Reader(SourceFile(Path(path)), NEWS_COLUMNS, KEPT)
    rows = read_rows(reader)
    if rows.num_bad:
        first = min(rows.bad, key=lambda line: line.line)
        if on_bad_line == "error":
            raise UserError(
                f"{path}, {first}. Correct the line; --on_bad_line drop leaves such lines out."
            )
        log.warning("%s: %d lines skipped, the first is %s", path, rows.num_bad, first)
    return distinct(rows.table)


def read_rows(reader: Reader) -> Rows:
    """Read a whole file; what contradicts an earlier line is bad, what repeats it is left out.

    Args:
        reader: Of a ``news.tsv``, with the columns ``KEPT``.
    """
    blocks: list[Rows] = []
    waiting = known = 0
    for block in reader.map(_parse):
        blocks.append(block)
        waiting += block.num_rows
        if waiting > max(MERGED_ROWS, known):  # so a file of repeats takes no memory of its size
            blocks = [_merge(blocks)]
            waiting, known = 0, blocks[0].num_rows
    return _merge(blocks)


def _merge(blocks: Sequence[Rows]) -> Rows:
    """Return blocks in file order as one, each id's first row alone; other rows of it are bad."""
    bad = (line for block in blocks for line in block.bad)
    rows = Rows(
        pa.concat_tables([block.table for block in blocks]).combine_chunks(),
        np.concatenate([block.lines for block in blocks]),
        heapq.nsmallest(LISTED, bad, key=lambda line: line.line),
        sum(block.num_bad for block in blocks),
    )
    differs = differs_from_first(rows.table)
    rows = rows.require(~differs, "news_id", "an earlier line has another story under this id")
    first = np.unique(_first_of_each(rows.table["news_id"]))
    return rows._replace(table=rows.table.take(first), lines=rows.lines[first])


def distinct(table: pa.Table) -> pa.Table:
    """Return the first line of each id, in their order."""
    return table.take(np.unique(_first_of_each(table["news_id"])))


def differs_from_first(table: pa.Table) -> NDArray[np.bool_]:
    """Tell which rows describe a story otherwise than the first row with its id ``[rows]``."""
    first = _first_of_each(table["news_id"])
    differs = np.zeros(len(table), dtype=bool)
    again = np.flatnonzero(first != np.arange(len(table)))
    rows, originals = table.take(again), table.take(first[again])
    for name in FIELDS:
        differs[again] |= pc.not_equal(rows[name], originals[name]).to_numpy()
    return differs


def _parse(rows: Rows) -> Rows:
    ids = rows.column("news_id")
    header = pc.match_substring_regex(ids, "(?i)^news_?id$")
    rows = rows.require(pc.invert(header), "news_id", "a header line, which MIND's files have not")
    good = pc.match_substring_regex(rows.column("news_id"), "^[^ ]+$")
    return rows.require(good, "news_id", "empty or with a space")


def _first_of_each(ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return for each row the first row with the same id ``[rows]``."""
    owner = ids.combine_chunks().dictionary_encode().indices.to_numpy()
    _, first = np.unique(owner, return_index=True)  # the dictionary is in the order of the rows
    return first[owner]
