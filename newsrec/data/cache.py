"""Cache for arrays made from other files: found by content, and used only if complete.

The cache is ``ROOT/.newsrec``, or in the user's cache folder if the root is read-only, comes with
the installed package, or lies in an object store. Each folder of arrays is built under a temporary
name, with a lock held. Then it is sealed with the size and hash of each of its files, and renamed.
So the folder of a killed process is never read, and the next process that builds arrays removes
it.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from newsrec.errors import UserError
from newsrec.files import file_hash, is_full
from newsrec.places import user_cache
from newsrec.shipped import data_folder, is_installed
from newsrec.store_path import StorePath, address_of

log = logging.getLogger(__name__)

SEAL = "seal.json"
ASIDE = ".building-"
SMALL_BYTES = 4 << 20
"""Files up to this size are hashed each time they are opened, which takes about 10 ms for 4 MB.
Larger files are hashed only by ``prepare --check``."""


def cache_folders(root: Path) -> tuple[Path, ...]:
    """Return the folders that may hold arrays of ``root``: in it, or in the user's cache."""
    root = data_folder(root)
    where = address_of(root.resolve())
    ours = user_cache() / "newsrec" / digest(where)
    if isinstance(root, StorePath) or is_installed(root):
        return (ours,)
    return root / ".newsrec", ours


def writable_folder(root: Path) -> Path:
    """Return the first of ``cache_folders`` that can be written, made if absent; else refuse."""
    for folder in cache_folders(root):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=folder.parent != root, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    *others, last = map(str, cache_folders(root))
    names = f"neither {others[0]} nor {last} can" if others else f"{last} cannot"
    raise UserError(
        f"Compiled arrays need a place: {names} be written. Set XDG_CACHE_HOME to the "
        "absolute path of a writable folder."
    )


def find_or_build(root: Path, name: str, build: Callable[[Path], None]) -> Path:
    """Return a folder of arrays made from ``root``; build it if there is no intact one.

    ``name`` has a digest of everything that the arrays depend on; ``build`` fills an empty folder.
    """
    for base in cache_folders(root):
        if is_intact(base / name):
            return base / name
    base = writable_folder(root)
    with build_lock(base):
        if not is_intact(base / name):  # another process may have built it meanwhile
            with building(base) as folder:
                build(folder)
                seal(folder, base / name)
    return base / name


@contextlib.contextmanager
def build_lock(base: Path) -> Iterator[None]:
    """Keep other processes from building in ``base``, and remove what killed processes left."""
    # Create the lock file here, so that the umask decides its permissions: if a group may write the
    # folder, the group may take the lock. filelock would set a mode regardless of the umask, and
    # 0666 would let everybody take it.
    path = base / "lock"
    with contextlib.suppress(OSError):
        path.touch(mode=0o666)
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
    lock = FileLock(path, mode=mode)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process that compiles into %s", base)
            lock.acquire()
    except (NotImplementedError, OSError):  # no locks on this file system: rely on renaming
        yield
        return
    try:
        for left in base.glob(f"{ASIDE}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def building(base: Path) -> Iterator[Path]:
    """Yield an empty folder to build in, and remove it afterwards unless it was renamed.

    UserError if the disk is full.
    """
    folder = Path(tempfile.mkdtemp(prefix=ASIDE, dir=base))
    try:
        with full_disk_mistakes(base):
            yield folder
    finally:
        remove_shared(folder)


def remove_shared(folder: Path) -> None:
    """Remove a folder into which a process that shares the work may still write a last file."""
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break


@contextlib.contextmanager
def full_disk_mistakes(base: Path) -> Iterator[None]:
    """Turn the error of a full disk into a UserError that says what to do."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_full(error, base):
            raise
        raise UserError(
            f"{base}: {getattr(error, 'strerror', None) or error}; nothing was kept. Free some "
            "space there, or make the data folder read-only and set XDG_CACHE_HOME to a folder on "
            "another disk."
        ) from error


def seal(folder: Path, target: Path) -> None:
    """Write the size and hash of a folder's files into its seal, and rename it to ``target``."""
    files = {
        str(path.relative_to(folder)): [path.stat().st_size, file_hash(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / SEAL).write_text(json.dumps(files, indent=1), encoding="utf-8")
    folder.chmod(0o755)  # mkdtemp's folders are private
    if target.exists() and not is_intact(target):
        log.warning("%s was damaged and is made again", target)
        shutil.rmtree(target)
    try:
        folder.rename(target)
    except OSError:
        if not is_intact(target):  # otherwise another process was faster
            raise


def is_whole(folder: Path) -> bool:
    """Return whether a folder is sealed and its files still have the sizes in the seal.

    A data folder may come with arrays made by a stranger, so a seal that names files outside its
    folder is rejected.
    """
    try:
        files = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        within = all((folder / name).resolve().is_relative_to(folder.resolve()) for name in files)
        return within and all(
            (folder / name).stat().st_size == size for name, (size, _) in files.items()
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def is_intact(folder: Path) -> bool:
    """Return whether a folder is whole and its small files still have the hashes in the seal."""
    with contextlib.suppress(OSError):  # removed by another process meanwhile
        return is_whole(folder) and not changed_files(folder, on_opening=True)
    return False


def remove(folder: Path) -> None:
    """Remove a damaged folder of arrays; UserError if it cannot, as if another user owns it."""
    try:
        with build_lock(folder.parent):
            shutil.rmtree(folder)
    except OSError as error:
        raise UserError(
            f"{folder} is damaged and cannot be removed ({error}). Ask its owner to remove it, or "
            "copy the data folder without its .newsrec."
        ) from error


def changed_files(folder: Path, on_opening: bool = False) -> list[str]:
    """Hash a sealed folder's files again, and return the names of those that changed.

    ``on_opening`` hashes only small files and Arrow tables: Arrow does not check what it reads, and
    a flipped bit in a table can crash the process.
    """
    files = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    return [
        name
        for name, (size, found) in files.items()
        if (not on_opening or size <= SMALL_BYTES or name.endswith(".arrow"))
        and file_hash(folder / name) != found
    ]


def digest(*parts: Any) -> str:
    """Return a short hash of plain values: 16 hexadecimal digits of SHA-256."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
