"""The two files of each split of MIND: their names, their columns, and where they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from newsrec.data.readers.near_names import instead_of, misnamed, similar_file
from newsrec.data.readers.source import SPLITS, SourceFile
from newsrec.data.readers.zips import members_of
from newsrec.errors import UserError
from newsrec.places import looked_for

NAMES = ("news.tsv", "behaviors.tsv")
NEWS_COLUMNS = (
    "news_id",
    "category",
    "subcategory",
    "title",
    "abstract",
    "url",
    "title_entities",
    "abstract_entities",
)
BEHAVIORS_COLUMNS = ("impression_id", "user_id", "time", "history", "candidates")


class SplitFiles(NamedTuple):
    """A split's files."""

    news: SourceFile
    behaviors: SourceFile


def find_splits(root: Path) -> dict[str, SplitFiles]:
    """Find each split under ``root``: ``train/``, ``MIND*_train/`` or ``MIND*_train.zip``.

    The files may be in an inner folder, on disk and in a zip. If there are both a folder and a zip,
    the folder is read, since it was probably unpacked from the zip. No split, an incomplete one and
    two places of one split are refused.
    """
    if not root.is_dir():
        hint = instead_of(root) if root.exists() else looked_for(root)
        raise UserError(" ".join(filter(None, [f"{root} is not a folder.", hint, _where_from()])))
    found = {}
    for split in SPLITS:
        names = [root / split, *sorted(root.glob(f"MIND*_{split}"))]
        zips = [root / f"{split}.zip", *sorted(root.glob(f"MIND*_{split}.zip"))]
        places = [p for p in names if p.is_dir()] or [p for p in zips if p.is_file()]
        if len(places) > 1:
            raise UserError(
                f"{root} has {' and '.join(p.name for p in places)}: which is {split}? "
                "Keep one of them there."
            )
        for place in places:
            found[split] = _in_folder(place) if place.is_dir() else _in_zip(place)
    steps = misnamed(root, found)
    if steps is not None:
        raise UserError(f"{root} has a split under a name that is not read. Correct it: {steps}.")
    if not found:
        raise UserError(
            f"{root} has no split: none of the folders {', '.join(SPLITS)}, and no MIND*_train.zip "
            f"or the like. {instead_of(root) or _where_from()}"
        )
    return found


def _in_folder(folder: Path) -> SplitFiles:
    inner = [folder, *(f for f in sorted(folder.iterdir()) if f.is_dir() and _is_ours(f.name))]
    files = {name: [SourceFile(f / name) for f in inner if (f / name).is_file()] for name in NAMES}
    return _one_each(folder, files)


def _in_zip(path: Path) -> SplitFiles:
    files: dict[str, list[SourceFile]] = {name: [] for name in NAMES}
    for member in members_of(path):
        parts = member.filename.split("/")
        if parts[-1] in files and all(map(_is_ours, parts)):
            if member.flag_bits & 1:
                raise UserError(f"{path} is encrypted. Unpack it into {path.with_suffix('')}.")
            files[parts[-1]].append(SourceFile(path, member.filename))
    return _one_each(path, files)


def _is_ours(name: str) -> bool:
    """Return whether a name is not one that archivers and file managers add."""
    return not name.startswith((".", "__MACOSX"))


def _one_each(place: Path, files: Mapping[str, list[SourceFile]]) -> SplitFiles:
    missing = [name for name in NAMES if not files[name]]
    if missing:
        near = similar_file(place, missing[0]) if place.is_dir() else None
        raise UserError(f"{place} has no {' or '.join(missing)}. {near or _where_from()}")
    for found in files.values():
        if len(found) > 1:
            raise UserError(
                f"{place} has {' and '.join(str(f) for f in found)}. Keep one of them there."
            )
    return SplitFiles(*(files[name][0] for name in NAMES))


def _where_from() -> str:
    return (
        "`python -m newsrec download small --accept-license` fetches MIND (data/README.md shows "
        "the layout), `python -m newsrec simulate --output DIR` writes a simulated one. "
        "Then set --data.root."
    )
