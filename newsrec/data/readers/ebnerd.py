"""Reads EB-NeRD: articles for all splits, and behaviors and histories of each.

Columns that are known only after an impression, ``newsrec.data.fields.FROM_THE_FUTURE``, are never
read. ``docs/data.md`` says what is read.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from secrets import token_hex
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS, UNKNOWN_NEWS
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.readers import parquet_checks as checks
from newsrec.data.readers.annotations import EBNERD
from newsrec.data.readers.base import LISTED, BadLine, Divided, Impressions, Pass, Rows, ignore
from newsrec.data.readers.ebnerd_files import BEHAVIORS, HISTORY, find_splits, has_ebnerd
from newsrec.data.readers.parquet import read_news_table
from newsrec.data.readers.parquet_columns import Lists, Lookup, as_bools, as_seconds, as_text, shown
from newsrec.data.readers.parquet_impressions import require_candidates, require_times
from newsrec.data.readers.parquet_parts import Span, divide, keep
from newsrec.data.readers.parquet_table import ParquetTable
from newsrec.data.readers.source import SourceFile

NEWS_COLUMNS = {
    "news_id": "article_id",
    "category": "category_str",
    "title": "title",
    "abstract": "subtitle",
}
"""Column of each field of a news item."""
BEHAVIORS_REQUIRED = {
    "impression_id": checks.a_number,
    "user_id": checks.a_number,
    "impression_time": checks.a_time,
    "article_ids_inview": checks.numbers,
}
BEHAVIORS_OPTIONAL = {"article_ids_clicked": checks.numbers, "is_beyond_accuracy": checks.a_flag}
HISTORY_REQUIRED = {"user_id": checks.a_number, "article_id_fixed": checks.numbers}
SHOWN, CLICKED, FLAG = "article_ids_inview", "article_ids_clicked", "is_beyond_accuracy"


class EbnerdReader:
    """Reads EB-NeRD; see ``newsrec.data.readers.base.Reader``."""

    name = "ebnerd"
    version = 1
    file_names = f"{BEHAVIORS} and {HISTORY}"
    submission = "predictions.txt"

    def recognizes(self, root: Path) -> bool:
        """Return whether a folder has files named as EB-NeRD's."""
        return has_ebnerd(root)

    def find_splits(self, root: Path) -> dict[str, tuple[SourceFile, ...]]:
        """Return articles, behaviors and history of each split; ``validation`` is dev."""
        return find_splits(root)

    def news(
        self, files: tuple[SourceFile, ...], on_read: Callable[[int], None] = ignore
    ) -> tuple[Pass, Iterator[Rows]]:
        """Read ``articles.parquet``, which all splits of a download share."""
        return read_news_table([files[0]], files[0], on_read, NEWS_COLUMNS, EBNERD)

    def impressions(
        self,
        files: tuple[SourceFile, ...],
        ids: pa.Array,
        on_read: Callable[[int], None] = ignore,
    ) -> tuple[Pass, Iterator[Impressions]]:
        """Read a split's ``behaviors.parquet``, joined with its ``history.parquet`` by user."""
        behaviors, history = _tables(files, on_read)
        behaviors.settings = [files[2]]

        def blocks() -> Iterator[Impressions]:
            yield from _join(_read_histories(history, ids), behaviors, ids)

        return behaviors, blocks()

    def divide(self, files: tuple[SourceFile, ...], most_bytes: int) -> Divided | str:
        """Divide a split's ``behaviors.parquet`` between row groups.

        Each process reads all histories, once for all its parts.
        """
        behaviors, _ = _tables(files)
        spans, key = divide(behaviors, most_bytes), token_hex()
        return Divided(behaviors, [_Part(files, span, key) for span in spans])


class _Part(NamedTuple):
    """Some rows of ``behaviors.parquet``; see ``newsrec.data.readers.base.Part``."""

    files: tuple[SourceFile, ...]
    span: Span
    key: str
    """The same for all parts of a split, which share its histories in a process."""

    @property
    def num_bytes(self) -> int:
        """About how many bytes of the file these rows are."""
        return self.span.num_bytes

    def read(self, ids: pa.Array) -> tuple[Pass, Iterator[Impressions]]:
        """Read these rows; the first part also reports on the histories."""
        behaviors = self.span.open(BEHAVIORS_REQUIRED, BEHAVIORS_OPTIONAL)
        first = not self.span.first_row
        behaviors.settings = [self.files[2]] if first else []

        def blocks() -> Iterator[Impressions]:
            _, history = _tables(self.files)
            histories = keep(self.key, lambda: _read_histories(history, ids))
            if not first:
                histories = histories._replace(bad=[], num_bad=0)
            yield from _join(histories, behaviors, ids)

        return behaviors, blocks()


def _tables(
    files: tuple[SourceFile, ...], on_read: Callable[[int], None] = ignore
) -> tuple[ParquetTable, ParquetTable]:
    """Return a split's behaviors and histories, unread."""
    return (
        ParquetTable([files[1]], files[1], BEHAVIORS_REQUIRED, BEHAVIORS_OPTIONAL, on_read),
        ParquetTable([files[2]], files[2], HISTORY_REQUIRED, {}, on_read),
    )


def _join(histories: "_Histories", behaviors: ParquetTable, ids: pa.Array) -> Iterator[Impressions]:
    """Yield the impressions of ``behaviors`` with the histories of their users."""
    parser = _Parser(histories, ids, CLICKED in behaviors.columns)
    bad, num_bad = histories.bad, histories.num_bad
    for block in behaviors.map(parser.parse):
        rows = block.rows
        if num_bad:  # reported once, with the first block
            rows = rows._replace(bad=bad + rows.bad, num_bad=num_bad + rows.num_bad)
        yield block._replace(rows=rows)
        num_bad = 0


class _Histories(NamedTuple):
    """The histories of a split's users."""

    user: NDArray[np.int64]
    """Ids of the users, ascending, and a last one that no user has ``[users + 1]``."""
    row: NDArray[np.int64]
    """Row of ``clicks`` of each user ``[users + 1]``."""
    clicks: Ragged
    """Catalogue rows, oldest first, without unknown news; the last row is empty."""
    unknown: NDArray[np.int64]
    """Number of unknown news of each row ``[users + 1]``."""
    bad: list[BadLine]
    num_bad: int

    def of(self, users: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the row of each user, and which users have a history ``[users]``."""
        place = np.searchsorted(self.user, users)
        found = self.user[place] == users
        return self.row[np.where(found, place, -1)], found


def _read_histories(table: ParquetTable, ids: pa.Array) -> _Histories:
    """Read all histories of a split: they take four bytes a click."""
    lookup = Lookup(ids)

    def parse(rows: Rows) -> tuple[Rows, NDArray[np.int64], Ragged, NDArray[np.int64]]:
        rows = _require_users(rows)
        lists = Lists.of(rows.column("article_id_fixed"))
        news = lookup.find(lists.values)
        unknown = np.diff(to_offsets(news == UNKNOWN_NEWS)[lists.offsets])
        known = Ragged(news, lists.offsets).select(news >= FIRST_NEWS)
        return rows, _whole(rows.column("user_id")), known, unknown

    parts = list(table.map(parse))
    users = np.concatenate([part[1] for part in parts])
    lines = np.concatenate([part[0].lines for part in parts])
    lengths = np.concatenate([part[2].lengths for part in parts] + [np.zeros(1, np.int64)])
    order = np.argsort(users, kind="stable")
    users = users[order]
    again = np.flatnonzero(users[1:] == users[:-1]) + 1
    bad = [line for part in parts for line in part[0].bad]
    bad += [
        BadLine(int(lines[order[i]]), "user_id", "an earlier row has this user", str(users[i]))
        for i in again[:LISTED].tolist()
    ]
    return _Histories(
        np.append(np.delete(users, again), np.iinfo(np.int64).max),
        np.append(np.delete(order, again), len(lengths) - 1),
        Ragged(np.concatenate([part[2].values for part in parts]), to_offsets(lengths)),
        np.concatenate([part[3] for part in parts] + [np.zeros(1, np.int64)]),
        [line._replace(column=f"{line.column} of {HISTORY}") for line in bad],
        len(again) + sum(part[0].num_bad for part in parts),
    )


class _Parser:
    """Turns rows of ``behaviors.parquet`` into arrays.

    Args:
        histories: Histories of the split's users.
        ids: News ids of the real news.
        labelled: Whether the split has a column of clicks.
    """

    def __init__(self, histories: _Histories, ids: pa.Array, labelled: bool) -> None:
        self.histories = histories
        self.lookup = Lookup(ids)
        self.labelled = labelled

    def parse(self, rows: Rows) -> Impressions:
        """Return the rows that can be read as arrays; bad rows are listed in ``rows``."""
        good = as_bools(pc.fill_null(pc.greater_equal(rows.column("impression_id"), 0), False))
        rows = rows.require(good, "impression_id", "null or negative", shown(rows, "impression_id"))
        rows = _require_users(rows)
        rows = require_times(rows, "impression_time")
        if FLAG in rows.table.column_names:
            flagged = as_bools(pc.fill_null(rows.column(FLAG).cast(pa.bool_()), False))
            good = flagged == (_whole(rows.column("impression_id")) == 0)
            problem = "true goes with impression_id 0, and no other value does"
            rows = rows.require(good, FLAG, problem, shown(rows, FLAG))
        rows, lists, candidates = require_candidates(rows, SHOWN, self.lookup)
        beyond = _whole(rows.column("impression_id")) == 0
        labels, not_shown = None, 0
        if self.labelled:
            clicked = rows.column(CLICKED)
            good = as_bools(clicked.is_valid()) | beyond
            if not good.all():
                return self.parse(
                    rows.require(
                        good, CLICKED, "null; leave the column out of a split without clicks"
                    )
                )
            labels, not_shown = _labels(lists, Lists.of(clicked))
            labels[np.repeat(beyond, lists.lengths)] = 0
        row, found = self.histories.of(_whole(rows.column("user_id")))
        more = {
            "beyond_accuracy": int(beyond.sum()),
            "clicks_not_shown": not_shown,
            "users_without_history": int((~found).sum()),
        }
        encoded = rows.column("user_id").dictionary_encode()
        return Impressions(
            rows,
            _whole(rows.column("impression_id")),
            as_seconds(rows.column("impression_time"))[0],
            pa.DictionaryArray.from_arrays(encoded.indices, as_text(encoded.dictionary)),
            self.histories.clicks.take(row),
            int(self.histories.unknown[row].sum()),
            candidates,
            labels,
            {name: number for name, number in more.items() if number},
        )


def _labels(shown: Lists, clicked: Lists) -> tuple[NDArray[np.int8], int]:
    """Return which candidates were clicked, and how many clicks are on other news."""
    values = pa.concat_arrays(
        [lists.values.cast(pa.int64(), safe=False) for lists in (shown, clicked)]
    )
    code: NDArray[np.int64] = values.dictionary_encode("encode").indices.to_numpy().astype(np.int64)
    owner = [np.repeat(np.arange(len(lists.lengths)), lists.lengths) for lists in (shown, clicked)]
    pairs = (np.concatenate(owner) << 32) + code
    candidates, clicks = pairs[: len(shown.values)], np.unique(pairs[len(shown.values) :])
    # np.isin would sort all candidates, which takes longer than all the rest.
    place = np.searchsorted(clicks, candidates)
    clicks = np.append(clicks, -1)  # no pair is -1
    label = clicks[place] == candidates
    was_shown = np.zeros(len(clicks), bool)
    was_shown[place[label]] = True
    return label.astype(np.int8), len(clicks) - 1 - int(was_shown.sum())


def _require_users(rows: Rows) -> Rows:
    good = as_bools(rows.column("user_id").is_valid())
    return rows.require(good, "user_id", "null")


def _whole(numbers: pa.Array) -> NDArray[np.int64]:
    """Return whole numbers without nulls ``[rows]``."""
    found: NDArray[np.int64] = numbers.cast(pa.int64(), safe=False).to_numpy()
    return found
