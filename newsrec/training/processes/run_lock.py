"""Allows one run at a time in a run folder."""

import errno
import json
import logging
import os
import shutil
import socket
import sys
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from newsrec.errors import UserError
from newsrec.files import write_text

log = logging.getLogger(__name__)

LOCK, HOLDER = ".lock", ".holder.json"
"""Files in the run folder: the lock, and a description of the process that holds it."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Errors of a file system without locks."""


class RunLock:
    """Reserves a run folder for one run, from before its first file until the process ends.

    The kernel releases the lock when the process ends, even by kill -9. On NFS the lock holds
    between machines if the server supports locks (NFS 4, or lockd), unless the folder is mounted
    with ``nolock`` or ``local_lock``: each machine then has its own lock. On a file system without
    locks (Lustre without ``-o flock``), a warning is logged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = not folder.exists()
        """Whether this object created the folder, and so may remove it again."""
        self._lock = FileLock(folder / LOCK, timeout=0)

    def take(self) -> None:
        """Take the lock and remove partly written files of old runs; refuse if a run has it."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            self.made = False
            raise UserError(
                f"Another run is running in {self.folder}{self._holder()}. Wait for it, or choose "
                "another --output."
            ) from None
        except (OSError, NotImplementedError) as error:
            if isinstance(error, NotImplementedError) or error.errno in NO_LOCKS:
                said = "%s cannot be locked (%s): do not start a second run in it"
                log.warning(said, self.folder, error)
                return
            raise UserError(
                f"--output {self.folder}: its lock cannot be made ({error}). Choose an --output on "
                "a disk that can be written to and locked."
            ) from error
        for part in self.folder.glob("checkpoints/.*.part"):
            with suppress(OSError):
                shutil.rmtree(part) if part.is_dir() else part.unlink()
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        }
        write_text(self.folder / HOLDER, json.dumps(holder) + "\n")

    def discard(self, names: Iterable[str]) -> None:
        """Remove the folder with a run's ``names`` if ``take`` made it and it has nothing else."""
        if not self.made:
            return
        if (
            sys.platform == "win32"
        ):  # Windows cannot unlink an open file; elsewhere the lock is held to keep others out
            self.release()
        for name in names:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()
        with suppress(OSError):
            self.folder.rmdir()

    def release(self) -> None:
        """Release the lock; its empty file stays, since another run may be about to lock it."""
        if self._lock.is_locked:
            with suppress(OSError):
                (self.folder / HOLDER).unlink(missing_ok=True)
            self._lock.release()

    def _holder(self) -> str:
        try:
            who = json.loads((self.folder / HOLDER).read_text(encoding="utf-8"))
            return f" (process {who['pid']} on {who['host']}, since {who['since']})"
        except (OSError, ValueError, KeyError, TypeError):
            return ""
