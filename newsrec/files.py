"""Write files and folders that appear whole or not at all; standard library only."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from newsrec.addresses import without_secrets
from newsrec.aside import file_aside, folder_aside, put
from newsrec.errors import UserError

ADDRESS = re.compile(r"[A-Za-z][\w+.-]+:/")
"""What an address is as a ``Path``; ``C:/`` is none."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Values of ``OSError.errno`` if nothing more can be written."""

ROOM = 2**20
"""If fewer bytes than this are free, a failed write is blamed on the full disk."""


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_empty(output: Path, hint: str = "Choose another --output, or remove it.") -> None:
    """Refuse an output folder that is not empty or cannot be written; ``hint`` is the next step."""
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file, not a folder. Choose another --output.")
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"--output {output} is not empty. {hint}")
    require_writable(output)


def address_in(path: str | Path) -> str | None:
    """Return the address that a path is, as messages show it; None if it is none."""
    if not ADDRESS.match(str(path)):
        return None
    return without_secrets(re.sub(":/+", "://", str(path), count=1))  # Path makes two slashes one


def require_on_disk(folder: Path, option: str) -> None:
    """Refuse an address such as ``s3://bucket/results``, which would become a folder ``s3:``."""
    if shown := address_in(folder):
        raise UserError(
            f"{option} {shown} is an address, and this command writes to disks only. Name a "
            "folder, and copy from there what it writes."
        )


def require_writable(output: Path) -> None:
    """Refuse an output folder that cannot be created or written, before any work is done.

    Tries to write, because the permissions of a read-only mount do not show that it is read-only.
    """
    there = output
    require_on_disk(output, "--output")
    if "\0" in str(output):
        raise UserError(f"--output {output} holds a null character. Choose another --output.")
    try:
        while not there.exists() and there != there.parent:
            if there.is_symlink():  # to nothing, or in a circle
                raise UserError(
                    f"--output {output}: {there} is a link to {os.readlink(there)}, which leads to "
                    "no folder. Remove the link, or choose another --output."
                )
            there = there.parent
        if not there.is_dir():
            raise UserError(
                f"--output {output}: {there} is a file, not a folder. Choose another --output."
            )
        Path(tempfile.mkdtemp(prefix=".newsrec-", dir=there)).rmdir()
    except OSError as error:
        raise UserError(
            f"--output {output}: nothing can be written to {there} ({error.strerror}). Choose "
            "another --output."
        ) from error


def publish(target: Path, build: Callable[[Path], None]) -> None:
    """Build a folder beside ``target`` and rename it, so that ``target`` is whole or absent.

    Several processes may do so at once: the first to finish wins, and the others drop their copy. A
    later call with the same ``target`` removes what a killed process left. ``build`` fills an empty
    folder. UserError if no folder can be created there, ``target`` cannot be replaced, or the disk
    is full.
    """
    require_replaceable(target)
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = stack.enter_context(folder_aside(target))
        except OSError as error:
            raise UserError(
                f"{target}: no folder can be made in {target.parent} ({error.strerror}). Choose "
                "another --output."
            ) from error
        try:
            build(aside)
            aside.chmod(0o755)  # mkdtemp's folders are private
            try:
                aside.rename(target)
            except OSError:
                if not target.is_dir():
                    raise
                if not any(target.iterdir()):  # Windows cannot replace even an empty one
                    target.rmdir()
                    try:
                        aside.rename(target)
                    except OSError:
                        target.mkdir()
                        raise
        except Exception as error:
            if isinstance(error, UserError) or not is_full(error, target.parent):
                raise
            raise UserError(
                f"{target}: nothing was written, because the disk is full ({error}). Free some "
                "space there, or choose another --output."
            ) from error


def is_full(error: Exception, folder: Path) -> bool:
    """Return whether a write failed because the disk is full; not every library reports it."""
    full = isinstance(error, OSError) and error.errno in DISK_FULL
    return full or shutil.disk_usage(folder).free < ROOM


def require_replaceable(target: Path) -> None:
    """Refuse an empty folder that a rename cannot replace: a mount, link or the current folder."""
    if not target.is_dir() or any(target.iterdir()):
        return
    try:
        target.rmdir()
        target.mkdir()
    except OSError as error:
        raise UserError(
            f"{target} cannot be replaced as a whole ({error.strerror}): it may be a link, a mount "
            f"or the current folder. Name a folder in it: --output {target / 'new'}."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file that is whole or absent, also if two processes write it at once."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that is whole or absent, also if two processes write it at once."""
    with file_aside(path) as aside:
        aside.write_bytes(content)
        aside.chmod(0o644)
        put(aside, path)
