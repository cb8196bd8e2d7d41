"""Reads zips, and reports any damage in them with the same kind of message."""

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from newsrec.errors import DataError, UserError

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,  # a position before the beginning of the file
    ValueError,  # a name that is not text, a seek to a negative position
    RuntimeError,  # encrypted members, unknown compression methods (NotImplementedError)
    LookupError,
    ArithmeticError,
    MemoryError,  # an lzma dictionary that is too large
)
"""Errors raised for a damaged zip: ``zipfile`` trusts the lengths and positions that it reads."""

ZIP_HINT = "If it was cut off, download it again."
MEMBER_HINT = "Download or unpack it again."


@contextmanager
def readable_damage(place: object, as_what: str = "", hint: str = MEMBER_HINT) -> Iterator[None]:
    """Turn the errors raised for a damaged zip, ``DAMAGE``, into a DataError.

    It names ``place`` and the next step ``hint``; ``as_what`` follows "cannot be read".
    """
    try:
        yield
    except (UserError, PermissionError):
        raise
    except DAMAGE as error:
        problem = str(error) or "it ends too early"  # EOFError has no text
        problem = f" ({problem})" if as_what else f": {problem}"
        raise DataError(f"{place} cannot be read{as_what}{problem}. {hint}") from None


def members_of(path: Path) -> list[zipfile.ZipInfo]:
    """Return a zip's table of contents."""
    with readable_damage(path, " as a zip", ZIP_HINT), zipfile.ZipFile(path) as archive:
        return archive.infolist()


def open_member(path: Path, member: str, place: object) -> IO[bytes]:
    """Open a member for reading; it is unpacked while reading, and its CRC checked at the end.

    Raises DataError, which names ``place``, if the zip is damaged; the stream's methods raise it
    too.
    """
    with readable_damage(place), zipfile.ZipFile(path) as archive:  # the member keeps the file open
        return io.BufferedReader(_Stream(archive.open(member), lambda: readable_damage(place)))


class _Stream(io.RawIOBase):
    """Stream of a zip's member that raises DataError if the member is damaged."""

    def __init__(
        self, member: IO[bytes], explained: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.member = member
        self.explained = explained

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self.explained():
            chunk = self.member.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self.member.close()
        super().close()
