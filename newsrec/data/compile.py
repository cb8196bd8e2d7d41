"""Reads ``news.tsv`` and ``behaviors.tsv`` into arrays; ``newsrec.data.dataset`` opens them.

Files go through block by block: a block is parsed by column operations and its arrays are written
behind those of the blocks before, so memory does not grow with the files.
"""

import contextlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike

from newsrec.console import progress
from newsrec.data.npy import NpyWriter
from newsrec.data.readers.behaviors import Parser
from newsrec.data.readers.news import KEPT, differs_from_first, distinct, read_rows
from newsrec.data.readers.source import SourceFile, SplitFiles
from newsrec.data.readers.tsv import (
    BEHAVIORS_COLUMNS,
    LISTED,
    LONGEST_LINE,
    NEWS_COLUMNS,
    BadLine,
    Reader,
)
from newsrec.data.tables import Histories, Users
from newsrec.errors import UserError

log = logging.getLogger(__name__)

FORMAT = 3
"""Version of the compiled arrays; a change of their meaning counts it up."""

SLOW_BYTES = 20_000_000
"""What takes less than about a second to read needs no progress bar."""
VOTERS = 100
"""Lines that say whether a file has labels: one alone may be damaged."""
CUT_OFF = (
    "its last line has no line end. Unless it was written so, the file was cut off and that line "
    "may be wrong: copy or unpack it again."
)

ARRAYS: dict[str, DTypeLike] = {
    "impression_id": np.int64,
    "user": np.int32,
    "time": "datetime64[s]",
    "history": np.int32,
    "candidate_offsets": np.int64,
    "candidate_values": np.int32,
    "labels": np.int8,
    "history_offsets": np.int64,
    "history_values": np.int32,
}
"""All splits' rows one after the other; histories are one table that splits share."""


class Compiled(NamedTuple):
    """What ``compile_mind`` learned while it read."""

    hashes: dict[SourceFile, str]
    """SHA-256 of every file."""
    num_bad: int
    """Lines that were left out."""


def compile_mind(
    splits: Mapping[str, SplitFiles], target: Path, on_bad_line: str = "error"
) -> Compiled:
    """Read the splits' files and write their arrays into ``target``.

    Args:
        splits: Each split's files.
        target: An empty folder.
        on_bad_line: ``error`` stops at the first line that cannot be read; ``drop`` leaves such
            lines out, counts them and keeps the first ten of each file to be shown.

    Raises:
        UserError: If a file is empty or damaged, or a line cannot be read.
    """
    files = [file for split in splits.values() for file in split]
    num_bytes = sum(file.size for file in files)
    with progress("compiling", num_bytes, SLOW_BYTES, _rate) as advance:
        run = _Compilation(target, on_bad_line, advance)
        run.compile(splits)
    return Compiled(run.hashes, run.num_bad)


def _rate(done_per_second: float) -> str:
    return f"{done_per_second / 1e6:.0f} MB/s"


class _Compilation:
    def __init__(self, target: Path, on_bad_line: str, advance: Callable[[int], None]) -> None:
        self.target = target
        self.on_bad_line = on_bad_line
        self.advance = advance
        self.hashes: dict[SourceFile, str] = {}
        self.bad_lines: dict[str, list[str]] = {}
        self.num_bad = 0
        self.cut_off: list[str] = []

    def compile(self, splits: Mapping[str, SplitFiles]) -> None:
        counts: dict[str, dict[str, int]] = {split: {} for split in splits}
        news, disagreeing = self._news(splits, counts)
        _write_table(self.target / "news.arrow", news)
        ids = news["news_id"].combine_chunks()
        users = Users()
        with contextlib.ExitStack() as stack:
            arrays = {n: NpyWriter(self.target / f"{n}.npy", kind) for n, kind in ARRAYS.items()}
            for array in arrays.values():
                stack.callback(array.close)
            for name in ("candidate_offsets", "history_offsets"):
                arrays[name].write(np.zeros(1))
            histories = Histories(arrays["history_values"], arrays["history_offsets"])
            for split, files in splits.items():
                counts[split] |= self._behaviors(files.behaviors, ids, arrays, histories, users)
            all_users, user = users.finish()
            arrays["user"].write(user)
        end = 0
        for part in counts.values():
            begin, end = end, end + part["impressions"]
            part["users"] = len(np.unique(user[begin:end]))
        _write_table(self.target / "users.arrow", pa.table({"user_id": all_users}))
        meta = {
            "format": FORMAT,
            "counts": counts,  # splits in the order of their rows
            "disagreeing_news": disagreeing,
            "bad_lines": self.bad_lines,
            "cut_off": self.cut_off,
        }
        (self.target / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")

    def _news(
        self, splits: Mapping[str, SplitFiles], counts: dict[str, dict[str, int]]
    ) -> tuple[pa.Table, int]:
        """Return the catalogue's real stories, and how many ids a later file tells otherwise."""
        tables: list[pa.Table] = []
        for split, files in splits.items():
            reader = Reader(files.news, NEWS_COLUMNS, KEPT, self.advance)
            rows = read_rows(reader)
            skipped = self._finish(reader, rows.bad, rows.num_bad, rows.num_rows)
            own = distinct(rows.table)
            counts[split] = {
                "skipped_news_lines": skipped,
                "stories": len(own),
                "repeated_titles": len(own) - len(pc.unique(own["title"])),
            }
            tables.append(own)
        table = pa.concat_tables(tables).combine_chunks()
        differs = pa.array(differs_from_first(table))
        disagreeing = len(pc.unique(table["news_id"].filter(differs)))
        if disagreeing:
            have = "story has" if disagreeing == 1 else "stories have"
            log.warning(
                "%s %s another text in a later split; the first is kept", f"{disagreeing:,}", have
            )
        return distinct(table), disagreeing

    def _behaviors(
        self,
        file: SourceFile,
        ids: pa.Array,
        arrays: dict[str, NpyWriter],
        histories: Histories,
        users: Users,
    ) -> dict[str, int]:
        """Write a split's arrays and return its counts."""
        counts: Counter[str] = Counter()
        bad: list[BadLine] = []
        num_bad = 0
        reader = Reader(file, BEHAVIORS_COLUMNS, on_read=self.advance)
        for block in reader.map(Parser(ids, _has_labels(file)).parse):
            bad += block.rows.bad
            num_bad += block.rows.num_bad
            if num_bad and self.on_bad_line == "error":
                break
            candidates = block.candidates
            labels = block.labels
            if labels is None:
                labels = np.zeros(len(candidates.values), dtype=np.int8)
            arrays["impression_id"].write(block.impression_id)
            arrays["time"].write(block.time)
            arrays["history"].write(histories.add(block.histories))
            arrays["candidate_values"].write(candidates.values)
            arrays["labels"].write(labels)
            offsets = arrays["candidate_offsets"]
            offsets.write(offsets.last + candidates.offsets[1:])
            users.add(block.users)
            counts.update(block.counts())
        skipped = self._finish(reader, bad, num_bad, counts["impressions"])
        return dict(counts) | {"skipped_lines": skipped}

    def _finish(self, reader: Reader, bad: list[BadLine], num_bad: int, num_rows: int) -> int:
        """Stop at a file's bad lines, or note and count them, as ``on_bad_line`` says."""
        first = sorted(bad, key=lambda line: line.line)[:LISTED]
        if num_bad and self.on_bad_line == "error":
            raise UserError(
                f"{reader.file}, {first[0]}. Correct the line, or unpack the file again from its "
                "zip; --data.on_bad_line drop leaves such lines out."
            )
        if not num_rows:
            raise UserError(f"{reader.file}: none of its lines can be read, {first[0]}.")
        self.hashes[reader.file] = reader.sha256
        if num_bad:
            self.num_bad += num_bad
            self.bad_lines[str(reader.file)] = [str(line) for line in first]
            more = [f"  and {num_bad - len(first):,} more"] if num_bad > len(first) else []
            lines = "\n".join([*(f"  {line}" for line in first), *more])
            log.warning("%s: lines skipped: %s\n%s", reader.file, f"{num_bad:,}", lines)
        if reader.cut_off:
            self.cut_off.append(str(reader.file))
            log.warning("%s: %s", reader.file, CUT_OFF)
        return num_bad


def _has_labels(file: SourceFile) -> bool:
    """Tell if a file's candidates end in ``-0`` and ``-1``, as most of its first lines do."""
    labelled = bare = 0
    with contextlib.suppress(UserError), file.open() as stream:  # damage shows when all is read
        for line in itertools.islice(iter(lambda: stream.readline(LONGEST_LINE), b""), VOTERS):
            fields = line.rstrip(b"\r\n").split(b"\t")
            if len(fields) == len(BEHAVIORS_COLUMNS):
                ends = {word.endswith((b"-0", b"-1")) for word in fields[-1].split(b" ")}
                labelled += ends == {True}
                bare += ends == {False}
    return labelled > 0 and labelled >= bare  # labels are lost by accident, not won


def _write_table(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
