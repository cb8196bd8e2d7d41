"""Merges blocks of news into one table with each id once."""

import heapq
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from newsrec.data.fields import FIELDS
from newsrec.data.readers.base import LISTED, Rows

MERGED_ROWS = 1 << 19
"""Rows collected before repeated rows among them are removed."""


def merge_news(news: Iterable[Rows]) -> Rows:
    """Merge blocks in file order; lines that contradict an earlier line are bad, repeats go."""
    blocks: list[Rows] = []
    waiting = known = 0
    for block in news:
        blocks.append(block)
        waiting += block.num_rows
        if waiting > max(MERGED_ROWS, known):  # bounds the memory for a file of many repeats
            blocks = [_merge(blocks)]
            waiting, known = 0, blocks[0].num_rows
    return _merge(blocks)


def _merge(blocks: Sequence[Rows]) -> Rows:
    """Merge blocks in file order; keep the first row of each id, and list differing rows as bad."""
    bad = (line for block in blocks for line in block.bad)
    rows = Rows(
        pa.concat_tables([block.table for block in blocks]).combine_chunks(),
        np.concatenate([block.lines for block in blocks]),
        heapq.nsmallest(LISTED, bad, key=lambda line: line.line),
        sum(block.num_bad for block in blocks),
    )
    differs = differs_from_first(rows.table)
    rows = rows.require(~differs, "news_id", "an earlier line has another text under this id")
    first = np.unique(_first_of_each(rows.table["news_id"]))
    return rows._replace(table=rows.table.take(first), lines=rows.lines[first])


def distinct(table: pa.Table) -> pa.Table:
    """Return the first row of each id, in the order of the table."""
    return table.take(np.unique(_first_of_each(table["news_id"])))


def differs_from_first(table: pa.Table) -> NDArray[np.bool_]:
    """Return True for rows that differ from the first row with the same id ``[rows]``."""
    first = _first_of_each(table["news_id"])
    differs = np.zeros(len(table), dtype=bool)
    again = np.flatnonzero(first != np.arange(len(table)))
    rows, originals = table.take(again), table.take(first[again])
    for name in FIELDS:
        differs[again] |= pc.not_equal(rows[name], originals[name]).to_numpy()
    return differs


def _first_of_each(ids: pa.ChunkedArray) -> NDArray[np.int64]:
    """Return for each row the first row with the same id ``[rows]``."""
    owner: NDArray[np.int32] = ids.combine_chunks().dictionary_encode().indices.to_numpy()
    _, first = np.unique(owner, return_index=True)  # dictionary codes follow row order
    rows: NDArray[np.int64] = first[owner]
    return rows
