"""Finds the compiled arrays of a data folder, or compiles its files.

Compiled arrays are in ``ROOT/.newsrec`` under a key made from the files' contents, so changed files
are compiled again and old arrays are never read for them. Files are hashed while they are compiled.
Later runs compare size and modification time, and hash a file again only if these differ.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from newsrec.aside import stopped_by_signals
from newsrec.data.cache import (
    build_lock,
    building,
    cache_folders,
    changed_files,
    digest,
    is_intact,
    is_whole,
    remove,
    seal,
    writable_folder,
)
from newsrec.data.compile import ARRAYS_FORMAT, Splits, compile_splits
from newsrec.data.parts import Engine
from newsrec.data.readers.base import Reader
from newsrec.data.readers.formats import reader_of
from newsrec.data.readers.source import SourceFile, hash_source
from newsrec.errors import DataError
from newsrec.files import write_text
from newsrec.shipped import data_folder
from newsrec.store_path import StorePath

INDEX = "files.json"
"""File with the size, modification time and SHA-256 of the files that were compiled."""
DROPPED = "-dropped"
"""Suffix of a compiled folder whose files had bad lines, which were dropped."""

Hashes = dict[SourceFile, str]
Found = tuple[Path, dict[str, str]]
"""A folder of compiled arrays, and the fingerprint of each split."""


def find_or_compile(root: Path, on_bad_line: str, engine: Engine | None = None) -> Found:
    """Return the compiled arrays of a data folder; compile its files if there are none.

    ``on_bad_line`` and ``engine`` as in ``open_mind``.
    """
    root = data_folder(root)
    reader = reader_of(root)
    splits = reader.find_splits(root)
    found = _find(reader, root, splits, on_bad_line)
    if found is None:
        base = writable_folder(root)
        with build_lock(base):
            # Another process may have compiled it meanwhile.
            found = _find(reader, root, splits, on_bad_line)
            if found is None:
                found = _compile(reader, root, base, splits, on_bad_line, engine)
    return found


def recheck(root: str | Path) -> list[str]:
    """Hash a data folder's files and all arrays made from it; return the names of changed files.

    Size and time are not believed. New hashes are stored and damaged arrays are removed, so that
    ``open_mind`` compiles again; UserError if they cannot be removed.
    """
    root = data_folder(root)
    files = [file for split in reader_of(root).find_splits(root).values() for file in split]
    changed = []
    for base in filter(Path.is_dir, cache_folders(root)):
        index = _read_index(base)
        for file in files:
            known = index.get(_key(root, file))
            fresh = [*_stamp(file), hash_source(file)] if known else None
            if known and fresh and known[2] != fresh[2]:
                changed.append(str(file))
                index[_key(root, file)] = fresh
        if changed and os.access(base, os.W_OK):
            write_text(base / INDEX, json.dumps(index, indent=1))
        for folder in sorted(filter(is_whole, base.iterdir())):
            damaged = changed_files(folder)
            if damaged:
                changed += [str(folder / name) for name in damaged]
                remove(folder)
    return changed


def _find(reader: Reader, root: Path, splits: Splits, on_bad_line: str) -> Found | None:
    """Return the compiled folder of these files and the splits' fingerprints; None if absent."""
    for base in cache_folders(root):
        hashes = _known_hashes(root, base, splits)
        if hashes is not None:
            name, fingerprints = _name(reader, splits, hashes)
            for folder in (base / name, base / f"{name}{DROPPED}"):
                if (on_bad_line == "drop" or folder.name == name) and is_intact(folder):
                    return folder, fingerprints
    return None


def _name(reader: Reader, splits: Splits, hashes: Hashes) -> tuple[str, dict[str, str]]:
    fingerprints = {name: digest(*(hashes[f] for f in files)) for name, files in splits.items()}
    version = (ARRAYS_FORMAT, reader.version) if reader.version else ARRAYS_FORMAT
    return f"{reader.name}-{digest(version, fingerprints)}", fingerprints


def _compile(
    reader: Reader,
    root: Path,
    base: Path,
    splits: Splits,
    on_bad_line: str,
    engine: Engine | None,
) -> Found:
    files = [file for split in splits.values() for file in split]
    before = {file: _stamp(file) for file in files}
    with stopped_by_signals(), building(base) as folder:
        hashes, num_bad = compile_splits(reader, splits, folder, on_bad_line, engine)
        if isinstance(root, StorePath):
            root.store.refresh()
        for file in files:
            if _stamp(file) != before[file]:
                raise DataError(f"{file} changed while it was read. Run again once it is whole.")
        name, fingerprints = _name(reader, splits, hashes)
        target = base / (name + DROPPED if num_bad else name)
        index = _read_index(base)
        for file in files:
            index[_key(root, file)] = [*before[file], hashes[file]]
        write_text(base / INDEX, json.dumps(index, indent=1))
        seal(folder, target)
    return target, fingerprints


def _known_hashes(root: Path, base: Path, splits: Splits) -> Hashes | None:
    """Return the SHA-256 of each file; hash only files whose modification time differs.

    None if a file is new or has another size: it must be compiled, which hashes it anyway.
    """
    index = _read_index(base)
    fresh, hashes = dict(index), {}
    for file in (file for split in splits.values() for file in split):
        known = index.get(_key(root, file))
        stamp = _stamp(file)
        if not known or known[0] != stamp[0]:
            return None
        if known[:2] != stamp:
            fresh[_key(root, file)] = known = [*stamp, hash_source(file)]
        hashes[file] = known[2]
    if fresh != index:
        with contextlib.suppress(OSError):  # if the folder is read-only, hash again next time
            write_text(base / INDEX, json.dumps(fresh, indent=1))
    return hashes


def _key(root: Path, file: SourceFile) -> str:
    """Return a file's path relative to the root, so that a moved folder keeps its arrays."""
    if isinstance(root, StorePath):
        return str(file.path.relative_to(root))
    name = Path(os.path.relpath(file.path, root)).as_posix()  # xMIND's may lie beside the root
    return name if file.member is None else f"{name}:{file.member}"


def _stamp(file: SourceFile) -> list[int]:
    stat = file.path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _read_index(base: Path) -> dict[str, Any]:
    try:
        index = json.loads((base / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}
