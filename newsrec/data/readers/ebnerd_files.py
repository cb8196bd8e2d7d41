"""The files of EB-NeRD: their names, and where they are."""

import contextlib
from pathlib import Path

from newsrec.data.readers.folders import one_each
from newsrec.data.readers.source import SourceFile
from newsrec.errors import UserError
from newsrec.places import looked_for

ARTICLES, BEHAVIORS, HISTORY = "articles.parquet", "behaviors.parquet", "history.parquet"
FOLDERS = {"train": ("train",), "dev": ("validation", "dev"), "test": ("test",)}
"""Names of each split's folder; the first is the publisher's."""
WHERE_FROM = (
    "EB-NeRD is given out at https://recsys.eb.dk after registration (docs/data.md shows the "
    "layout); `python -m newsrec simulate --format ebnerd --output DIR` writes a simulated one. "
    "Then set --data.root."
)


def has_ebnerd(root: Path) -> bool:
    """Return whether a folder has files with EB-NeRD's names, or zips of EB-NeRD, still packed."""
    if any(root.glob("*/news.*")):  # own data or MIND's
        return False
    bases = _bases(root)
    folders = [base / name for base in bases for names in FOLDERS.values() for name in names]
    paths = [*(folder / BEHAVIORS for folder in folders), *(base / ARTICLES for base in bases)]
    for path in paths:
        with contextlib.suppress(PermissionError):  # which the reader of the format will report
            if path.is_file():
                return True
    return any(root.glob("ebnerd*.zip")) and not any(root.glob("MIND*"))


def find_splits(root: Path) -> dict[str, tuple[SourceFile, ...]]:
    """Find each split: ``ROOT/train/`` or, as the zips unpack, ``ROOT/ebnerd_*/train/``.

    Returns:
        The files of each split: articles, behaviors, history. The articles are those beside the
        split's folder, else those in ``ROOT``.

    Raises:
        UserError: If there is no split, or two places have one, or a file is missing.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder. {looked_for(root)} {WHERE_FROM}")
    found = {}
    for split, names in FOLDERS.items():
        folders = [base / name for base in _bases(root) for name in names]
        places = [f for f in folders if (f / BEHAVIORS).is_file() or (f / HISTORY).is_file()]
        if len(places) > 1:
            where = " and ".join(str(place.relative_to(root)) for place in places)
            raise UserError(f"{root} has {where}: which is {split}? Keep one of them there.")
        for place in places:
            beside = [base / ARTICLES for base in (place.parent, root)]
            wanted = {ARTICLES: beside, BEHAVIORS: [place / BEHAVIORS], HISTORY: [place / HISTORY]}
            files = {name: [p for p in paths if p.is_file()][:1] for name, paths in wanted.items()}
            found[split] = tuple(
                one_each(place, {n: [*map(SourceFile, f)] for n, f in files.items()}, WHERE_FROM)
            )
    if not found:
        zips = sorted(root.glob("ebnerd*.zip"))
        step = f"Unpack {zips[0]}: `unzip {zips[0]} -d {zips[0].with_suffix('')}`." if zips else ""
        raise UserError(
            f"{root} has no split: none of the folders train, validation and test with "
            f"{BEHAVIORS} and {HISTORY}. {step or WHERE_FROM}"
        )
    return found


def _bases(root: Path) -> list[Path]:
    """Return the folders in which splits may be: the root, and folders that zips unpack to."""
    found = [root, *sorted(root.glob("ebnerd*")), *sorted(root.glob("ebnerd*/ebnerd*"))]
    return [base for base in found if base.is_dir()]
