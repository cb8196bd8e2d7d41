"""Zips are read here, so that whatever is wrong with one is said in one way."""

import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Any

from newsrec.errors import UserError

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,  # a place before the file's beginning
    ValueError,  # a name that is not text, a stream that jumps to a negative place
    RuntimeError,  # encrypted members, unknown methods (NotImplementedError)
    LookupError,
    ArithmeticError,
    MemoryError,  # a dictionary of lzma's
)
"""What reading a damaged zip raises: ``zipfile`` trusts lengths and places that it reads."""

ZIP_HINT = "If it was cut off, download it again."
MEMBER_HINT = "Download or unpack it again."


@contextmanager
def damage_told(place: object, as_what: str = "", hint: str = MEMBER_HINT) -> Iterator[None]:
    """Turn what reading a damaged zip raises into a UserError.

    Args:
        place: The archive, and the member if one is read, as the user should see them.
        as_what: Says as what it cannot be read.
        hint: The next step.

    Raises:
        UserError: If the block raises any of ``DAMAGE``.
    """
    try:
        yield
    except (UserError, PermissionError):
        raise
    except DAMAGE as error:
        problem = str(error) or "it ends too early"  # EOFError has no text
        problem = f" ({problem})" if as_what else f": {problem}"
        raise UserError(f"{place} cannot be read{as_what}{problem}. {hint}") from None


def members_of(path: Path) -> list[zipfile.ZipInfo]:
    """Return a zip's table of contents.

    Raises:
        UserError: If it is damaged.
    """
    with damage_told(path, " as a zip", ZIP_HINT), zipfile.ZipFile(path) as archive:
        return archive.infolist()


def open_member(path: Path, member: str, place: object) -> IO[bytes]:
    """Open a member for reading; it is unpacked as it is read, and its CRC checked at its end.

    Args:
        path: The zip.
        member: Its name in the zip.
        place: Both, as the user should see them.

    Raises:
        UserError: If the zip is damaged; the stream's methods raise it as well.
    """
    with damage_told(place), zipfile.ZipFile(path) as archive:  # the member keeps the file open
        return io.BufferedReader(_Stream(archive.open(member), lambda: damage_told(place)))


class _Stream(io.RawIOBase):
    """A member whose damage is a UserError."""

    def __init__(self, member: IO[bytes], told: Callable[[], AbstractContextManager[None]]) -> None:
        self.member = member
        self.told = told

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self.told():
            chunk = self.member.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self.member.close()
        super().close()
