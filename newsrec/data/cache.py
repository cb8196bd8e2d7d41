"""Arrays compiled from other files: found by content, written aside, believed only when whole."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from newsrec.errors import UserError


def cache_folder(root: Path) -> Path:
    """Return where arrays made from ``root`` live: in it, or in the user's cache if read-only."""
    folder = root / ".newsrec"
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
    if not os.access(folder, os.W_OK):
        user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = user_cache / "newsrec" / digest(str(root.resolve()))
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest(*parts: Any) -> str:
    """Return a short hash of plain values: 16 hexadecimal digits of SHA-256."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hashes(files: Sequence[Path], index: Path) -> dict[Path, str]:
    """Return the SHA-256 of each file; those whose size and time are as in ``index`` are believed.

    Args:
        files: What to hash.
        index: JSON file that remembers size, modification time and hash; updated as needed.
    """
    try:
        known = json.loads(index.read_text())
    except (OSError, ValueError):
        known = {}
    hashes, fresh = {}, dict(known)
    for path in files:
        stat = path.stat()
        name = str(path.resolve())
        entry = known.get(name)
        if not entry or [stat.st_size, stat.st_mtime_ns] != entry[:2]:
            entry = [stat.st_size, stat.st_mtime_ns, file_hash(path)]
        hashes[path] = entry[2]
        fresh[name] = entry
    if fresh != known:
        write_text(index, json.dumps(fresh, indent=1))
    return hashes


def require_empty(output: Path, hint: str = "Choose another --output, or remove it.") -> None:
    """Refuse to write where something is already.

    Args:
        output: A folder that should be absent or empty.
        hint: What the user can do instead.

    Raises:
        UserError: If it is a file or a folder that holds anything.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file, not a folder. Choose another --output.")
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"--output {output} is not empty. {hint}")


def publish(target: Path, build: Callable[[Path], None]) -> None:
    """Build a folder aside and rename it, so that ``target`` is whole or absent.

    Several processes may do so at once: the first to finish wins, the others drop their copy.

    Args:
        target: The folder to appear.
        build: Fills an empty folder; what it raises leaves no trace.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        build(aside)
        aside.chmod(0o755)  # mkdtemp's folders are private
        try:
            aside.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file that is whole or absent, also if two processes write it at once."""
    handle, aside = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
    finally:
        Path(aside).unlink(missing_ok=True)
