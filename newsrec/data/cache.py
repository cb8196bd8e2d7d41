"""Arrays made from other files: found by content, written aside, believed only when whole.

They live in ``ROOT/.newsrec``, or in the user's cache where the root is read-only. A folder of
arrays is built aside under a lock, sealed with the size and hash of each of its files, and renamed,
so what a killed process leaves is never read, and the next one to build removes it.
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

log = logging.getLogger(__name__)

SEAL = "seal.json"
ASIDE = ".building-"
SMALL_BYTES = 4 << 20
"""Files up to this size are hashed whenever they are opened, the others by ``prepare --check``:
4 MB take about 10 ms."""


def cache_folders(root: Path) -> tuple[Path, Path]:
    """Return where arrays made from ``root`` may be: in it, and in the user's cache."""
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / ".newsrec", user_cache / "newsrec" / digest(str(root.resolve()))


def writable_folder(root: Path) -> Path:
    """Return the first of ``cache_folders`` that can be written, made if absent.

    Raises:
        UserError: If none can.
    """
    for folder in cache_folders(root):
        with contextlib.suppress(OSError):
            folder.mkdir(parents=folder.parent != root, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    names = " nor ".join(str(folder) for folder in cache_folders(root))
    raise UserError(
        f"Compiled arrays need a place: neither {names} can be written. Set XDG_CACHE_HOME to a "
        "folder that can."
    )


def find_or_build(root: Path, name: str, build: Callable[[Path], None]) -> Path:
    """Return a folder of arrays made from ``root``, built if no whole one is there.

    Args:
        root: The data folder.
        name: Names the folder; holds a digest of all that shaped the arrays.
        build: Fills an empty folder.
    """
    for base in cache_folders(root):
        if is_intact(base / name):
            return base / name
    base = writable_folder(root)
    with build_lock(base):
        if not is_intact(base / name):  # another process may have been faster
            with building(base) as folder:
                build(folder)
                seal(folder, base / name)
    return base / name


@contextlib.contextmanager
def build_lock(base: Path) -> Iterator[None]:
    """Keep other processes from building in ``base``, and remove what killed ones have left."""
    # Made here, so the umask says who may use it: a folder that a group may write has a lock that
    # the group may take. filelock's own mode would be set whatever the umask; 0666 let anybody.
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
    except (NotImplementedError, OSError):  # a file system without locks: renaming must do
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
    """Give an empty folder to build in; it is gone afterwards unless it was renamed.

    Raises:
        UserError: If the disk is full.
    """
    folder = Path(tempfile.mkdtemp(prefix=ASIDE, dir=base))
    try:
        yield folder
    except Exception as error:
        if isinstance(error, UserError) or not is_full(error, base):
            raise
        raise UserError(
            f"{base}: {getattr(error, 'strerror', None) or error}; nothing was kept. Free some "
            "space there, or make the data folder read-only and set XDG_CACHE_HOME to a place with "
            "more."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def seal(folder: Path, target: Path) -> None:
    """Note size and hash of a folder's files in it, and rename it to ``target``."""
    files = {
        str(path.relative_to(folder)): [path.stat().st_size, file_hash(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / SEAL).write_text(json.dumps(files, indent=1), encoding="utf-8")
    folder.chmod(0o755)  # mkdtemp's folders are private
    if target.exists() and not is_intact(target):
        log.warning("%s was damaged: it is made anew", target)
        shutil.rmtree(target)
    try:
        folder.rename(target)
    except OSError:
        if not is_intact(target):  # else another process was faster
            raise


def is_whole(folder: Path) -> bool:
    """Tell if a folder is sealed and its files have the sizes that they had then.

    A data folder may come with arrays that a stranger made: a seal names files in its folder alone.
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
    """Tell if a folder is whole and its small files have the hashes that they had then."""
    if not is_whole(folder):
        return False
    try:
        return not changed_files(folder, on_opening=True)
    except OSError:  # removed by another process meanwhile
        return False


def remove(folder: Path) -> None:
    """Remove a damaged folder of arrays.

    Raises:
        UserError: If it is another's.
    """
    try:
        with build_lock(folder.parent):
            shutil.rmtree(folder)
    except OSError as error:
        raise UserError(
            f"{folder} is damaged and cannot be removed ({error}). Ask its owner to, or copy the "
            "data folder without its .newsrec."
        ) from error


def changed_files(folder: Path, on_opening: bool = False) -> list[str]:
    """Hash a sealed folder's files again and return those that are not as they were.

    Args:
        folder: A whole folder.
        on_opening: Hash small files alone, and tables: Arrow trusts what it reads, and a flipped
            bit in one can end the process.
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
