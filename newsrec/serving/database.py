"""One SQLite file of a store: connections, transactions, and errors in plain words.

The file is in WAL mode, so readers and one writer do not wait for each other, and a transaction is
on the disk when it ends (``synchronous=FULL``).
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from newsrec.errors import StoreError, UserError

FORMAT = 1
"""Version of the tables; increase it when their meaning changes."""
APPLICATION = 0x4E657773
"""Marks SQLite files that newsrec wrote: ``News`` in ASCII."""
WAIT_S = 30.0
"""Longest wait for another process's transaction."""
LOG_BYTES = 2**26
"""Bytes that the write-ahead log keeps on the disk after it was moved into the file."""

DAMAGED = "It is damaged: replace it by a copy, or remove it and import news and clicks again "
DAMAGED += "(`newsrec store import`)."
ADVICE = {
    "SQLITE_NOTADB": "It is not an SQLite database: choose another folder for the store.",
    "SQLITE_CORRUPT": DAMAGED,
    "SQLITE_FULL": "Nothing of this call was written, because the disk is full: free some space.",
    "SQLITE_IOERR": "Nothing of this call was written: check the disk; it may be full.",
    "SQLITE_READONLY": "It cannot be written: allow it, or choose another folder for the store.",
    "SQLITE_CANTOPEN": "Its folder cannot be used: allow writing there, or choose another folder "
    "for the store.",
    "SQLITE_BUSY": f"Another process has been writing for over {WAIT_S:.0f} s: try again.",
}
"""What to do, by the beginning of SQLite's name for the error."""


class Database:
    """An SQLite file; threads may share it.

    Args:
        path: The file, which is created if it is absent or empty.
        tables: Statements that create its tables.
        erase: Whether to overwrite what is deleted.

    Raises:
        StoreError: If the file cannot be used, is no such file, or has another format.
    """

    def __init__(self, path: Path, tables: tuple[str, ...], erase: bool = False) -> None:
        self.path = path
        self._erase = erase
        self._writing, self._watching = threading.Lock(), threading.Lock()
        self._readers: list[sqlite3.Connection] = []
        self._open: list[sqlite3.Connection] = []
        with self.errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = self._connect()
            try:
                self._create(tables)
                self._watch = self._connect()
            except BaseException:
                self.close()
                raise

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self.path, timeout=WAIT_S, isolation_level=None, check_same_thread=False
        )
        self._open.append(db)
        for setting in (
            "synchronous=FULL",
            "fullfsync=ON",  # macOS: a plain fsync may stay in the disk's cache
            "trusted_schema=OFF",
            f"journal_size_limit={LOG_BYTES}",
            f"secure_delete={'ON' if self._erase else 'OFF'}",
        ):
            db.execute(f"PRAGMA {setting}")
        return db

    def _create(self, tables: tuple[str, ...]) -> None:
        """Create the tables in an empty file, or check that they are as they should be."""
        db = self._writer
        if not self._is_empty():
            self._check(tables)
        with self.errors():
            (mode,) = db.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise StoreError(
                f"{self.path}: this file system does not allow SQLite's write-ahead log. Choose a "
                "folder on a local disk for the store."
            )
        with self.write():  # two processes may create it at once; the second finds it whole
            if self._is_empty():
                for statement in tables:
                    db.execute(statement)
                db.execute(f"PRAGMA application_id={APPLICATION}")
                db.execute(f"PRAGMA user_version={FORMAT}")
        self._check(tables)

    def _is_empty(self) -> bool:
        (objects,) = self._writer.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return not objects and not self._pragma("application_id")

    def _check(self, tables: tuple[str, ...]) -> None:
        if self._pragma("application_id") != APPLICATION:
            raise StoreError(
                f"{self.path} is a database, but not of newsrec. Choose another folder for the "
                "store."
            )
        found = self._pragma("user_version")
        rows = self._writer.execute(
            "SELECT sql FROM sqlite_master WHERE name NOT LIKE 'sqlite@_%' ESCAPE '@' ORDER BY sql"
        )
        if found != FORMAT or [sql for (sql,) in rows] != sorted(tables):
            raise StoreError(
                f"{self.path} has format {found}, or other tables than newsrec made; this version "
                f"reads format {FORMAT}. Use the version of newsrec that wrote it, or `newsrec "
                "store export` there and `newsrec store import` here."
            )

    def _pragma(self, name: str) -> int:
        (value,) = self._writer.execute(f"PRAGMA {name}").fetchone()
        return int(value)

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Write in one transaction, which is on the disk afterwards; undone after an error."""
        with self._writing, self.errors():
            db = self._writer
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                if db.in_transaction:  # and not undone by the caller
                    db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    @contextlib.contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """Read in one transaction: all that is read is of one moment."""
        with self.errors():
            try:
                db = self._readers.pop()
            except IndexError:
                db = self._connect()
            db.execute("BEGIN")
            try:
                yield db
            finally:
                db.execute("ROLLBACK")
                self._readers.append(db)

    def version(self) -> int:
        """Return a number that changes when anybody, in any process, writes to the file."""
        with self._watching, self.errors():
            (found,) = self._watch.execute("PRAGMA data_version").fetchone()
        return int(found)

    def rebuild(self) -> None:
        """Write the file anew, without gaps and without rests of what was deleted."""
        with self._writing, self.errors():
            self._writer.execute("VACUUM")
            self._truncate()

    def truncate(self) -> None:
        """Move all that was written into the file itself, and empty the write-ahead log."""
        with self._writing, self.errors():
            self._truncate()

    def _truncate(self) -> None:
        busy, _, _ = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise StoreError(
                f"Another process has been reading {self.path} for over {WAIT_S:.0f} s, so deleted "
                "rows are still in the write-ahead log. Try again."
            )

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn errors of SQLite and of the file system into a StoreError that names the file."""
        try:
            yield
        except (UserError, sqlite3.ProgrammingError):
            raise
        except sqlite3.DatabaseError as error:
            name = getattr(error, "sqlite_errorname", "")
            advice = [advice for start, advice in ADVICE.items() if name.startswith(start)]
            raise StoreError(f"{self.path}: {error}. {(advice or [DAMAGED])[0]}") from error
        except OSError as error:
            raise StoreError(
                f"{self.path}: {error.strerror or error}. Choose another folder for the store."
            ) from error

    def close(self) -> None:
        """Close all connections."""
        with self._writing:
            for db in self._open:
                db.close()
