"""Data folders in object stores: paths that are read as ``pathlib.Path`` is.

A folder is listed once, when it is opened. What the paths in it say of files and folders comes from
this list, so looking for files costs no further requests.
"""

import threading
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

import pyarrow as pa

from newsrec.addresses import OPTIONS_WITH_KEYS, without_secrets
from newsrec.errors import UserError
from newsrec.filesystems import Place, find_place, named

BUFFER = 8 << 20
"""Bytes of one request when a file is read from its beginning to its end."""

_one_reader = threading.Lock()


class Stat(NamedTuple):
    """Size and modification time, as ``os.stat_result`` names them."""

    st_size: int
    st_mtime_ns: int


class Store:
    """A folder in an object store.

    Args:
        address: Its address.
    """

    def __init__(self, address: str) -> None:
        self.place: Place = find_place(address, "--data.root")
        self.address = address.rstrip("/")
        self.in_memory = address.startswith("memory:")
        self.opened = time.time_ns()
        """Time of files whose store tells none, so that they are hashed each time."""
        self.files: dict[PurePosixPath, Stat] = {}
        """Its files, by their path in it."""
        self.folders: set[PurePosixPath] = set()

    def refresh(self) -> None:
        """List the files again.

        Raises:
            UserError: If the folder does not exist or cannot be reached.
        """
        self.files = {
            PurePosixPath(info.path).relative_to(self.place.path): Stat(
                info.size, self.opened if info.mtime_ns is None else info.mtime_ns
            )
            for info in self.place.files()
        }
        self.folders = {parent for path in self.files for parent in path.parents}


class StorePath:
    """A file or folder in a store: the part of ``pathlib.Path`` that readers of data use.

    Args:
        store: The folder that was opened.
        path: The path in it.
    """

    def __init__(self, store: Store, path: PurePosixPath) -> None:
        self.store, self.path = store, path
        whole = PurePosixPath(store.place.path) / path
        self.name, self.stem, self.suffix, self.parts = (
            whole.name,
            whole.stem,
            whole.suffix,
            whole.parts,
        )

    def __str__(self) -> str:
        return str(self.store.place.given) + (f"/{self.path}" if self.path.parts else "")

    def __repr__(self) -> str:
        return f"StorePath({str(self)!r})"

    def __hash__(self) -> int:
        return hash((self.store.address, self.path))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StorePath) and (self.store.address, self.path) == (
            other.store.address,
            other.path,
        )

    def __lt__(self, other: "StorePath") -> bool:
        return self.path < other.path

    def __truediv__(self, name: str | PurePosixPath) -> "StorePath":
        return StorePath(self.store, self.path / name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.store.address, self.path, self.store.files.get(self.path))

    @property
    def parents(self) -> "tuple[StorePath, ...]":
        """The folders that it is in, up to the one that was opened."""
        return tuple(StorePath(self.store, path) for path in self.path.parents)

    @property
    def parent(self) -> Any:
        """The folder that it is in; only the address of the one above that which was opened."""
        if not self.path.parts:
            return self.store.place.given.rpartition("/")[0]
        return StorePath(self.store, self.path.parent)

    @property
    def in_memory(self) -> bool:
        """Whether only this process can read it."""
        return self.store.in_memory

    def with_name(self, name: str) -> "StorePath":
        """Return the path with another name."""
        return StorePath(self.store, self.path.with_name(name))

    def with_suffix(self, suffix: str) -> "StorePath":
        """Return the path with another suffix."""
        return StorePath(self.store, self.path.with_suffix(suffix))

    def relative_to(self, folder: "StorePath") -> PurePosixPath:
        """Return the path in a folder of the same store."""
        return self.path.relative_to(folder.path)

    def resolve(self) -> "StorePath":
        """Return the path itself; likewise ``absolute``."""
        return self

    absolute = resolve

    def is_file(self) -> bool:
        """Return whether it is a file."""
        return self.path in self.store.files

    def is_dir(self) -> bool:
        """Return whether it is a folder with files in it."""
        return self.path in self.store.folders

    def exists(self) -> bool:
        """Return whether it is a file or folder."""
        return self.is_file() or self.is_dir()

    def iterdir(self) -> "Iterator[StorePath]":
        """Yield the files and folders in a folder."""
        return self.glob("*")

    def glob(self, pattern: str) -> "Iterator[StorePath]":
        """Yield what lies in a folder and has a name that fits a pattern."""
        for path in sorted({*self.store.files, *self.store.folders}):
            inside = path.parts and path.parent == self.path
            if inside and fnmatchcase(path.name, pattern):
                yield StorePath(self.store, path)

    def rglob(self, pattern: str) -> "Iterator[StorePath]":
        """Yield the files at any depth in a folder whose names fit a pattern."""
        for path in sorted(self.store.files):
            if self.path in path.parents and fnmatchcase(path.name, pattern):
                yield StorePath(self.store, path)

    def stat(self) -> Stat:
        """Return size and time of a file, from the list."""
        try:
            return self.store.files[self.path]
        except KeyError:
            raise UserError(f"{self} does not exist. Was it removed?") from None

    def open(self, mode: str = "rb") -> Any:
        """Open a file to read it from its beginning."""
        if self.store.in_memory:
            return self._copied()
        place = self._place()
        with named(place.given):
            return place.filesystem.open_input_stream(place.path, buffer_size=BUFFER)

    def open_input_file(self) -> Any:
        """Open a file to read parts of it."""
        if self.store.in_memory:
            return self._copied()
        place = self._place()
        with named(place.given):
            return place.filesystem.open_input_file(place.path)

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the content of a file."""
        return self._place().read().decode(encoding, errors)

    def _copied(self) -> pa.BufferReader:
        with _one_reader:  # all readers of a file in memory share one position
            return pa.BufferReader(self._place().read())

    def _place(self) -> Place:
        return self.store.place / str(self.path)


def open_root(address: str) -> Path:
    """Return the data folder at an address.

    Raises:
        UserError: If it cannot be reached, or the address has keys.
    """
    shown = without_secrets(address)
    place, _, options = address.partition("?")
    if shown != place.rstrip("/") or OPTIONS_WITH_KEYS.search(f"&{options}"):
        raise UserError(
            f"--data.root {shown} has keys in its address, which checkpoints would keep. Give them "
            "as the store's own tools take them, for example in AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY."
        )
    store = Store(address)
    if store.place.is_local:
        return Path(store.place.path)
    store.refresh()
    # Readers are written for Path; a StorePath has what they use of it.
    return cast(Path, StorePath(store, PurePosixPath()))


def address_of(root: Path) -> str:
    """Return a data folder's path or address, with the options that the address has."""
    return root.store.address if isinstance(root, StorePath) else str(root)


_store = lru_cache(maxsize=4)(Store)  # a worker opens a store once


def _restored(address: str, path: PurePosixPath, stat: Stat | None) -> StorePath:
    store = _store(address)
    if stat is not None:
        store.files[path] = stat
    return StorePath(store, path)
