"""The formats of data folders that can be read."""

from pathlib import Path

from newsrec.data.readers.base import Reader
from newsrec.data.readers.ebnerd import EbnerdReader
from newsrec.data.readers.mind import MindReader
from newsrec.data.readers.parquet import ParquetReader
from newsrec.data.readers.parquet_files import NAMES
from newsrec.data.readers.xmind import XmindReader
from newsrec.errors import DataError
from newsrec.shipped import data_folder
from newsrec.store_path import StorePath

READERS: tuple[Reader, ...] = (
    EbnerdReader(),
    XmindReader(),
    ParquetReader(),
    MindReader(),
)
"""Tried in this order. MIND's is last, since it accepts any folder and reports what it lacks."""


def reader_of(root: str | Path) -> Reader:
    """Return the reader for a data folder's format."""
    root = data_folder(root)
    if not isinstance(root, StorePath):
        return next(reader for reader in READERS if reader.recognizes(root))
    if not any(set(NAMES) & set(path.parts) for path in root.store.files):
        raise DataError(
            f"{root} has no {', '.join(NAMES[:-1])} or {NAMES[-1]}, and an object store is read "
            "for these only. Copy data of another format to a folder, and name that."
        )
    return ParquetReader()
