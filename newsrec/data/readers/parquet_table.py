"""Reads a Parquet table block by block; what cannot be read is reported."""

import difflib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as types

from newsrec.data.readers.base import Rows
from newsrec.data.readers.parquet_checks import is_list
from newsrec.data.readers.source import SourceFile, hash_source
from newsrec.errors import DataError, UserError
from newsrec.sniff import kind_of
from newsrec.store_path import StorePath

BLOCK_ROWS = 1 << 15
BLOCK_VALUES = 4 << 20
"""Most values of a column in a block, on average over a row group."""
BLOCK_BYTES = 32 << 20
"""Most bytes of a block as they are in the file, unpacked."""
MOST_VALUES = 1 << 28
"""Most values of a column in a row group. One row could have them all, which bounds the memory."""
WORKERS = 2
"""Blocks parsed at once."""
LOCKED = (b"PARE",)
"""First bytes of a file whose columns are encrypted."""
Parsed = TypeVar("Parsed")
Check = Callable[[pa.DataType], str | None]
"""Returns what a column should hold if its type is wrong; None if it is right."""


class Piece(NamedTuple):
    """Some row groups of a file."""

    file: SourceFile
    begin: int = 0
    end: int | None = None
    """First row group after the piece; None if the piece ends with the file."""

    def rows_in(self, parquet: pq.ParquetFile) -> int:
        """Return the number of rows according to the footer."""
        info = parquet.metadata
        if self.end is None and not self.begin:
            return int(info.num_rows)
        groups = range(info.num_row_groups)[self.begin : self.end]
        return sum(info.row_group(group).num_rows for group in groups)


class ParquetTable:
    """Reads a table once, block by block.

    Args:
        files: Its files, in order; a table may be a folder of several.
        place: The file or folder that messages name.
        required: Columns that it must have, and how to check their type.
        optional: Columns that it may have.
        on_read: Called with the number of bytes after each block.

    Raises:
        DataError: If a file is not Parquet, or lacks a column, or a column has another type.
    """

    cut_off = False
    unit = "row"
    advice = "Correct the row (rows count from 0, as in pandas) and write the file again"

    def __init__(
        self,
        files: Sequence[SourceFile],
        place: SourceFile,
        required: Mapping[str, Check],
        optional: Mapping[str, Check],
        on_read: Callable[[int], None] = lambda num_bytes: None,
    ) -> None:
        self.files = files
        self.file = place
        self.on_read = on_read
        self.columns: list[str] = []
        """The columns that it has, of those asked for."""
        self.settings: Sequence[SourceFile] = ()
        """Files that decide what is made of the table; their hashes count, too."""
        self.pieces = [Piece(file) for file in files]
        """The row groups to read, in order."""
        self.first_row = 0
        """Number of the first row to read, counted over all files of the table."""
        self.known_hashes: dict[SourceFile, str] = {}
        """SHA-256 of files that were hashed already."""
        for i, file in enumerate(files):
            with readable(file), open_parquet(file.path) as parquet:
                columns = check_schema(file, parquet.schema_arrow, required, optional)
                # Where columns are encrypted, Arrow refuses to read them, but aborts the process if
                # it is asked for their sizes. So read a row before that.
                next(parquet.iter_batches(1, columns=columns), None)
            if i and columns != self.columns:
                raise DataError(
                    f"{file} has the columns {', '.join(columns)}, but {files[0]} has "
                    f"{', '.join(self.columns)}. Write all files of {place} with the same columns."
                )
            self.columns = columns

    @property
    def hashes(self) -> dict[SourceFile, str]:
        """SHA-256 of the files and of the settings."""
        files = (*self.files, *self.settings)
        return {file: self.known_hashes.get(file) or hash_source(file) for file in files}

    def map(self, parse: Callable[[Rows], Parsed]) -> Iterator[Parsed]:
        """Call ``parse`` on every block's rows, two blocks at once; yield results in order.

        Raises:
            DataError: If a file is damaged or has no rows.
        """
        with ThreadPoolExecutor(WORKERS + 1) as pool:
            files = [piece.file for piece in self.pieces if not piece.begin]
            hashes = [pool.submit(hash_source, file) for file in files]
            pending: deque[Future[Parsed]] = deque()
            try:
                for rows in self._blocks():
                    pending.append(pool.submit(parse, rows))
                    if len(pending) > WORKERS:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
                for file, hashed in zip(files, hashes, strict=True):
                    self.known_hashes[file] = hashed.result()
            finally:
                for future in pending:
                    future.cancel()

    def head(self, column: str, num_rows: int) -> pa.Array:
        """Return the first values of a column, of the first file that has rows."""
        for file in self.files:
            with readable(file), open_parquet(file.path) as parquet:
                batch = next(parquet.iter_batches(num_rows, columns=[column]), None)
                if batch is not None and len(batch):
                    check_codes(batch.column(column))
                    return batch.column(column)
        return pa.nulls(0)

    def _blocks(self) -> Iterator[Rows]:
        row = self.first_row
        for piece in self.pieces:
            file = piece.file
            begin, size, told = row, file.size, 0
            with readable(file), open_parquet(file.path) as parquet:
                expected = piece.rows_in(parquet)
                for group in range(parquet.metadata.num_row_groups)[piece.begin : piece.end]:
                    for batch in parquet.iter_batches(
                        rows_per_block(file, parquet, group, self.columns),
                        row_groups=[group],
                        columns=self.columns,
                    ):
                        for column in batch.columns:
                            check_codes(column)
                        lines = row + np.arange(len(batch))
                        yield Rows(pa.Table.from_batches([batch]), lines, [], 0)
                        row += len(batch)
                        done = min(size * (row - begin) // max(expected, 1), size)
                        self.on_read(done - told)
                        told = done
            if row - begin != expected:
                raise DataError(
                    f"{file} cannot be read: it has {row - begin:,} rows, and its footer promises "
                    f"{expected:,}. Write or copy it again."
                )
        if row == self.first_row:
            raise DataError(
                f"{self.file} has no rows. Write the file again, or leave out the split."
            )


@contextmanager
def readable(file: SourceFile) -> Iterator[None]:
    """Turn the errors raised for a damaged file into a DataError.

    Raises:
        DataError: If the block raises an error of Arrow or of the file system.
    """
    try:
        yield
    except (UserError, PermissionError):
        raise
    except (pa.ArrowException, OSError, MemoryError, ValueError, OverflowError) as error:
        problem = str(error).strip().partition("\n")[0].rstrip(".")
        if file.path.is_file() and file.size:
            with file.open() as stream:
                start = stream.read(4)
            if start in LOCKED or "encrypt" in problem or "decrypt" in problem:
                problem = "it is encrypted. Write it without encryption"
                raise DataError(f"{file} cannot be read: {problem}.") from None
            kind = kind_of(file.path)
            if start != b"PAR1":
                raise DataError(
                    f"{file} is {kind or 'no Parquet file, whatever its name says'}. Write it by "
                    "df.to_parquet(...), or unpack it."
                ) from None
        elif file.path.is_file():
            problem = "it is empty"
        raise DataError(
            f"{file} cannot be read as Parquet: {problem}. Write or copy it again."
        ) from None


def open_parquet(source: Path | pa.NativeFile) -> pq.ParquetFile:
    """Open a file so that columns of text are read as the dictionaries that they are stored as."""
    remote = isinstance(source, StorePath)
    if isinstance(source, StorePath):
        source = source.open_input_file()
    with pq.ParquetFile(source) as parquet:
        schema = parquet.schema
        texts = [
            column.path
            for column in map(schema.column, range(len(schema)))
            if column.physical_type == "BYTE_ARRAY"
        ]
    return pq.ParquetFile(
        source,
        read_dictionary=texts,
        buffer_size=1 << 20,
        pre_buffer=remote,  # fewer, larger requests
        page_checksum_verification=True,
    )


def check_codes(column: pa.Array) -> None:
    """Check that codes point into their dictionary: Arrow trusts those of a damaged file."""
    while is_list(column.type):
        column = column.values
    if types.is_dictionary(column.type):
        bounds = pc.min_max(column.indices).as_py()
        if bounds["min"] is not None and not 0 <= bounds["min"] <= bounds["max"] < len(
            column.dictionary
        ):
            raise ValueError("a value lies outside of its dictionary")


def rows_per_block(
    file: SourceFile, parquet: pq.ParquetFile, group: int, columns: Sequence[str]
) -> int:
    """Return how many rows of a row group fit into a block."""
    info = parquet.metadata.row_group(group)
    parts = [info.column(i) for i in range(info.num_columns)]
    parts = [part for part in parts if part.path_in_schema.partition(".")[0] in columns]
    values = max((part.num_values for part in parts), default=0)
    num_bytes = sum(part.total_uncompressed_size for part in parts)
    if values > MOST_VALUES:
        raise DataError(
            f"{file}: row group {group} has {values:,} values in a column, and at most "
            f"{MOST_VALUES:,} are read at once. Write smaller groups: "
            "df.to_parquet(..., row_group_size=100_000)."
        )
    rows = max(info.num_rows, 1)
    fit: int = min(
        BLOCK_ROWS, BLOCK_VALUES * rows // max(values, 1), BLOCK_BYTES * rows // max(num_bytes, 1)
    )
    return max(fit, 64)


def check_schema(
    file: object,
    schema: pa.Schema,
    required: Mapping[str, Check],
    optional: Mapping[str, Check],
) -> list[str]:
    """Return the columns of a file that are asked for."""
    names = schema.names
    for name in required:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
            step = (
                f"Rename {near[0]}: df.rename(columns={{{near[0]!r}: {name!r}}})."
                if near
                else "Write it with that column; docs/data.md lists them all."
            )
            raise DataError(f"{file} has no column {name}, only {', '.join(names)}. {step}")
    found = [name for name in (*required, *optional) if name in names]
    for name in found:
        if names.count(name) > 1:
            raise DataError(f"{file} has the column {name} twice. Keep one of them.")
        kind = schema.field(name).type
        wanted = (required.get(name) or optional[name])(kind)
        if wanted is not None:
            wanted = wanted.replace("[column]", f"[{name!r}]")
            raise DataError(f"{file}: the column {name} holds {_told(kind)}, not {wanted}")
    return found


def _told(kind: pa.DataType) -> str:
    """Return the name of a type, without the dictionary that only our reading adds."""
    if types.is_dictionary(kind):
        return _told(kind.value_type)
    return f"list<{_told(kind.value_type)}>" if is_list(kind) else str(kind)
