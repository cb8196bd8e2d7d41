"""The formats of data folders that can be read."""

from pathlib import Path

from newsrec.data.readers.base import Reader
from newsrec.data.readers.ebnerd import EbnerdReader
from newsrec.data.readers.mind import MindReader
from newsrec.data.readers.parquet import ParquetReader
from newsrec.data.readers.xmind import XmindReader

READERS: tuple[Reader, ...] = (
    EbnerdReader(),
    XmindReader(),
    ParquetReader(),
    MindReader(),
)
"""Tried in this order. MIND's is last, since it accepts any folder and reports what it lacks."""


def reader_of(root: str | Path) -> Reader:
    """Return the reader for a data folder's format."""
    return next(reader for reader in READERS if reader.recognizes(Path(root)))
