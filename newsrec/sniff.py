"""Recognize the kind of a file by its first bytes; standard library only."""

from pathlib import Path

STARTS = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"PK\x03\x04": "a zip",
    b"PK\x05\x06": "an empty zip",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ\x00": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x89PNG": "a picture",
    b"%PDF": "a PDF",
    b"\x89HDF\r\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
    b"SQLite format 3": "a database",
    b"version https://git-lfs": "a pointer of Git LFS, whose content was not fetched",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}
"""First bytes of kinds of files, and the name of each kind."""

PAGES = (b"<!doctype", b"<html")
HEAD = 4096


def kind_of(path: Path) -> str | None:
    """Return the kind of a file if its first bytes show one; None for plain text and the rest."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not head:
        return "an empty file"
    for start, kind in STARTS.items():
        if head.startswith(start):
            return kind
    if head.lstrip().lower().startswith(PAGES):
        return "a web page, as a failed download leaves it"
    return None


def is_binary(path: Path) -> bool:
    """Return whether a file cannot be text because its first bytes contain NUL."""
    with path.open("rb") as file:
        return b"\0" in file.read(HEAD)
