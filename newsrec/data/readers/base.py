"""What the reader of a data set gives, whatever its files look like.

A format is one file of this folder with a class that has the methods of ``Reader``, and a line in
``formats.py``. The rest of ``newsrec`` sees blocks of news and of impressions.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.data import UNKNOWN_NEWS
from newsrec.data.fields import FIELDS
from newsrec.data.ragged import Ragged
from newsrec.data.readers.source import SourceFile

NEWS_TABLE = ("news_id", *FIELDS)
"""Columns of a table of news, all of them strings."""
LISTED = 10
"""Bad lines that are kept to be shown; all of them are counted."""
CUT_OFF = (
    "its last line has no line end. Unless it was written so, the file was cut off and that line "
    "may be wrong: copy or unpack it again."
)
"""What is said of the files of a pass that is ``cut_off``."""


class BadLine(NamedTuple):
    """A line that cannot be read."""

    line: int
    column: str | None
    problem: str
    text: str

    def __str__(self) -> str:
        place = f"line {self.line}, " + (f"column {self.column}: " if self.column else "")
        shown = self.text if len(self.text) <= 80 else self.text[:77] + "..."
        return f"{place}{self.problem}: {shown!r}"


class Rows(NamedTuple):
    """Some lines as an Arrow table of strings; bad ones are left out and noted."""

    table: pa.Table
    """One row a line."""
    lines: NDArray[np.int64]
    """Number of each line in its file ``[rows]``."""
    bad: list[BadLine]
    """The first bad lines, in no order."""
    num_bad: int
    """How many there are."""

    @property
    def num_rows(self) -> int:
        """Lines that are not bad."""
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
        """Return these very rows if all are good, else the good ones, the others noted.

        Args:
            good: Which rows can be read ``[rows]``.
            column: Where the problem is.
            problem: What it is.
            word: Returns the offending part of a row; its whole column if None.
        """
        good = np.asarray(good, dtype=bool)
        wrong = np.flatnonzero(~good)
        if not len(wrong):
            return self
        bad = []
        for row in wrong[:LISTED].tolist():
            text = word(row) if word else self.table[column][row].as_py()
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
    """The impressions that could be read, and what is wrong with the others."""
    impression_id: NDArray[np.int64]
    time: NDArray[np.datetime64]
    users: pa.DictionaryArray
    histories: Ragged
    """Catalogue rows of the news clicked before, oldest first; unknown news are left out."""
    unknown_history: int
    """How many news of histories are unknown."""
    candidates: Ragged
    """Catalogue rows; ``UNKNOWN_NEWS`` where the catalogue lacks the news."""
    labels: NDArray[np.int8] | None
    """1 clicked, 0 skipped; None without labels ``[candidates]``."""

    def counts(self) -> dict[str, int]:
        """Return what ``prepare`` reports of these rows."""
        counts = {
            "impressions": self.rows.num_rows,
            "history_news": len(self.histories.values),
            "unknown_history_news": self.unknown_history,
            "empty_histories": int((self.histories.lengths == 0).sum()),
            "candidates": len(self.candidates.values),
            "unknown_candidates": int((self.candidates.values == UNKNOWN_NEWS).sum()),
        }
        return counts if self.labels is None else counts | {"clicks": int(self.labels.sum())}


class Pass(Protocol):
    """What is known of the files of a split once their blocks have been read to the end."""

    file: SourceFile
    """The file that messages name."""
    cut_off: bool
    """Whether the last line has no line end; False in formats without lines."""

    @property
    def hashes(self) -> dict[SourceFile, str]:
        """SHA-256 of every file that was read."""


class Reader(Protocol):
    """Reads data sets of one format."""

    name: str
    """The format; names folders of compiled arrays."""
    file_names: str
    """A split's files, as a message names them."""

    def recognizes(self, root: Path) -> bool:
        """Return whether a data folder has this format."""

    def find_splits(self, root: Path) -> dict[str, tuple[SourceFile, ...]]:
        """Return the files of each split of a data folder, in the order of ``SPLITS``.

        Raises:
            UserError: If there is no split, or one is incomplete.
        """

    def news(
        self, files: tuple[SourceFile, ...], on_read: Callable[[int], None]
    ) -> tuple[Pass, Iterator[Rows]]:
        """Read a split's news, block by block.

        Args:
            files: The split's.
            on_read: Called with the number of bytes that were just read.

        Returns:
            The pass, and blocks with the columns ``NEWS_TABLE``, in the order of the file.
        """

    def impressions(
        self, files: tuple[SourceFile, ...], ids: pa.Array, on_read: Callable[[int], None]
    ) -> tuple[Pass, Iterator[Impressions]]:
        """Read a split's impressions, block by block.

        Args:
            files: The split's.
            ids: News id of each real news of the catalogue, which begins at row ``FIRST_NEWS``.
            on_read: Called with the number of bytes that were just read.

        Returns:
            The pass, and blocks of impressions, in the order of the file.
        """
