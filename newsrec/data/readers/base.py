"""The interface that readers of all formats share.

To add a format, write a file in this folder with a class that has the methods of ``Reader``, and
add a line in ``formats.py``. The rest of ``newsrec`` sees only blocks of news and of impressions.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.console import clipped
from newsrec.data import UNKNOWN_NEWS
from newsrec.data.fields import FIELDS
from newsrec.data.ragged import Ragged
from newsrec.data.readers.source import SourceFile

NEWS_TABLE = ("news_id", *FIELDS)
"""Columns of a table of news, all strings."""
LISTED = 10
"""Number of bad lines kept for display; all bad lines are counted."""
CUT_OFF = (
    "its last line has no line end. Unless it was written so, the file was cut off and that line "
    "may be wrong: copy or unpack it again."
)
"""Message about a file whose pass is ``cut_off``."""


class BadLine(NamedTuple):
    """A line, or a row of a table, that cannot be read."""

    line: int
    column: str | None
    problem: str
    text: str

    def __str__(self) -> str:
        return self.in_words("line")

    def in_words(self, unit: str) -> str:
        """Return the place and the problem as text; ``unit`` is ``line`` or ``row``."""
        place = f"{unit} {self.line}, " + (f"column {self.column}: " if self.column else "")
        return f"{place}{self.problem}: {clipped(self.text)!r}"


class Rows(NamedTuple):
    """Some lines as an Arrow table of strings; bad lines are left out and listed."""

    table: pa.Table
    """One row per line."""
    lines: NDArray[np.int64]
    """Number of each line in its file ``[rows]``."""
    bad: list[BadLine]
    """The first bad lines, in any order."""
    num_bad: int
    """Number of all bad lines."""

    @property
    def num_rows(self) -> int:
        """Number of good lines."""
        return len(self.lines)

    def column(self, name: str) -> pa.Array:
        """Return a column ``[rows]``."""
        return self.table[name].combine_chunks()

    def require(
        self,
        good: NDArray[np.bool_] | pa.Array,
        column: str,
        problem: str,
        word: Callable[[int], str] | None = None,
    ) -> "Rows":
        """Return the good rows, and add the others to the bad lines; ``self`` if all are good.

        ``good`` is True for rows that can be read ``[rows]``. ``word`` returns the wrong part of a
        row, by its number; None shows the whole column.
        """
        good = np.asarray(good, dtype=bool)
        wrong = np.flatnonzero(~good)
        if not len(wrong):
            return self
        bad = []
        for row in wrong[:LISTED].tolist():
            text = word(row) if word else str(self.table[column][row].as_py())
            bad.append(BadLine(int(self.lines[row]), column, problem, text))
        return Rows(
            self.table.filter(pa.array(good)),
            self.lines[good],
            self.bad + bad,
            self.num_bad + len(wrong),
        )


class Impressions(NamedTuple):
    """A block of impressions as arrays."""

    rows: Rows
    """The impressions that could be read, and the bad lines."""
    impression_id: NDArray[np.int64]
    time: NDArray[np.datetime64]
    users: pa.DictionaryArray
    histories: Ragged
    """Catalogue rows of the news clicked before, oldest first; unknown news is left out."""
    unknown_history: int
    """Number of unknown news in histories."""
    candidates: Ragged
    """Catalogue rows; ``UNKNOWN_NEWS`` for news that is not in the catalogue."""
    labels: NDArray[np.int8] | None
    """1 clicked, 0 skipped ``[candidates]``; None without labels."""
    more: Mapping[str, int] = MappingProxyType({})
    """Further counts that only some formats have, by name; ``prepare`` reports them."""

    def counts(self) -> dict[str, int]:
        """Return the counts that ``prepare`` reports."""
        counts = count(self.histories.lengths, self.candidates.values, self.labels)
        return counts | dict(self.more) | {"unknown_history_news": self.unknown_history}


def count(
    history_lengths: NDArray[np.int64],
    candidates: NDArray[np.int32],
    labels: NDArray[np.int8] | None,
) -> dict[str, int]:
    """Return the counts of impressions that need only their arrays, not the files.

    Takes the length of each history ``[impressions]``, the candidates' catalogue rows and, if there
    are any, their labels ``[candidates]``.
    """
    counts = {
        "impressions": len(history_lengths),
        "history_news": int(history_lengths.sum()),
        "empty_histories": int((history_lengths == 0).sum()),
        "candidates": len(candidates),
        "unknown_candidates": int((candidates == UNKNOWN_NEWS).sum()),
    }
    return counts if labels is None else counts | {"clicks": int(labels.sum())}


class Pass(Protocol):
    """One reading of a split's files; the attributes are known once all blocks have been read."""

    file: SourceFile
    """The file that messages name."""
    cut_off: bool
    """Whether the last line has no line end; False for formats without lines."""
    unit: str
    """What the file consists of, for messages: ``line`` or ``row``."""
    advice: str
    """What to do about a bad line, for messages."""

    @property
    def hashes(self) -> dict[SourceFile, str]:
        """SHA-256 of every file that was read."""


class Part(Protocol):
    """Successive impressions of a split, which a process reads by itself; it can be pickled."""

    @property
    def num_bytes(self) -> int:
        """About how many bytes of the split's files these impressions are."""

    def read(self, ids: pa.Array) -> tuple[Pass, Iterator[Impressions]]:
        """Read it as ``Reader.impressions`` reads a split; hash only files that begin in it."""


class Divided(NamedTuple):
    """The impressions of a split, divided for several processes."""

    whole: Pass
    """Describes the files for messages; it reads nothing."""
    parts: Sequence[Part]
    """All impressions, in the order of the files."""


def ignore(num_bytes: int) -> None:
    """Do nothing; the default of ``on_read``."""


class Reader(Protocol):
    """Reads datasets of one format."""

    name: str
    """Name of the format; folders of compiled arrays begin with it."""
    version: int
    """0 at first; increase it when the reader reads more, so that folders are compiled again."""
    file_names: str
    """Names of a split's files, for messages."""
    submission: str
    """Name of the text file that the leaderboard takes, in a zip of the same name."""

    def recognizes(self, root: Path) -> bool:
        """Return whether a data folder has this format."""

    def find_splits(self, root: Path) -> dict[str, tuple[SourceFile, ...]]:
        """Return the files of each split, in the order of ``SPLITS``; refuse an incomplete one."""

    def news(
        self, files: tuple[SourceFile, ...], on_read: Callable[[int], None]
    ) -> tuple[Pass, Iterator[Rows]]:
        """Read a split's news in blocks with the columns ``NEWS_TABLE``, in the order of the file.

        Columns of ``newsrec.data.readers.annotations`` may follow.
        ``on_read`` is called with the number of bytes that were just read.
        """

    def impressions(
        self, files: tuple[SourceFile, ...], ids: pa.Array, on_read: Callable[[int], None]
    ) -> tuple[Pass, Iterator[Impressions]]:
        """Read a split's impressions in blocks, in the order of the file.

        ``ids`` are the news ids of the catalogue's real news, which begin at row ``FIRST_NEWS``.
        ``on_read`` is called with the number of bytes that were just read.
        """

    def divide(self, files: tuple[SourceFile, ...], most_bytes: int) -> Divided | str:
        """Divide a split's impressions into parts of about ``most_bytes``, or say why that fails.

        The parts together give the blocks of ``impressions``, or smaller ones, in the same order.
        A reason is a clause that names the file.
        """
