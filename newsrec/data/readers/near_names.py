"""Finds files and folders that are almost named as a data folder needs, and how to rename them."""

import difflib
import re
import shlex
from collections.abc import Collection
from pathlib import Path

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation", "eval", "evaluation"), "dev"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names that people give a split, and its name here."""

ARCHIVE = re.compile(r"\.(zip|tar|tgz|tar\.gz|tar\.bz2|tar\.xz|7z|rar)$")
COPY = re.compile(
    r"( ?\(\d+\)|[ _-]copy( \d+)?|[-_]\d|\.\d+|\.(bak|old|orig)|"
    r"[ _-](unzipped|unpacked|extracted))$",
    re.I,
)
"""Suffixes that people, browsers, file managers and wget add to the name of a copy."""
LOOKED_AT = 200
DATA_FILES = {
    *("news.tsv", "behaviors.tsv", "news.parquet", "impressions.parquet", "clicks.parquet"),
    *("behaviors.parquet", "history.parquet"),
}
"""Names of the files of a split, of all formats."""


def misnamed(root: Path, found: Collection[str]) -> str | None:
    """Return the steps that rename what seem to be splits, except copies of ``found``, or None."""
    steps = []
    for entry in sorted(root.iterdir())[:LOOKED_AT]:
        step = None if entry.name.startswith(".") else _mend(entry, found)
        if step is not None:
            steps.append(step)
    return "; ".join(steps) or None


def instead_of(root: Path) -> str | None:
    """Return a hint which folder was meant by a file or a folder without splits, or None."""
    if root.is_file():
        return f"It is a file: name the folder that it is in, --data.root {root.parent}."
    here = {entry.name for entry in root.iterdir()}
    if here & DATA_FILES:
        if root.resolve().name.lower().rpartition("_")[2] in SPLIT_NAMES:
            above = root.parent if root.name else root.resolve().parent
            return f"It is one split itself: name the folder above, --data.root {above}."
        return f"Its files belong to one split: move them, for example into {root / 'train'}."
    for name in sorted(here)[:LOOKED_AT]:
        if not name.startswith(".") and _has_splits(root / name):
            return f"Did you mean --data.root {root / name}?"
    return None


def similar_file(folder: Path, name: str) -> str | None:
    """Return how to make a missing file from another in the folder; None if no file fits."""
    files = sorted(entry.name for entry in folder.iterdir() if entry.is_file())[:LOOKED_AT]
    for packed, command in ((".gz", "gunzip"), (".bz2", "bunzip2"), (".xz", "unxz")):
        if name + packed in files:
            return f"Unpack it: `{command} {shlex.quote(str(folder / (name + packed)))}`."
    if name + ".zip" in files:
        return f"Unpack {folder / (name + '.zip')}."
    zips = [file for file in files if file.lower().endswith(".zip")]
    if len(zips) == 1 and not DATA_FILES & set(files):
        return f"Unpack it: `{shlex.join(['unzip', str(folder / zips[0]), '-d', str(folder)])}`."
    near = difflib.get_close_matches(name, files, n=1, cutoff=0.75)
    return f"Rename it: `{_move(folder / near[0], folder / name)}`." if near else None


def _mend(entry: Path, found: Collection[str]) -> str | None:
    name = entry.name
    packed = None
    if entry.is_file():
        bare = COPY.sub("", name) if not ARCHIVE.search(name.lower()) else name
        packed = ARCHIVE.search(bare.lower())
        if packed is None:
            return None
        name = bare[: packed.start()]
    bare = COPY.sub("", name)
    mind = re.fullmatch(r"(mind\w*?)[-_ ](\w+)", bare, re.I)
    split = SPLIT_NAMES.get((mind[2] if mind else bare).lower())
    if split is None or split in found or (packed is None and not _has_data(entry)):
        return None
    if packed is not None and packed[0] != ".zip":
        return f"unpack {entry} into {entry.parent / split}"
    right = f"MIND{mind[1][4:]}_{split}" if mind else split
    target = entry.with_name(right + (packed[0] if packed else ""))
    return None if target.name == entry.name else f"`{_move(entry, target)}`"


def _has_data(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    names = [entry.name.lower() for entry in folder.iterdir()]
    return any(
        name.startswith(("news", "behav", "mind", "impressions", "clicks")) for name in names
    )


def _has_splits(folder: Path) -> bool:
    return folder.is_dir() and any(
        COPY.sub("", ARCHIVE.sub("", entry.name.lower())).rpartition("_")[2] in SPLIT_NAMES
        for entry in list(folder.iterdir())[:LOOKED_AT]
    )


def _move(source: Path, target: Path) -> str:
    return shlex.join(["mv", str(source), str(target)])
