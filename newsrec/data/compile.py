"""Compiles the files of a data folder into arrays; ``newsrec.data.dataset`` opens them.

Files are read block by block. Each block is parsed by column operations, and its arrays are
appended to those of earlier blocks, so memory does not grow with the size of the files.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from newsrec.console import progress
from newsrec.data.arrays import ImpressionArrays, Written, write_table
from newsrec.data.parts import NEWS, CompiledParts, Engine, compile_parts
from newsrec.data.readers.annotations import without_empty
from newsrec.data.readers.base import CUT_OFF, LISTED, BadLine, Pass, Reader
from newsrec.data.readers.news import differs_from_first, distinct, merge_news
from newsrec.data.readers.source import SourceFile
from newsrec.errors import DataError

log = logging.getLogger(__name__)

ARRAYS_FORMAT = 5
"""Version of the compiled arrays; increase it when their meaning changes."""

SLOW_BYTES = 20_000_000
"""Show a progress bar only above this size; less takes under about a second to read."""

Splits = Mapping[str, tuple[SourceFile, ...]]
"""The files of each split."""


class Compiled(NamedTuple):
    """What ``compile_splits`` returns."""

    hashes: dict[SourceFile, str]
    """SHA-256 of every file."""
    num_bad: int
    """Number of lines that were left out."""


def compile_splits(
    reader: Reader,
    splits: Splits,
    target: Path,
    on_bad_line: str = "error",
    engine: Engine | None = None,
) -> Compiled:
    """Read the splits' files and write their arrays into the empty folder ``target``.

    An ``engine`` from ``newsrec.data.parts`` reads impressions in parts; the arrays are the same.

    At a line that cannot be read, ``on_bad_line`` error stops; drop leaves such lines out, counts
    them and keeps the first ten of each file for display. An empty or damaged file is refused.
    """
    files = [file for split in splits.values() for file in split]
    num_bytes = sum(file.size for file in files)
    with progress("compiling", num_bytes, SLOW_BYTES, _rate) as advance:
        run = _Compilation(reader, target, on_bad_line, engine, advance)
        run.compile(splits)
    return Compiled(run.hashes, run.num_bad)


def _rate(done_per_second: float) -> str:
    return f"{done_per_second / 1e6:.0f} MB/s"


@dataclass
class _Compilation:
    reader: Reader
    target: Path
    on_bad_line: str
    engine: Engine | None
    advance: Callable[[int], None]
    hashes: dict[SourceFile, str] = field(default_factory=dict)
    bad_lines: dict[str, list[str]] = field(default_factory=dict)
    num_bad: int = 0
    cut_off: list[str] = field(default_factory=list)

    def compile(self, splits: Splits) -> None:
        counts: dict[str, dict[str, int]] = {split: {} for split in splits}
        news, num_news, disagreeing = self._news(splits, counts)
        write_table(self.target / NEWS, news)
        ids = news["news_id"].combine_chunks()
        with (
            contextlib.closing(ImpressionArrays(self.target)) as arrays,
            compile_parts(self.reader, splits, num_news, self.target, self.on_bad_line, self.engine)
            as parts,
        ):  # fmt: skip
            for split, files in splits.items():
                known = ids[: num_news[split]]  # news of later splits are unknown here
                counts[split] |= self._impressions(files, known, arrays, parts.get(split))
            user = arrays.finish()
        end = 0
        for part in counts.values():
            begin, end = end, end + part["impressions"]
            part["users"] = len(np.unique(user[begin:end]))
        meta = {
            "format": ARRAYS_FORMAT,
            "counts": counts,  # splits in the order of their rows
            "num_news": num_news,
            "disagreeing_news": disagreeing,
            "bad_lines": self.bad_lines,
            "cut_off": self.cut_off,
        }
        (self.target / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")

    def _news(
        self, splits: Splits, counts: dict[str, dict[str, int]]
    ) -> tuple[pa.Table, dict[str, int], int]:
        """Return the catalogue's real news, how many each split knows, and the disagreeing ids.

        A split knows the news of its own news.tsv and of the splits before it. An id disagrees if
        a later file has another text for it. The last value is the number of such ids.
        """
        tables: list[pa.Table] = []
        num_news = {}
        for split, files in splits.items():
            done, blocks = self.reader.news(files, self.advance)
            rows = merge_news(blocks)
            dropped = self._finish(done, rows.bad, rows.num_bad, rows.num_rows)
            own = distinct(rows.table)
            counts[split] = {
                "dropped_news_lines": dropped,
                "news": len(own),
                "repeated_titles": len(own) - len(pc.unique(own["title"])),
            }
            tables.append(own)
            known = pa.concat_tables([table.select(["news_id"]) for table in tables])
            num_news[split] = len(pc.unique(known["news_id"]))
        # A split may lack annotated columns that another has; they are null for its news.
        table = pa.concat_tables(tables, promote_options="default").combine_chunks()
        differs = pa.array(differs_from_first(table))
        disagreeing = len(pc.unique(table["news_id"].filter(differs)))
        if disagreeing:
            have = "news item has" if disagreeing == 1 else "news items have"
            log.warning(
                "%s %s another text in a later split; the first is kept", f"{disagreeing:,}", have
            )
        return without_empty(distinct(table)), num_news, disagreeing

    def _impressions(
        self,
        files: tuple[SourceFile, ...],
        ids: pa.Array,
        arrays: ImpressionArrays,
        parts: CompiledParts | None,
    ) -> dict[str, int]:
        """Write a split's arrays and return its counts."""
        done: Pass
        if parts:
            done = parts
            written = Written.total(parts.join(arrays, self.advance), self.on_bad_line)
        else:
            done, blocks = self.reader.impressions(files, ids, self.advance)
            written = Written.total(map(arrays.add, blocks), self.on_bad_line)
            del blocks  # after a bad line, stop the threads that read ahead
        num_rows = written.counts.get("impressions", 0)
        dropped = self._finish(done, written.bad, written.num_bad, num_rows)
        return written.counts | {"dropped_lines": dropped}

    def _finish(self, done: Pass, bad: list[BadLine], num_bad: int, num_rows: int) -> int:
        """Refuse a file with bad lines, or log them, as ``on_bad_line`` says; return their number.

        This also stores the file's hashes, and logs if the file was cut off.
        """
        unit = done.unit
        first = [line.in_words(unit) for line in sorted(bad, key=lambda line: line.line)[:LISTED]]
        if num_bad and self.on_bad_line == "error":
            raise DataError(
                f"{done.file}, {first[0]}. {done.advice}; --data.on_bad_line drop leaves such "
                f"{unit}s out."
            )
        if not num_rows:
            raise DataError(f"{done.file}: none of its {unit}s can be read, {first[0]}.")
        self.hashes |= done.hashes
        if num_bad:
            self.num_bad += num_bad
            self.bad_lines[str(done.file)] = first
            more = [f"  and {num_bad - len(first):,} more"] if num_bad > len(first) else []
            lines = "\n".join([*(f"  {line}" for line in first), *more])
            log.warning("%s: %ss dropped: %s\n%s", done.file, unit, f"{num_bad:,}", lines)
        if done.cut_off:
            self.cut_off.append(str(done.file))
            log.warning("%s: %s", done.file, CUT_OFF)
        return num_bad
