"""The Parquet files of each split: their names, and where they are."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

from newsrec.data.readers.folders import find_places, is_ours, one_each, places_of, within
from newsrec.data.readers.source import SPLITS, SourceFile
from newsrec.data.readers.zips import members_of
from newsrec.errors import DataError, UserError

NEWS, IMPRESSIONS, CLICKS = "news.parquet", "impressions.parquet", "clicks.parquet"
SAMPLING = "sampling.json"
NAMES = (NEWS, IMPRESSIONS, CLICKS)
TSV_NAMES = ("news.tsv", "behaviors.tsv")
LOOKED_AT = 200
WHERE_FROM = (
    "docs/data.md shows the columns, and how pandas, polars, DuckDB and Spark write them; "
    "`python -m newsrec simulate --format parquet --output DIR` writes an example. Then set "
    "--data.root."
)


def has_parquet(root: Path) -> bool:
    """Return whether a split has Parquet files as ours, or there are some and none of MIND's."""
    places = [place for split in SPLITS for place in places_of(root, split)]
    names = {name for place in places for name in _names_in(place)}
    if names & set(NAMES):
        return True
    if names & set(TSV_NAMES) or any(place.is_file() for place in places):
        return False
    near = {path.suffix for path in _near(root)}
    return ".parquet" in near and not near & {".tsv", ".zip"}


def find_splits(root: Path) -> dict[str, tuple[SourceFile, ...]]:
    """Find the files of each split; a table may be a folder of files.

    A split with clicks also gets the clicks of the splits before it, since they are part of its
    histories, and ``sampling.json`` if the root has it.

    Raises:
        DataError: If there is no split, a split is incomplete, or formats are mixed.
    """
    found = find_places(root, _in_place, WHERE_FROM)
    sampling = [SourceFile(root / SAMPLING)] if (root / SAMPLING).is_file() else []
    splits: dict[str, tuple[SourceFile, ...]] = {}
    clicks: list[SourceFile] = []
    for split, (news, shown) in found.items():
        own = _parts(shown)
        splits[split] = (*_parts(news), *own)
        if shown.name == CLICKS:
            before = [name for name in list(splits)[:-1] if found[name][1].name == IMPRESSIONS]
            if before:
                raise DataError(
                    f"{shown}: histories are made from the clicks of the splits before, too, and "
                    f"{before[0]} has {IMPRESSIONS}. Write all splits up to {split} the same way."
                )
            splits[split] += (*clicks, *sampling)
            clicks += own
    return splits


def part_of(files: tuple[SourceFile, ...], name: str) -> list[tuple[list[SourceFile], SourceFile]]:
    """Return the tables of one name among a split's files.

    Returns:
        The files of each table and the file or folder that messages name, the split's own first.
    """
    tables: dict[Path, list[SourceFile]] = {}
    for file in files:
        for path in (file.path, *file.path.parents):
            if path.name == name:
                tables.setdefault(path, []).append(file)
                break
    return [(parts, SourceFile(path)) for path, parts in tables.items()]


def _in_place(place: Path) -> tuple[Path, Path]:
    """Return a split's table of news, and that of impressions or clicks."""
    if place.is_file():
        raise DataError(
            f"{place} is a zip, and Parquet is read unpacked only. Unpack it: "
            f"`unzip {place} -d {place.with_suffix('')}`."
        )
    inner = [folder for folder in within(place) if folder.suffix != ".parquet"]
    tsv = [folder / name for folder in inner for name in TSV_NAMES if (folder / name).is_file()]
    files = {name: [SourceFile(f / name) for f in inner if (f / name).exists()] for name in NAMES}
    if tsv:
        has = " and ".join(str(file) for found in files.values() for file in found)
        if has:
            raise DataError(f"{place} has {tsv[0].name} and {has}. Keep one format there.")
        raise DataError(
            f"{tsv[0]} is in MIND's format, and other splits are Parquet. A data folder has one "
            "format: write this split as Parquet, too (docs/data.md shows how), or put it into a "
            "folder of its own."
        )
    if files[IMPRESSIONS] and files[CLICKS]:
        raise DataError(
            f"{place} has {IMPRESSIONS} and {CLICKS}. Keep {IMPRESSIONS} if users were shown those "
            f"candidates, or {CLICKS} to have candidates drawn."
        )
    del files[IMPRESSIONS if files[CLICKS] else CLICKS]
    news, shown = one_each(place, files, WHERE_FROM)
    return news.path, shown.path


def _parts(table: Path) -> list[SourceFile]:
    """Return the files of a table, which is a file or a folder of files."""
    if table.is_file():
        return [SourceFile(table)]
    parts = sorted(
        path
        for path in table.rglob("*.parquet")
        if path.is_file()
        and not any(name.startswith(("_", ".")) for name in path.relative_to(table).parts)
    )
    if not parts:
        raise DataError(f"{table} is a folder without a .parquet file. Write the table again.")
    return [SourceFile(path) for path in parts]


def _near(root: Path) -> Iterator[Path]:
    """Yield what lies in a data folder, in its folders, and in theirs."""
    folders = [root]
    for _ in range(3):
        entries = [entry for folder in folders for entry in _entries(folder)]
        yield from entries
        folders = [entry for entry in entries if entry.suffix != ".parquet"][:LOOKED_AT]


def _entries(folder: Path) -> list[Path]:
    """Return some of what lies in a folder; nothing if it is no folder or cannot be read."""
    with contextlib.suppress(OSError):
        if folder.is_dir():
            return [e for e in itertools.islice(folder.iterdir(), LOOKED_AT) if is_ours(e.name)]
    return []


def _names_in(place: Path) -> list[str]:
    """Return the names of a split's files that its folder or zip has, without folders."""
    try:
        if place.is_dir():
            names = (*NAMES, *TSV_NAMES)
            return [n for folder in within(place) for n in names if (folder / n).exists()]
        return [member.filename.rpartition("/")[2] for member in members_of(place)]
    except (UserError, OSError):  # MIND's reader says what is wrong
        return []
