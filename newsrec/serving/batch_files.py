"""The users of a batch run: Parquet files in any file system."""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from newsrec.addresses import without_secrets
from newsrec.data.readers.base import Rows
from newsrec.data.readers.parquet_checks import is_text
from newsrec.data.readers.parquet_table import (
    check_codes,
    check_schema,
    open_parquet,
    readable,
    rows_per_block,
)
from newsrec.data.readers.source import SourceFile
from newsrec.errors import DataError, MissingDataError
from newsrec.filesystems import Place, find_place, named
from newsrec.places import looked_for
from newsrec.serving.batch import columns_of

ROWS_AT_ONCE = 1024
"""Most users that are read, scored and written at once."""


class Users(NamedTuple):
    """The Parquet files of users."""

    place: str
    files: tuple[tuple[str, int, str], ...]
    """Path in its file system, number of rows and hash of the footer of each."""
    fingerprint: str
    """Hash of names, sizes, modification times and footers."""
    columns: tuple[str, ...]
    time: pa.DataType | None
    """Type of the column ``time``, if there is one."""

    @property
    def num_rows(self) -> int:
        """Number of all users."""
        return sum(rows for _, rows, _ in self.files)


def find_users(given: str, result: str) -> Users:
    """Find the files of users, and check their columns.

    Args:
        given: A Parquet file, or a folder with such files at any depth. Files and folders whose
            names begin with ``_`` or ``.`` are left out.
        result: As in ``newsrec.serving.batch.BatchScorer``.

    Raises:
        DataError: If there is none, or one cannot be read or has other columns.
    """
    place = find_place(given, "--users")
    info = place.info()
    if info.type == fs.FileType.NotFound:
        hint = looked_for(given) if place.is_local else "Check the address."
        raise MissingDataError(f"--users {place.given} does not exist. {hint}".rstrip())
    if info.type == fs.FileType.Unknown:
        raise DataError(
            f"--users {place.given} is neither a file nor a folder. Name a Parquet file, or a "
            "folder of such files."
        )
    infos = [info] if info.is_file else [i for i in place.files() if _is_parquet(i.path, place)]
    if not infos:
        raise DataError(
            f"--users {place.given} is a folder without a .parquet file. Write the users there by "
            "df.to_parquet(...), or name another folder."
        )
    hashed, files = hashlib.sha256(), []
    columns: list[list[str]] = []
    kinds: list[pa.DataType | None] = []
    for info in infos:
        with _parquet(place, info.path) as (source, parquet):
            name = os.path.relpath(info.path, place.path)
            shown = without_secrets(info.path)
            columns.append(check_schema(shown, parquet.schema_arrow, *columns_of(result)))
            # An encrypted column cannot be read, but Arrow aborts if it is asked for its size.
            next(parquet.iter_batches(1, columns=columns[-1]), None)
            footer = _footer_hash(source, parquet)
            files.append((info.path, parquet.metadata.num_rows, footer))
            kind = _time_of(parquet.schema_arrow)
            kinds.append(kind if files[-1][1] or not kinds else kinds[0])
        told = json.dumps([name, info.size, info.mtime_ns]).encode()
        hashed.update(told + bytes.fromhex(footer))
        for mine, first, what in ((columns, columns[0], "columns"), (kinds, kinds[0], "time type")):
            if mine[-1] != first:
                raise DataError(
                    f"{shown} has the {what} {_told(mine[-1])}, but {files[0][0]} has "
                    f"{_told(first)}. Write all files of --users {place.given} alike."
                )
    users = Users(given, tuple(files), hashed.hexdigest(), tuple(columns[0]), kinds[0])
    if not users.num_rows:
        raise DataError(f"--users {place.given} has no rows. Write the file again.")
    return users


def read_users(users: Users, start: int, stop: int) -> Iterator[tuple[str, Rows]]:
    """Read users by their numbers, counted through all files, in blocks of one file.

    Yields:
        The file, and rows, whose ``lines`` count from 0 in this file.

    Raises:
        DataError: If a file cannot be read, or has changed since it was found.
    """
    place = find_place(users.place, "--users")
    begin = 0
    for path, num_rows, footer in users.files:
        left = min(stop, begin + num_rows) - max(start, begin)
        if left > 0:
            with _parquet(place, path) as (source, parquet):
                shown = without_secrets(path)
                _require_unchanged(shown, _footer_hash(source, parquet) == footer)
                for line, batch in _batches(shown, parquet, users.columns, start - begin):
                    if line >= stop - begin:
                        break
                    first = max(start - begin - line, 0)
                    batch = batch.slice(first, stop - begin - line - first)
                    left -= len(batch)
                    if len(batch):
                        for column in batch.columns:
                            check_codes(column)
                        lines = line + first + np.arange(len(batch))
                        yield shown, Rows(pa.Table.from_batches([batch]), lines, [], 0)
                # Arrow reads a file that is truncated meanwhile as one with fewer rows.
                _require_unchanged(shown, not left and _footer_hash(source, parquet) == footer)
        begin += num_rows


def _require_unchanged(path: str, same: bool) -> None:
    if not same:
        raise DataError(
            f"{path} was changed while the command ran. Run the command anew, without --resume and "
            "with another --output."
        )


def _batches(
    path: str, parquet: pq.ParquetFile, columns: Sequence[str], start: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield batches and the number of their first row, from the row group that has ``start``."""
    line = 0
    for group in range(parquet.metadata.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if line + rows > start:
            size = rows_per_block(SourceFile(Path(path)), parquet, group, columns)
            batches = parquet.iter_batches(
                min(size, ROWS_AT_ONCE), row_groups=[group], columns=columns
            )
            at = line
            for batch in batches:
                yield at, batch
                at += len(batch)
        line += rows


@contextlib.contextmanager
def _parquet(place: Place, path: str) -> Iterator[tuple[Any, pq.ParquetFile]]:
    shown = without_secrets(path)
    with (
        named(shown),
        place.filesystem.open_input_file(path) as source,
        readable(SourceFile(Path(shown))),
        open_parquet(source) as parquet,
    ):
        yield source, parquet


def _footer_hash(source: Any, parquet: pq.ParquetFile) -> str:
    """Return a hash of a file's footer, which has places, sizes and bounds of all columns."""
    size = parquet.metadata.serialized_size + 8
    return hashlib.sha256(source.read_at(size, source.size() - size)).hexdigest()


def _time_of(schema: pa.Schema) -> pa.DataType | None:
    if "time" not in schema.names:
        return None
    kind = schema.field("time").type
    return pa.string() if is_text(kind) else kind


def _is_parquet(path: str, place: Place) -> bool:
    names = os.path.relpath(path, place.path).split("/")
    return path.endswith(".parquet") and not any(name.startswith(("_", ".")) for name in names)


def _told(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
