"""Reads MIND's tab-separated files: ``news.tsv`` and ``behaviors.tsv`` of each split."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from newsrec.data.readers.base import NEWS_TABLE, Divided, Impressions, Pass, Rows, ignore
from newsrec.data.readers.behaviors import Parser
from newsrec.data.readers.mind_files import BEHAVIORS_COLUMNS, NAMES, NEWS_COLUMNS, find_splits
from newsrec.data.readers.source import SourceFile
from newsrec.data.readers.tsv import LONGEST_LINE, Span, TsvFile, divide
from newsrec.errors import UserError

VOTERS = 100
"""Number of first lines that decide whether a file has labels, since one alone may be damaged."""


class MindReader:
    """Reads MIND's format; see ``newsrec.data.readers.base.Reader``."""

    name = "mind"
    version = 0
    file_names = " and ".join(NAMES)
    submission = "prediction.txt"

    def recognizes(self, root: Path) -> bool:
        """Accept any folder; ``find_splits`` reports what it lacks."""
        return True

    def find_splits(self, root: Path) -> dict[str, tuple[SourceFile, ...]]:
        """Return the two files of each split."""
        return {**find_splits(root)}

    def news(
        self, files: tuple[SourceFile, ...], on_read: Callable[[int], None] = ignore
    ) -> tuple[Pass, Iterator[Rows]]:
        """Read a split's ``news.tsv``."""
        file = TsvFile(files[0], NEWS_COLUMNS, NEWS_TABLE, on_read)
        return file, file.map(_parse_news)

    def impressions(
        self,
        files: tuple[SourceFile, ...],
        ids: pa.Array,
        on_read: Callable[[int], None] = ignore,
    ) -> tuple[Pass, Iterator[Impressions]]:
        """Read a split's ``behaviors.tsv``."""
        file = TsvFile(files[1], BEHAVIORS_COLUMNS, on_read=on_read)
        return file, file.map(Parser(ids, has_labels(files[1])).parse)

    def divide(self, files: tuple[SourceFile, ...], most_bytes: int) -> Divided | str:
        """Divide a split's ``behaviors.tsv`` at ends of lines."""
        file, labelled = files[1], has_labels(files[1])
        if file.member is not None:
            return f"{file} is in a zip, which can be divided only after it is unpacked"
        spans = divide(file, most_bytes)
        return Divided(
            TsvFile(file, BEHAVIORS_COLUMNS), [_Part(file, span, labelled) for span in spans]
        )


class _Part(NamedTuple):
    """Some lines of ``behaviors.tsv``; see ``newsrec.data.readers.base.Part``."""

    file: SourceFile
    span: Span
    labelled: bool

    @property
    def num_bytes(self) -> int:
        """Size of these lines."""
        return self.span.num_bytes

    def read(self, ids: pa.Array) -> tuple[Pass, Iterator[Impressions]]:
        """Read these lines."""
        file = TsvFile(self.file, BEHAVIORS_COLUMNS, span=self.span)
        return file, file.map(Parser(ids, self.labelled).parse)


def _parse_news(rows: Rows) -> Rows:
    ids = rows.column("news_id")
    header = pc.match_substring_regex(ids, "(?i)^news_?id$")
    rows = rows.require(pc.invert(header), "news_id", "a header line, which MIND's files lack")
    good = pc.match_substring_regex(rows.column("news_id"), "^[^ ]+$")
    return rows.require(good, "news_id", "empty or with a space")


def has_labels(file: SourceFile) -> bool:
    """Return whether most of a file's first lines have candidates that end in ``-0`` or ``-1``."""
    labelled = bare = 0
    with contextlib.suppress(UserError), file.open() as stream:  # damage is reported later
        for line in itertools.islice(iter(lambda: stream.readline(LONGEST_LINE), b""), VOTERS):
            fields = line.rstrip(b"\r\n").split(b"\t")
            if len(fields) == len(BEHAVIORS_COLUMNS):
                ends = {word.endswith((b"-0", b"-1")) for word in fields[-1].split(b" ")}
                labelled += ends == {True}
                bare += ends == {False}
    return labelled > 0 and labelled >= bare  # an accident can remove labels, but not add them
