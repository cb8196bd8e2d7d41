"""Temporary folders and files beside their target, for building it; standard library only.

The building process holds a lock on what it builds, and the kernel releases the lock when the
process ends, however it ends. So the next process with the same target can recognize and remove
what a killed process left. If the file system has no such locks (some network file systems) or the
system has no ``flock``, nothing is removed.
"""

import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MARK = ".building-"
PAUSES = (0.05, 0.2, 0.5, 1.0, 2.0)
"""Seconds between tries to replace a file that is open on Windows."""
STOPS = (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM))
"""Signals that by default end a process without running Python's cleanup; Ctrl-C runs it."""


@contextlib.contextmanager
def folder_aside(target: Path) -> Iterator[Path]:
    """Create an empty folder beside ``target``, and remove it afterwards unless it was renamed."""
    with _aside(target, tempfile.mkdtemp) as path:
        yield path


@contextlib.contextmanager
def file_aside(target: Path) -> Iterator[Path]:
    """Create an empty file beside ``target``, and remove it afterwards unless it was renamed."""

    def make(**place: Any) -> str:
        handle, path = tempfile.mkstemp(**place)
        os.close(handle)
        return path

    with _aside(target, make) as path:
        yield path


@contextlib.contextmanager
def _aside(target: Path, make: Any) -> Iterator[Path]:
    remove_left_overs(target)
    with stopped_by_signals():
        path, lock = _made_and_locked(target, make)
        try:
            yield path
        finally:
            _remove(path)
            if lock is not None:
                os.close(lock)


def put(aside: Path, target: Path) -> None:
    """Rename a file to ``target``, replacing an existing file.

    Windows refuses while another process, often a virus scanner, has the target open, so retry for
    some seconds there.
    """
    for pause in (*PAUSES, None):
        try:
            aside.replace(target)
            return
        except PermissionError:
            if sys.platform != "win32" or pause is None:
                raise
            time.sleep(pause)


def remove_left_overs(target: Path) -> None:
    """Remove what killed processes left beside ``target``, but nothing that is being built."""
    name = re.compile(re.escape(f".{target.name}{MARK}") + "[a-z0-9_]{8}")
    with contextlib.suppress(OSError):
        for path in target.parent.iterdir():
            if name.fullmatch(path.name) and not path.is_symlink():
                _remove_if_left(path)


def _made_and_locked(target: Path, make: Any) -> tuple[Path, int | None]:
    """Create a folder or file by ``make`` and lock it; the lock is None if there are no locks."""
    while True:
        path = Path(make(prefix=f".{target.name}{MARK}", dir=target.parent))
        if fcntl is None:  # Windows can neither open a folder nor rename an open file
            return path, None
        try:
            lock = os.open(path, os.O_RDONLY)
        except OSError:
            continue  # removed as a left-over before it was locked
        try:
            _flock(lock)
        except OSError:
            os.close(lock)
            return path, None
        if _is_still(path, lock):
            return path, lock
        os.close(lock)


def _remove_if_left(path: Path) -> None:
    """Remove a path that no process has locked; keep it if it cannot be opened or locked."""
    with contextlib.suppress(OSError):
        lock = os.open(path, os.O_RDONLY)
        try:
            _flock(lock, wait=False)
            if _is_still(path, lock):
                _remove(path)
        finally:
            os.close(lock)


def _flock(handle: int, wait: bool = True) -> None:
    """Lock a file or folder; OSError if there are no locks, or it is locked and not ``wait``."""
    if fcntl is None:
        raise OSError("this system has no flock")
    fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _is_still(path: Path, handle: int) -> bool:
    """Return whether a path still leads to the file or folder opened as ``handle``."""
    with contextlib.suppress(OSError):
        return os.path.samestat(path.lstat(), os.fstat(handle))
    return False


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise SystemExit if they would otherwise end the process at once.

    A second signal of the same kind ends it at once; one of the other kind does nothing, because a
    closed terminal or a service manager may send both.
    """
    builder = os.getpid()
    before: dict[int, Any] = {}

    def stop(number: int, _: FrameType | None) -> None:
        for other in before:  # SIG_IGN would print a traceback if that signal is here already
            signal.signal(other, signal.SIG_DFL if other == number else lambda *_: None)
        if os.getpid() != builder:  # a forked process, which builds nothing
            os.kill(os.getpid(), number)
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        for number in STOPS:
            if signal.getsignal(number) is signal.SIG_DFL:  # keep other handlers
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)
