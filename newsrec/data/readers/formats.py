"""The formats that data folders may have."""

from pathlib import Path

from newsrec.data.readers.base import Reader
from newsrec.data.readers.mind import MindReader

READERS: tuple[Reader, ...] = (MindReader(),)
"""Asked in this order. MIND's comes last, since it takes any folder and says what it lacks."""


def reader_of(root: str | Path) -> Reader:
    """Return the reader of the format that a data folder has."""
    return next(reader for reader in READERS if reader.recognizes(Path(root)))
