"""The two files of each split of MIND: their names, their columns, and where they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from newsrec.data.readers.folders import find_places, is_ours, one_each, within
from newsrec.data.readers.source import SourceFile
from newsrec.data.readers.zips import members_of
from newsrec.errors import DataError

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
WHERE_FROM = (
    "`python -m newsrec download small --accept-license` fetches MIND (data/README.md shows the "
    "layout), `python -m newsrec simulate --output DIR` writes a simulated one. Then set "
    "--data.root."
)


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
    return find_places(root, lambda place: SplitFiles(*files_in(place)), WHERE_FROM)


def files_in(
    place: Path, names: Sequence[str] = NAMES, where_from: str = WHERE_FROM
) -> list[SourceFile]:
    """Return the file of each name in a split's folder or zip; refuse missing or several files."""
    if not place.is_dir():
        return _in_zip(place, names, where_from)
    inner = within(place)
    files = {name: [SourceFile(f / name) for f in inner if (f / name).is_file()] for name in names}
    return one_each(place, files, where_from)


def _in_zip(path: Path, names: Sequence[str], where_from: str) -> list[SourceFile]:
    files: dict[str, list[SourceFile]] = {name: [] for name in names}
    for member in members_of(path):
        parts = member.filename.split("/")
        if parts[-1] in files and all(map(is_ours, parts)):
            if member.flag_bits & 1:
                raise DataError(f"{path} is encrypted. Unpack it into {path.with_suffix('')}.")
            files[parts[-1]].append(SourceFile(path, member.filename))
    return one_each(path, files, where_from)
