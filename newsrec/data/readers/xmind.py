"""Reads xMIND: MIND's impressions with news translated into other languages.

``ROOT`` has MIND's splits and a folder for each language, such as ``swh/xMINDsmall_train/``. With
several languages, each news item has the text of one language, drawn by its id. If the data folder
is ``ROOT/swh``, only Swahili is read. ``docs/data.md`` describes the layout.
"""

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from newsrec.data.readers.base import NEWS_TABLE, Divided, Impressions, Pass, Rows, ignore
from newsrec.data.readers.folders import places_of
from newsrec.data.readers.mind import MindReader
from newsrec.data.readers.mind_files import NAMES, files_in, find_splits
from newsrec.data.readers.news import distinct, merge_news
from newsrec.data.readers.parquet_columns import as_bools
from newsrec.data.readers.source import SPLITS, SourceFile, hash_source
from newsrec.data.readers.tsv import LONGEST_LINE, TsvFile
from newsrec.errors import UserError

log = logging.getLogger(__name__)

LANGUAGES = {
    "swh": "Swahili", "som": "Somali", "cmn": "Mandarin", "jpn": "Japanese", "tur": "Turkish",
    "tam": "Tamil", "vie": "Vietnamese", "tha": "Thai", "ron": "Romanian", "fin": "Finnish",
    "kat": "Georgian", "hat": "Haitian Creole", "ind": "Indonesian", "grn": "Guarani",
}  # fmt: skip
"""Name of the folder of each language, also in capital letters, and the language."""
ENGLISH = "eng"
COLUMNS = ("news_id", "title", "abstract")
SETTINGS = "languages.json"
FIRST_LINES = 20
"""Lines of a file that tell its columns."""
WHERE_FROM = "https://github.com/andreeaiana/xMIND has the translations; docs/data.md the layout."


class _Layout(NamedTuple):
    """Where a data folder has its parts."""

    mind: Path
    """The folder of MIND's splits."""
    languages: dict[str, Path]
    """Folder of each language, by its code in small letters."""
    settings: Path
    """File that chooses languages; it may be absent."""


class XmindReader:
    """Reads xMIND; see ``newsrec.data.readers.base.Reader``."""

    name = "xmind"
    version = 0
    file_names = " and ".join(NAMES)
    submission = "prediction.txt"

    def recognizes(self, root: Path) -> bool:
        """Return whether a folder has languages, is that of one, or has news of three columns."""
        return bool(_layout(root).languages) or _has_three_columns(root)

    def find_splits(self, root: Path) -> dict[str, tuple[SourceFile, ...]]:
        """Return MIND's two files of each split, the split's translations, and any settings."""
        layout = _layout(root)
        folders = layout.languages
        settings = [SourceFile(layout.settings)] if layout.settings.is_file() else []
        chosen = read_mix(settings).languages or tuple(folders)
        missing = [name for name in chosen if name not in (*folders, ENGLISH)]
        if missing:
            raise UserError(
                f"{layout.settings} names {missing[0]!r}, and {root} has no such folder, only "
                f"{', '.join(folders)}. {WHERE_FROM}"
            )
        used = [folders[name] for name in chosen if name in folders]
        return {
            split: (
                *files,
                *(_translation(folder, split, files.news) for folder in used),
                *settings,
            )
            for split, files in find_splits(layout.mind).items()
        }

    def news(
        self, files: tuple[SourceFile, ...], on_read: Callable[[int], None] = ignore
    ) -> tuple[Pass, Iterator[Rows]]:
        """Read MIND's ``news.tsv`` with titles and abstracts in other languages."""
        if _begins_with_three_columns(files[0]):
            file = TsvFile(files[0], COLUMNS, on_read=on_read)
            return file, file.map(_with_all_columns)
        settings = [file for file in files if file.path.name == SETTINGS]
        tables = [TsvFile(f, COLUMNS, on_read=on_read) for f in files[2:] if f not in settings]
        mind, blocks = MindReader().news(files, on_read)
        done = _Translated(mind, tables, settings)
        return done, done.translate(blocks)

    def impressions(
        self,
        files: tuple[SourceFile, ...],
        ids: pa.Array,
        on_read: Callable[[int], None] = ignore,
    ) -> tuple[Pass, Iterator[Impressions]]:
        """Read MIND's ``behaviors.tsv``."""
        return MindReader().impressions(files, ids, on_read)

    def divide(self, files: tuple[SourceFile, ...], most_bytes: int) -> Divided | str:
        """Divide MIND's ``behaviors.tsv``."""
        return MindReader().divide(files, most_bytes)


class Mix(NamedTuple):
    """Which languages are used; ``ROOT/languages.json`` may set other values."""

    languages: tuple[str, ...] = ()
    """Codes; if empty, all languages that have a folder. ``eng`` is MIND's own text."""
    seed: int = 0


def read_mix(files: Sequence[SourceFile]) -> Mix:
    """Return what the settings say; the default values if there is no file.

    Raises:
        UserError: If the file is not JSON, or has an unknown name or a wrong value.
    """
    if not files:
        return Mix()
    path = files[0].path
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        mix = Mix(**given)
        codes = tuple(str(code).lower() for code in mix.languages)
        known = all(code in LANGUAGES or code == ENGLISH for code in codes)
        assert known
        assert len({*codes}) == len(codes)
        assert isinstance(mix.languages, list)
        assert type(mix.seed) is int
        assert mix.seed >= 0
    except (ValueError, TypeError, AssertionError, RecursionError):
        raise UserError(
            f'{path} is not JSON such as {{"languages": ["swh", "eng"], "seed": 0}}, each language '
            f"once, of {', '.join([*LANGUAGES, ENGLISH])}. Correct it."
        ) from None
    return Mix(codes, mix.seed)


def draw_languages(ids: Sequence[str], num_languages: int, seed: int) -> NDArray[np.int64]:
    """Return the number of the language of each news item; it depends on id and seed ``[news]``."""
    return np.array(
        [zlib.crc32(f"{seed} {news_id}".encode()) % num_languages for news_id in ids], np.int64
    )


class _Translated:
    """Reading of MIND's news with its translations; see ``newsrec.data.readers.base.Pass``.

    Args:
        mind: MIND's own news.
        tables: Translations, in the order of the languages; English has none.
        settings: The file that chooses languages, if there is one.
    """

    def __init__(self, mind: Pass, tables: list[TsvFile], settings: list[SourceFile]) -> None:
        self.mind, self.tables, self.settings = mind, tables, settings
        self.file, self.unit, self.advice = mind.file, mind.unit, mind.advice
        self.cut_off = False

    @property
    def hashes(self) -> dict[SourceFile, str]:
        """SHA-256 of every file that was read."""
        found = {file: hash_source(file) for file in self.settings}
        for table in (self.mind, *self.tables):
            found |= table.hashes
        return found

    def translate(self, blocks: Iterator[Rows]) -> Iterator[Rows]:
        """Yield MIND's news with the texts of the language that is drawn for each."""
        mix = read_mix(self.settings)
        languages = mix.languages or ("",) * len(self.tables)
        waiting = iter(self.tables)
        texts = [None if name == ENGLISH else _read(next(waiting)) for name in languages]
        wrong = [(t.file, rows) for t, rows in zip(self.tables, filter(None, texts), strict=True)]
        wrong = [(file, rows) for file, rows in wrong if rows.num_bad]
        lacking = 0
        for rows in blocks:
            ids = rows.column("news_id")
            drawn = draw_languages(ids.to_pylist(), len(texts), mix.seed)
            table = rows.table
            for number, translated in enumerate(texts):
                if translated is not None:
                    here = pa.array(drawn == number)
                    place = pc.index_in(ids, translated.column("news_id"))
                    lacking += int(pc.sum(pc.and_(here, place.is_null())).as_py() or 0)
                    table = _replaced(table, translated.table.take(pc.if_else(here, place, None)))
            rows = rows._replace(table=table)
            for file, other in wrong:  # reported once, with the first block
                self.file = file
                rows = rows._replace(bad=other.bad + rows.bad, num_bad=other.num_bad + rows.num_bad)
            wrong = []
            yield rows
        self.cut_off = any(table.cut_off for table in (self.mind, *self.tables))
        if lacking:
            log.warning(
                "%s: %s news items have no translation; their English text is kept",
                self.mind.file,
                f"{lacking:,}",
            )


def _read(file: TsvFile) -> Rows:
    """Read a whole translation, without repeated news and without a header line."""
    rows = merge_news(file.map(_with_all_columns))
    return rows._replace(table=distinct(rows.table))


def _with_all_columns(rows: Rows) -> Rows:
    """Return news of three columns with all columns; a header line is left out."""
    ids = rows.column("news_id")
    kept = pc.invert(pc.is_in(ids, pa.array(["nid", "news_id"])))
    rows = rows._replace(table=rows.table.filter(kept), lines=rows.lines[as_bools(kept)])
    good = pc.match_substring_regex(rows.column("news_id"), "^[^ ]+$")
    rows = rows.require(good, "news_id", "empty or with a space")
    empty = pa.array([""] * rows.num_rows, pa.string())
    columns = {n: rows.column(n) if n in COLUMNS else empty for n in NEWS_TABLE}
    return rows._replace(table=pa.table(columns))


def _replaced(table: pa.Table, texts: pa.Table) -> pa.Table:
    """Return news with the titles and abstracts of ``texts`` where these have a title."""
    for name in COLUMNS[1:]:
        column = pc.coalesce(texts[name], table[name])
        table = table.set_column(table.column_names.index(name), name, column)
    return table


def _layout(root: Path) -> _Layout:
    """Return the parts of a data folder; no languages if it is not xMIND's."""
    here = Path(os.path.abspath(root))
    settings = root / SETTINGS
    if here.name.lower() in LANGUAGES and _has_translation(root):
        above = [root.parent if root.name else here.parent, here.parent.parent]
        mind = next((base for base in above if any(places_of(base, s) for s in SPLITS)), above[0])
        return _Layout(mind, {here.name.lower(): root}, settings)
    folders = [
        f for base in (root, root / "xMIND") if base.is_dir() for f in sorted(base.iterdir())
    ]
    found = {f.name.lower(): f for f in folders if f.name.lower() in LANGUAGES}
    return _Layout(root, {n: f for n, f in found.items() if _has_translation(f)}, settings)


def _has_translation(folder: Path) -> bool:
    return any(places_of(folder, split, "xMIND") for split in SPLITS)


def _translation(folder: Path, split: str, news: SourceFile) -> SourceFile:
    """Return the translation of a split's news; if there are two, that of MIND's size."""
    places = places_of(folder, split, "xMIND")
    if len(places) > 1:  # the download has MIND-small and MIND-large
        places = [place for place in places if place.stem[1:] in str(news.path)] or places
    if len(places) != 1:
        has = " and ".join(place.name for place in places) or f"no xMIND*_{split}"
        raise UserError(f"{folder} has {has}; one folder or zip of {split} is needed. {WHERE_FROM}")
    return files_in(places[0], NAMES[:1], WHERE_FROM)[0]


def _has_three_columns(root: Path) -> bool:
    """Return whether the news of a split have xMIND's columns, in place of MIND's."""
    for split in SPLITS:
        for place in places_of(root, split):
            with contextlib.suppress(UserError, OSError):
                return _begins_with_three_columns(files_in(place, NAMES[:1], WHERE_FROM)[0])
    return False


def _begins_with_three_columns(file: SourceFile) -> bool:
    """Return whether the first lines, at least two, are xMIND's: a single one may be damaged."""
    with file.open() as stream:
        lines = [stream.readline(LONGEST_LINE) for _ in range(FIRST_LINES)]
    fields = [line.split(b"\t") for line in lines if line.strip()]
    return len(fields) > 1 and all(len(f) == len(COLUMNS) and f[0][:1] == b"N" for f in fields)
