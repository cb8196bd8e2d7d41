"""Finds the folder or zip of each split in a data folder, for any format."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from newsrec.data.readers.near_names import instead_of, misnamed, similar_file
from newsrec.data.readers.source import SPLITS, SourceFile
from newsrec.errors import DataError, MissingDataError
from newsrec.places import looked_for

Found = TypeVar("Found")


def find_places(root: Path, read: Callable[[Path], Found], where_from: str) -> dict[str, Found]:
    """Find each split under ``root``: ``train/``, ``MIND*_train/`` or ``MIND*_train.zip``.

    If there are both a folder and a zip, the folder is used, since it was probably unpacked from
    the zip.

    Args:
        root: The data folder.
        read: Returns what is kept of the folder or zip of a split.
        where_from: Sentences that say where data comes from, for messages.

    Returns:
        The results of ``read``, in the order of ``SPLITS``.

    Raises:
        MissingDataError: If there is no split.
        DataError: If two places have the same split.
    """
    if not root.is_dir():
        hint = instead_of(root) if root.exists() else looked_for(root)
        raise MissingDataError(
            " ".join(filter(None, [f"{root} is not a folder.", hint, where_from]))
        )
    found = {}
    for split in SPLITS:
        places = places_of(root, split)
        if len(places) > 1:
            raise DataError(
                f"{root} has {' and '.join(p.name for p in places)}: which is {split}? "
                "Keep one of them there."
            )
        for place in places:
            found[split] = read(place)
    steps = misnamed(root, found)
    if steps is not None:
        raise DataError(f"{root} has a split under a name that is not read. Rename it: {steps}.")
    if not found:
        raise MissingDataError(
            f"{root} has no split: none of the folders {', '.join(SPLITS)}, and no MIND*_train.zip "
            f"or the like. {instead_of(root) or where_from}"
        )
    return found


def places_of(root: Path, split: str, prefix: str = "MIND") -> list[Path]:
    """Return the folders of a split, or its zips if there is no folder."""
    names = [root / split, *sorted(root.glob(f"{prefix}*_{split}"))]
    zips = [root / f"{split}.zip", *sorted(root.glob(f"{prefix}*_{split}.zip"))]
    return [p for p in names if p.is_dir()] or [p for p in zips if p.is_file()]


def within(folder: Path) -> list[Path]:
    """Return a split's folder and the folders in it that may hold its files."""
    return [folder, *(f for f in sorted(folder.iterdir()) if f.is_dir() and is_ours(f.name))]


def is_ours(name: str) -> bool:
    """Return whether a name is not one that archivers and file managers add."""
    return not name.startswith((".", "__MACOSX"))


def one_each(
    place: Path, files: Mapping[str, list[SourceFile]], where_from: str
) -> list[SourceFile]:
    """Return the one file of each name.

    Args:
        place: Folder or zip of a split.
        files: The files that were found for each name.
        where_from: Sentences that say where data comes from, for messages.

    Raises:
        MissingDataError: If a name has no file.
        DataError: If it has several.
    """
    missing = [name for name in files if not files[name]]
    if missing:
        near = similar_file(place, missing[0]) if place.is_dir() else None
        raise MissingDataError(f"{place} has no {' or '.join(missing)}. {near or where_from}")
    for found in files.values():
        if len(found) > 1:
            raise DataError(
                f"{place} has {' and '.join(str(f) for f in found)}. Keep one of them there."
            )
    return [found[0] for found in files.values()]
