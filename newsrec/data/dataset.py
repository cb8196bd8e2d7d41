"""MIND's ``news.tsv`` and ``behaviors.tsv`` as arrays, compiled once and memory-mapped after.

The stories of all splits form one catalogue. Row 0 is padding, row 1 the unknown story, and real
stories start at row 2 in the order in which train, dev and test name them first. A history keeps
only stories that some ``news.tsv`` has; a candidate that none has becomes row 1. Both are counted.

Compiled arrays live in ``ROOT/.newsrec`` under a key made of the files' contents, so that changed
files are compiled anew and old arrays are never read for them. Files are hashed while they are
compiled; later starts compare size and modification time, and hash again only where these differ.
"""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
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
from newsrec.data.compile import ARRAYS, FORMAT, compile_mind
from newsrec.data.ragged import Ragged
from newsrec.data.readers.source import SPLITS as SPLITS  # for those who read splits
from newsrec.data.readers.source import SourceFile, SplitFiles, find_splits, hash_source
from newsrec.errors import UserError
from newsrec.files import write_text

INDEX = "files.json"
"""Remembers size, modification time and SHA-256 of the files that were compiled."""
DROPPED = "-dropped"
"""Ends the name of a compiled folder whose files had bad lines."""


class Split(NamedTuple):
    """The impressions of one split, in the order of its ``behaviors.tsv``."""

    name: str
    """``train``, ``dev`` or ``test``, or what ``newsrec.data.splits`` made of them."""
    impression_id: NDArray[np.int64]
    """MIND's number of each impression ``[impressions]``."""
    user: NDArray[np.int32]
    """Row of ``MindData.users`` ``[impressions]``."""
    time: NDArray[np.datetime64]
    """When the impression was shown, in seconds ``[impressions]``."""
    history: NDArray[np.int32]
    """Row of ``histories`` ``[impressions]``."""
    histories: Ragged
    """Distinct histories of all splits: catalogue rows, oldest first, unknown stories left out."""
    candidates: Ragged
    """Catalogue rows of each impression's candidates, in the order of the file."""
    labels: NDArray[np.int8] | None
    """1 clicked, 0 skipped ``[candidates]``; None where the split has no labels."""
    counts: dict[str, int]
    """What ``prepare`` reports: impressions, users, unknown ids and so on."""
    fingerprint: str
    """Hash of the split's two files, and of how it was cut."""

    @property
    def days(self) -> tuple[np.datetime64, np.datetime64]:
        """First and last day on which its impressions were shown."""
        first, last = self.time.min(), self.time.max()
        return first.astype("datetime64[D]"), last.astype("datetime64[D]")

    @property
    def window(self) -> str:
        """Its days as text: ``2019-11-09 to 2019-11-14``."""
        first, last = self.days
        return str(first) if first == last else f"{first} to {last}"


class MindData(NamedTuple):
    """A data folder: one catalogue of stories and the splits that were found."""

    root: Path
    cache: Path
    """Folder of the arrays that belong to these very files."""
    news: pa.Table
    """Real stories: news_id, category, subcategory, title, abstract; row ``i`` is catalogue row
    ``i + 2``."""
    users: pa.Array
    """User ids of all splits."""
    splits: dict[str, Split]
    bad_lines: dict[str, list[str]]
    """The first lines that were left out of each file that has such, as text."""
    cut_off: list[str]
    """Files whose last line has no line end."""
    arrays: dict[str, NDArray]
    """The compiled arrays, all splits' rows one after the other."""
    train: str = "train"
    """The split that models and baselines learn from."""

    @property
    def num_news(self) -> int:
        """Rows of the catalogue, padding and the unknown story included."""
        return len(self.news) + FIRST_NEWS

    def split(self, name: str) -> Split:
        """Return a split by name.

        Raises:
            UserError: If the folder has no such split.
        """
        if name not in self.splits:
            raise UserError(
                f"{self.root} has no split {name!r}, only {', '.join(self.splits)}. Put its "
                f"news.tsv and behaviors.tsv into {self.root / name}, or choose another split."
            )
        return self.splits[name]


def open_mind(root: str | Path, on_bad_line: str = "error") -> MindData:
    """Open a data folder, compiling its files first if that has not been done for these contents.

    Args:
        root: Folder with train, dev and test, any subset, unpacked or zipped.
        on_bad_line: ``error`` refuses a file with a line that cannot be read; ``drop`` leaves such
            lines out and counts them.

    Raises:
        UserError: If files are missing or cannot be read.
    """
    if on_bad_line not in ("error", "drop"):
        raise UserError(f"data.on_bad_line is {on_bad_line!r}; choose error or drop.")
    root = Path(root)
    splits = find_splits(root)
    found = _find(root, splits, on_bad_line)
    if found is None:
        base = writable_folder(root)
        with build_lock(base):
            found = _find(root, splits, on_bad_line)  # another process may have been faster
            if found is None:
                found = _compile(root, base, splits, on_bad_line)
    try:
        return _load(root, *found)
    except Exception as error:  # of a large array: numpy evaluates its header as Python
        raise UserError(
            f"{found[0]} is damaged ({error}). `python -m newsrec prepare --check --data.root "
            f"{root}` compiles it anew."
        ) from error


def recheck(root: str | Path) -> list[str]:
    """Hash a data folder's files and all arrays made from it, whatever their size and time say.

    What is found is remembered, and damaged arrays are removed, so ``open_mind`` compiles anew.

    Returns:
        Names of what is not as it was when compiled.

    Raises:
        UserError: If damaged arrays cannot be removed.
    """
    root = Path(root)
    files = [file for split in find_splits(root).values() for file in split]
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


Hashes = dict[SourceFile, str]


def _find(
    root: Path, splits: Mapping[str, SplitFiles], on_bad_line: str
) -> tuple[Path, dict[str, str]] | None:
    """Return the compiled folder of these files and the splits' fingerprints, if there is one."""
    for base in cache_folders(root):
        hashes = _known_hashes(root, base, splits)
        if hashes is not None:
            name, fingerprints = _name(splits, hashes)
            for folder in (base / name, base / f"{name}{DROPPED}"):
                if (on_bad_line == "drop" or folder.name == name) and is_intact(folder):
                    return folder, fingerprints
    return None


def _name(splits: Mapping[str, SplitFiles], hashes: Hashes) -> tuple[str, dict[str, str]]:
    fingerprints = {
        split: digest(hashes[files.news], hashes[files.behaviors])
        for split, files in splits.items()
    }
    return f"mind-{digest(FORMAT, fingerprints)}", fingerprints


def _compile(
    root: Path, base: Path, splits: Mapping[str, SplitFiles], on_bad_line: str
) -> tuple[Path, dict[str, str]]:
    files = [file for split in splits.values() for file in split]
    before = {file: _stamp(file) for file in files}
    with building(base) as folder:
        hashes, num_bad = compile_mind(splits, folder, on_bad_line)
        for file in files:
            if _stamp(file) != before[file]:
                raise UserError(f"{file} changed while it was read. Run again once it is whole.")
        name, fingerprints = _name(splits, hashes)
        target = base / (name + DROPPED if num_bad else name)
        index = _read_index(base)
        for file in files:
            index[_key(root, file)] = [*before[file], hashes[file]]
        write_text(base / INDEX, json.dumps(index, indent=1))
        seal(folder, target)
    return target, fingerprints


def _known_hashes(root: Path, base: Path, splits: Mapping[str, SplitFiles]) -> Hashes | None:
    """Return the files' SHA-256, hashing only those that look changed.

    None if a file is new, or its size another: compiling it hashes it, too.
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
        with contextlib.suppress(OSError):  # a read-only folder: hash again next time
            write_text(base / INDEX, json.dumps(fresh, indent=1))
    return hashes


def _key(root: Path, file: SourceFile) -> str:
    """Name a file as seen from the root, so that a moved folder keeps its arrays."""
    name = file.path.relative_to(root).as_posix()
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


def _read_table(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _load(root: Path, cache: Path, fingerprints: Mapping[str, str]) -> MindData:
    meta: dict[str, Any] = json.loads((cache / "meta.json").read_text(encoding="utf-8"))
    arrays = {name: np.load(cache / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    splits = {}
    end = 0
    for name, counts in meta["counts"].items():
        begin, end = end, end + counts["impressions"]
        splits[name] = split_of(arrays, name, begin, end, counts, fingerprints[name])
    news = _read_table(cache / "news.arrow")
    users = _read_table(cache / "users.arrow")["user_id"].combine_chunks()
    return MindData(root, cache, news, users, splits, meta["bad_lines"], meta["cut_off"], arrays)


def split_of(
    arrays: Mapping[str, NDArray],
    name: str,
    begin: int,
    end: int,
    counts: dict[str, int],
    fingerprint: str,
) -> Split:
    """Return the split of the impressions ``begin`` to ``end`` of the arrays."""
    rows = slice(begin, end)
    offsets = arrays["candidate_offsets"][begin : end + 1]
    shown = slice(offsets[0], offsets[-1])
    return Split(
        name=name,
        impression_id=arrays["impression_id"][rows],
        user=arrays["user"][rows],
        time=arrays["time"][rows],
        history=arrays["history"][rows],
        histories=Ragged(arrays["history_values"], arrays["history_offsets"]),
        candidates=Ragged(arrays["candidate_values"][shown], offsets - offsets[0]),
        labels=arrays["labels"][shown] if "clicks" in counts else None,
        counts=counts,
        fingerprint=fingerprint,
    )
