"""Files and folders on disks and in object stores, where files are written whole or not at all."""

import contextlib
import copy
import hashlib
import mmap
import os
import posixpath
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from newsrec.addresses import without_secrets
from newsrec.aside import file_aside, put
from newsrec.errors import UserError

OF_PYARROW = ("file", "s3", "gs", "gcs", "hdfs", "abfs", "abfss")
"""Schemes of the file systems of pyarrow; fsspec has others."""
SECONDS_FOR_GOOGLE = 30
"""Time limit of a request to ``gs://`` with its repetitions; pyarrow's default is 15 minutes."""


class Place(NamedTuple):
    """A file or folder in a file system."""

    filesystem: Any
    path: str
    given: str
    """As the user wrote it, without the secrets and options of an address."""

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine's disks, where a rename replaces a file or folder."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def lies_in(self, folder: "Place") -> bool:
        """Return whether it is a folder or lies in it, also by way of links.

        Places of one kind of store are compared by path alone, since two addresses may name the
        same server.
        """
        if self.filesystem.type_name != folder.filesystem.type_name:
            return False
        real = os.path.realpath if self.is_local else lambda path: posixpath.normpath(f"/{path}")
        return f"{real(self.path)}/".startswith(f"{real(folder.path).rstrip('/')}/")

    def __truediv__(self, name: str) -> "Place":
        return Place(self.filesystem, f"{self.path.rstrip('/')}/{name}", f"{self.given}/{name}")

    def beside(self, ending: str) -> "Place":
        """Return the place with an ending after its name."""
        return Place(self.filesystem, self.path + ending, self.given + ending)

    def info(self) -> Any:
        """Return pyarrow's ``FileInfo`` of it."""
        with named(self.given):
            return self.filesystem.get_file_info(self.path)

    def files(self) -> list[Any]:
        """Return the ``FileInfo`` of all files in a folder, at any depth, sorted by path."""
        with named(self.given):
            found = self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=True))
        return sorted((info for info in found if info.is_file), key=lambda info: info.path)

    def read(self) -> bytes:
        """Return the content of a file."""
        with named(self.given), self.filesystem.open_input_file(self.path) as file:
            content: bytes = file.read()
        return content

    def hash(self) -> str:
        """Return the SHA-256 of a file."""
        with named(self.given), self.filesystem.open_input_file(self.path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @contextlib.contextmanager
    def write(self) -> Iterator[Any]:
        """Open a file that appears when it is complete, or not at all."""
        if not self.is_local:
            # Closing a stream makes an object of what was written, even after an error. So the file
            # is sent once it is complete, in one call, which Ctrl-C cannot interrupt midway.
            with tempfile.TemporaryFile() as aside:
                yield aside
                aside.flush()
                whole = mmap.mmap(aside.fileno(), 0, access=mmap.ACCESS_READ)
                try:
                    with self.filesystem.open_output_stream(self.path) as stream:
                        stream.write(whole)
                except BaseException:
                    with contextlib.suppress(Exception):
                        self.filesystem.delete_file(self.path)
                    raise
            return
        with file_aside(Path(self.path)) as aside:
            with self.filesystem.open_output_stream(str(aside)) as stream:
                yield stream
            aside.chmod(0o644)
            put(aside, Path(self.path))


@contextlib.contextmanager
def named(given: str) -> Iterator[None]:
    """Add the name of a place to errors of its file system, which often lack it.

    Raises:
        UserError: If the block raises an error of a file system that names no file.
    """
    try:
        yield
    except (OSError, NotImplementedError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.filename:
            raise
        if isinstance(error, FileNotFoundError) and "://" in given:
            raise UserError(
                f"There is nothing at {given}. Check the address, or name another place."
            ) from error
        code: int | None = getattr(error, "errno", None)
        reason = os.strerror(code) if code and code > 0 else str(error)  # below 0: of a resolver
        # Some file systems say the whole address.
        reason = without_secrets(reason.partition("\n")[0]).rstrip(".")
        reason = reason or "its file system cannot do this"
        checks = "address, network and keys" if "://" in given else "path and its permissions"
        raise UserError(
            f"{given} cannot be used: {reason}. Check the {checks}, or name another place."
        ) from error


def find_place(given: str, option: str) -> Place:
    """Return the place that a path or a URI names; ``option`` is named in messages.

    Raises:
        UserError: If there is no such path, the scheme of a URI is not known, or its file system
            cannot be opened.
    """
    if not given or "\0" in given:
        problem = "holds a null character" if given else "is empty"
        raise UserError(f"{option} {problem}. Name a file or folder.")
    if "://" not in given:
        given = given.rstrip("/") or given
        return Place(fs.LocalFileSystem(), os.path.abspath(given), given)
    given = given.rstrip("/")
    if "://" not in given:
        raise UserError(f"{option} {given}// names no file or folder. Add one to the address.")
    scheme, shown = given.partition(":")[0], without_secrets(given)
    if scheme in OF_PYARROW and (wrong := re.search(r"[^!-~]", given)):
        raise UserError(
            f"{option} {shown} has {wrong[0]!r}, which an address cannot have. Write "
            f"{quote(wrong[0], errors='replace')} in its place."
        )
    try:
        if scheme in OF_PYARROW:
            uri = given
            if scheme.startswith("g") and "retry_limit_seconds" not in given:
                uri += f"{'&' if '?' in given else '?'}retry_limit_seconds={SECONDS_FOR_GOOGLE}"
            filesystem, path = fs.FileSystem.from_uri(uri)
            if scheme == "s3":  # it tries for minutes; a copy has the default of three tries
                filesystem = copy.copy(filesystem)
            return Place(filesystem, path.rstrip("/"), shown)
        import fsspec

        found, path = fsspec.core.url_to_fs(given)
        if "file" in found.protocol:
            return Place(fs.LocalFileSystem(), os.path.abspath(path), shown)
    except (ValueError, ImportError, OSError) as error:  # ArrowInvalid is a ValueError
        reason = str(error).partition("\n")[0].replace(given, shown)
        reason = without_secrets(reason).rstrip(".")
        raise UserError(
            f"{option} {shown}: {scheme}:// cannot be opened ({reason}). Check the address, "
            "install the package that it needs, or copy the files to a folder."
        ) from error
    return Place(fs.PyFileSystem(fs.FSSpecHandler(found)), path, shown)
