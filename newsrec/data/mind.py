"""MIND's ``news.tsv`` and ``behaviors.tsv`` as arrays, compiled once and memory-mapped after.

The stories of all splits form one catalogue. Row 0 is padding, row 1 the unknown story, and real
stories start at row 2 in the order in which train, dev and test name them first. A history keeps
only stories that some ``news.tsv`` has; a candidate that none has becomes row 1. Both are counted.

Compiled arrays live in ``ROOT/.newsrec`` under a key made of the files' contents, so that changed
files are compiled anew and old arrays are never read for them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.cache import cache_folder, content_hashes, digest, publish
from newsrec.data.compile import FORMAT, compile_mind
from newsrec.data.ragged import Ragged
from newsrec.errors import UserError

SPLITS = ("train", "dev", "test")


class Split(NamedTuple):
    """The impressions of one split, in the order of its ``behaviors.tsv``."""

    name: str
    """``train``, ``dev`` or ``test``."""
    impression_id: NDArray[np.int64]
    """MIND's number of each impression ``[impressions]``."""
    user: NDArray[np.int32]
    """Row of ``MindData.users`` ``[impressions]``."""
    time: NDArray[np.datetime64]
    """When the impression was shown, in seconds ``[impressions]``."""
    history: NDArray[np.int32]
    """Row of ``histories`` ``[impressions]``."""
    histories: Ragged
    """Distinct histories: catalogue rows, oldest first, unknown stories left out."""
    candidates: Ragged
    """Catalogue rows of each impression's candidates, in the order of the file."""
    labels: NDArray[np.int8] | None
    """1 clicked, 0 skipped ``[candidates]``; None where the split has no labels."""
    counts: dict[str, int]
    """What ``prepare`` reports: impressions, users, unknown ids and so on."""
    fingerprint: str
    """Hash of the split's two files."""


class MindData(NamedTuple):
    """A data folder: one catalogue of stories and the splits that were found."""

    root: Path
    cache: Path
    """Folder for arrays that belong to these very files."""
    news: pa.Table
    """Real stories: news_id, category, subcategory, title, abstract; row ``i`` is catalogue row
    ``i + 2``."""
    users: pa.Array
    """User ids of all splits."""
    splits: dict[str, Split]

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


def find_splits(root: Path) -> dict[str, Path]:
    """Return the folder of each split under ``root``: ``train`` or, as unpacked, ``MIND*_train``.

    Raises:
        UserError: If there is none, one is incomplete or two claim the same split.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder. {_where_from()}")
    found = {}
    for split in SPLITS:
        folders = [f for f in (root / split, *sorted(root.glob(f"MIND*_{split}"))) if f.is_dir()]
        if len(folders) > 1:
            names = " and ".join(f.name for f in folders)
            raise UserError(f"{root} has {names}: which is {split}? Keep one of them there.")
        for folder in folders:
            missing = [n for n in ("news.tsv", "behaviors.tsv") if not (folder / n).is_file()]
            if missing:
                raise UserError(f"{folder} has no {' or '.join(missing)}. {_where_from()}")
            found[split] = folder
    if not found:
        raise UserError(f"{root} has none of the folders {', '.join(SPLITS)}. {_where_from()}")
    return found


def open_mind(root: str | Path) -> MindData:
    """Open a data folder, compiling its files first if that has not been done for these contents.

    Args:
        root: Folder with ``{train,dev,test}/{news,behaviors}.tsv``; any subset of splits.

    Raises:
        UserError: If files are missing or a line cannot be read.
    """
    root = Path(root)
    folders = find_splits(root)
    base = cache_folder(root)
    files = [folder / name for folder in folders.values() for name in ("news.tsv", "behaviors.tsv")]
    hashes = content_hashes(files, base / "files.json")
    fingerprints = {
        split: digest(hashes[folder / "news.tsv"], hashes[folder / "behaviors.tsv"])
        for split, folder in folders.items()
    }
    cache = base / f"mind-{digest(FORMAT, fingerprints)}"
    if not (cache / "meta.json").is_file():
        publish(cache, lambda folder: compile_mind(folders, folder))
    return _load(root, cache, fingerprints)


def _read_table(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _load(root: Path, cache: Path, fingerprints: Mapping[str, str]) -> MindData:
    meta: dict[str, Any] = json.loads((cache / "meta.json").read_text())
    splits = {}
    for name, fingerprint in fingerprints.items():
        arrays = {p.stem: np.load(p, mmap_mode="r") for p in (cache / name).glob("*.npy")}
        splits[name] = Split(
            name=name,
            impression_id=arrays["impression_id"],
            user=arrays["user"],
            time=arrays["time"],
            history=arrays["history"],
            histories=Ragged(arrays["history_values"], arrays["history_offsets"]),
            candidates=Ragged(arrays["candidate_values"], arrays["candidate_offsets"]),
            labels=arrays.get("labels"),
            counts=meta["counts"][name],
            fingerprint=fingerprint,
        )
    news = _read_table(cache / "news.arrow")
    users = _read_table(cache / "users.arrow")["user_id"].combine_chunks()
    return MindData(root, cache, news, users, splits)


def _where_from() -> str:
    return (
        "MIND comes from https://msnews.github.io (data/README.md shows the layout); "
        "`python -m newsrec simulate --output DIR` writes a simulated one. Then set --data.root."
    )
