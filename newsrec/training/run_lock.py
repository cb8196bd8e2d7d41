"""One run at a time in a run folder."""

import json
import os
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from newsrec.errors import UserError
from newsrec.files import write_text

LOCK, HOLDER = ".lock", ".holder.json"
"""Names in the run folder: the lock itself, and who holds it."""


class RunLock:
    """Keeps a run folder for one run, from before its first file until the process ends.

    The kernel releases the lock when the process ends, also by kill -9. On NFS it holds between
    machines where the server supports locks (NFS 4, or lockd); where it does not, taking the lock
    fails and the run says so.

    Args:
        folder: The run folder; made if it is absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = not folder.exists()
        """Whether the folder was made here, so that it may be removed again."""
        self._lock = FileLock(folder / LOCK, timeout=0)

    def take(self) -> None:
        """Take the lock, and remove the parts of files that killed runs have left.

        Raises:
            UserError: If another run has it, or no lock can be had there.
        """
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
            raise UserError(
                f"--output {self.folder}: its lock cannot be made ({error}). Choose an --output on "
                "a disk that can be written to and locked."
            ) from error
        for part in self.folder.glob("checkpoints/.*.part"):
            with suppress(OSError):
                part.unlink()
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        }
        write_text(self.folder / HOLDER, json.dumps(holder) + "\n")

    def release(self) -> None:
        """Give the lock back; its empty file stays, since another run may be about to lock it."""
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
