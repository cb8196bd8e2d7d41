"""Writes data in MIND's format as Parquet, as an example of own data."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.readers.base import NEWS_TABLE, Rows
from newsrec.data.readers.behaviors import times
from newsrec.data.readers.mind import has_labels
from newsrec.data.readers.mind_files import (
    BEHAVIORS_COLUMNS,
    NEWS_COLUMNS,
    SplitFiles,
    find_splits,
)
from newsrec.data.readers.parquet_columns import as_bools
from newsrec.data.readers.parquet_files import IMPRESSIONS, NEWS
from newsrec.data.readers.tsv import TsvFile
from newsrec.errors import DataError
from newsrec.files import publish, require_empty


def mind_to_parquet(root: str | Path, output: str | Path) -> None:
    """Write a folder in MIND's format as ``SPLIT/{news,impressions}.parquet``.

    Args:
        root: The data folder, with any of train, dev and test.
        output: Folder to write, absent or empty; it is written whole or not at all.

    Raises:
        DataError: If files are missing or cannot be read, or ``output`` cannot be made.
    """
    splits = find_splits(Path(root))
    require_empty(Path(output))

    def build(folder: Path) -> None:
        for split, files in splits.items():
            (folder / split).mkdir()
            write_parquet(files, folder / split)

    publish(Path(output), build)


def write_parquet(files: SplitFiles, folder: Path) -> None:
    """Write a split's files as ``news.parquet`` and ``impressions.parquet``, block by block.

    Args:
        files: The split's files in MIND's format.
        folder: Folder to write them into.

    Raises:
        DataError: If a line cannot be read.
    """
    labelled = has_labels(files.behaviors)
    write_blocks(
        TsvFile(files.news, NEWS_COLUMNS, NEWS_TABLE), folder / NEWS, lambda rows: rows.table
    )
    write_blocks(
        TsvFile(files.behaviors, BEHAVIORS_COLUMNS),
        folder / IMPRESSIONS,
        lambda rows: impressions_table(rows, labelled),
    )


def write_blocks(file: TsvFile, path: Path, table_of: Callable[[Rows], pa.Table]) -> None:
    """Write a file as Parquet, block by block; ``table_of`` makes a block's table."""
    writer = None
    try:
        for rows in file.map(lambda rows: rows):
            if rows.bad:
                raise DataError(f"{file.file}, {rows.bad[0]}. {file.advice}.")
            table = table_of(rows)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def impressions_table(rows: Rows, labelled: bool) -> pa.Table:
    """Return lines of ``behaviors.tsv`` with the columns of ``impressions.parquet``."""
    history, words = _lists(rows.column("history")), _lists(rows.column("candidates"))
    columns = {
        "impression_id": rows.column("impression_id").cast(pa.int64()),
        "user_id": rows.column("user_id"),
        "time": times(rows.column("time")),
        "history": history,
        "candidates": words,
    }
    if labelled:
        values, offsets = words.values, words.offsets
        ids = pc.utf8_slice_codeunits(values, 0, -2)
        columns["candidates"] = pa.ListArray.from_arrays(offsets, ids)
        columns["labels"] = pa.ListArray.from_arrays(offsets, pc.ends_with(values, "-1"))
    return pa.table(columns)


def _lists(column: pa.Array) -> pa.ListArray:
    """Return the words of each text; an empty text has none."""
    lists = pc.split_pattern(column, " ")
    words = lists.flatten()
    kept = as_bools(pc.not_equal(words, ""))
    offsets = to_offsets(lists.value_lengths().to_numpy())
    offsets = Ragged(kept, offsets).select(kept).offsets
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), words.filter(pa.array(kept)))
