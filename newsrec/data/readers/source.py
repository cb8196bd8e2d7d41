"""Files to read, on disk or in a zip."""

import hashlib
from pathlib import Path
from typing import IO, NamedTuple

from newsrec.data.readers.zips import members_of, open_member

SPLITS = ("train", "dev", "test")


class SourceFile(NamedTuple):
    """A file to read: on disk, or a member of a zip."""

    path: Path
    member: str | None = None
    """Name in the zip; None if ``path`` is the file itself."""

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}, {self.member}"

    @property
    def size(self) -> int:
        """Size in bytes, unpacked."""
        if self.member is None:
            return self.path.stat().st_size
        return sum(m.file_size for m in members_of(self.path) if m.filename == self.member)

    def open(self) -> IO[bytes]:
        """Open for reading; a zip's member is unpacked and its CRC checked while reading."""
        if self.member is None:
            return self.path.open("rb")
        return open_member(self.path, self.member, self)


def hash_source(file: SourceFile) -> str:
    """Return the SHA-256 of a file's contents, unpacked if it is in a zip."""
    with file.open() as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
