"""Reads a tab-separated file block by block; a line that cannot be read is reported."""

import hashlib
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from newsrec.data.readers.base import LISTED, BadLine, Rows
from newsrec.data.readers.source import SourceFile, hash_source
from newsrec.errors import DataError

BLOCK_BYTES = 32 << 20
BLOCK_LINES = 1 << 18
BLOCK_SPACES = 6 << 20
"""Most lines and most spaces of a block: each costs memory, even if lines and words are short.
MIND's blocks have about 60,000 lines and 4 million spaces."""
LONGEST_LINE = 4 << 20
"""Most bytes of a line: over a hundred times MIND's longest line."""
WORKERS = 2
"""Blocks parsed at once; more would cost memory and hardly help, since reading is the limit."""
BOM = b"\xef\xbb\xbf"
Parsed = TypeVar("Parsed")


class Span(NamedTuple):
    """Successive whole lines of a file."""

    begin: int
    """Position of the first byte."""
    num_bytes: int
    first_line: int
    """Number of the first line in the file."""


class TsvFile:
    """Reads a file without a header line once, block by block.

    ``columns`` names all its columns, ``keep`` those to return, all if None. ``on_read`` is called
    with the number of bytes after each block. With a ``span`` only its lines are read.
    """

    def __init__(
        self,
        file: SourceFile,
        columns: Sequence[str],
        keep: Sequence[str] | None = None,
        on_read: Callable[[int], None] = lambda num_bytes: None,
        span: Span | None = None,
    ) -> None:
        self.file = file
        self.columns = columns
        self.keep = keep or columns
        self.on_read = on_read
        self.span = span
        self.cut_off = False
        """Whether the last line has no line end, so the file may have been cut off."""
        self.unit = "line"
        self.advice = "Correct the line, or unpack the file again from its zip"
        self._hash = hashlib.sha256()

    @property
    def hashes(self) -> dict[SourceFile, str]:
        """SHA-256 of the bytes read so far.

        With a span: of the whole file if the span begins at its first byte, else none.
        """
        if self.span is None:
            return {self.file: self._hash.hexdigest()}
        return {} if self.span.begin else {self.file: hash_source(self.file)}

    def map(self, parse: Callable[[Rows], Parsed]) -> Iterator[Parsed]:
        """Call ``parse`` on every block's rows, two blocks at once; yield results in file order.

        Fields are returned as they are: quotes are not removed, nothing is unescaped or stripped,
        and no text counts as a missing value. Titles may begin with a quote, and columns may be
        empty. An empty file and a damaged zip raise DataError.
        """
        with ThreadPoolExecutor(WORKERS) as pool:
            pending: deque[Future[Parsed]] = deque()
            try:
                for line, block in self._blocks():
                    pending.append(pool.submit(lambda a, b: parse(self._rows(a, b)), line, block))
                    if len(pending) > WORKERS:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _blocks(self) -> Iterator[tuple[int, bytes]]:
        """Yield the number of the first line and a block of whole lines (about ``BLOCK_BYTES``)."""
        line, begin, left = 1, 0, sys.maxsize
        if self.span is not None:
            line, begin, left = self.span.first_line, self.span.begin, self.span.num_bytes
        with self.file.open() as stream:
            if begin:
                stream.seek(begin)
            # The first chunk is short, so that the next ones are those of reading the whole file.
            rest = [stream.read(min(-begin % BLOCK_BYTES, left))]
            left -= len(rest[0])
            while chunk := stream.read(min(BLOCK_BYTES, left)):
                left -= len(chunk)
                self._hash.update(chunk)
                self.on_read(len(chunk))
                end = chunk.rfind(b"\n") + 1
                if not end:
                    rest.append(chunk)
                    if sum(map(len, rest)) > LONGEST_LINE:
                        raise DataError(
                            f"{self.file} cannot be read: line {line} is {_too_long()}. Download "
                            "or unpack it again."
                        )
                    continue
                block = b"".join([*rest, chunk[:end]])
                rest = [chunk[end:]]
                if line == 1:
                    block = block.removeprefix(BOM)
                for part in _parts(block):
                    yield line, part
                    line += part.count(b"\n")
        last = b"".join(rest)
        if line == 1:
            last = last.removeprefix(BOM)
        if last:
            self.cut_off = True
            yield line, last
        elif line == 1:
            raise DataError(f"{self.file} is empty. Unpack or copy the file again.")

    def _rows(self, first_line: int, block: bytes) -> Rows:
        """Parse a block of whole lines; check line by line only if one of them is bad."""
        if _is_clean(block):
            try:
                table = self._parse(block)
            except pa.ArrowInvalid:  # a line has the wrong number of columns
                pass
            else:
                return Rows(table, first_line + np.arange(len(table)), [], 0)
        good, lines = [], []
        bad: list[BadLine] = []
        num_bad = 0
        for number, line in enumerate(block.removesuffix(b"\n").split(b"\n"), start=first_line):
            problem, at = _problem(line, len(self.columns))
            if problem is None:
                good.append(line)
                lines.append(number)
                continue
            num_bad += 1
            if len(bad) < LISTED:
                column = None if at is None else self._column(line, at)
                shown = line[max((at or 0) - 20, 0) : (at or 0) + 400].decode(errors="replace")
                bad.append(BadLine(number, column, problem, shown))
        nothing = pa.table({name: pa.array([], pa.string()) for name in self.keep})
        table = self._parse(b"\n".join(good) + b"\n") if good else nothing
        return Rows(table, np.array(lines, dtype=np.int64), bad, num_bad)

    def _column(self, line: bytes, at: int) -> str | None:
        before = line.count(b"\t", 0, at)
        return self.columns[before] if before < len(self.columns) else None

    def _parse(self, block: bytes) -> pa.Table:
        size = len(block) + 1  # one block, even if a line is long
        read = csv.ReadOptions(column_names=self.columns, use_threads=False, block_size=size)
        parse = csv.ParseOptions(
            delimiter="\t", quote_char=False, double_quote=False, ignore_empty_lines=False
        )
        convert = csv.ConvertOptions(
            column_types=dict.fromkeys(self.columns, pa.string()),
            strings_can_be_null=False,
            check_utf8=False,  # _is_clean and _problem check this
            include_columns=self.keep,
        )
        return csv.read_csv(pa.BufferReader(block), read, parse, convert)


def divide(file: SourceFile, most_bytes: int) -> list[Span]:
    """Divide a file at ends of lines, where a block begins when the whole file is read.

    The file must not be in a zip. A span ends with the block that brings it to ``most_bytes``.
    """
    spans: list[Span] = []
    place = begin = 0
    line = first_line = 1
    with file.open() as stream:
        while chunk := stream.read(BLOCK_BYTES):
            end = place + chunk.rfind(b"\n") + 1
            line += chunk.count(b"\n")
            if end > place and end - begin >= most_bytes:
                spans.append(Span(begin, end - begin, first_line))
                begin, first_line = end, line
            place += len(chunk)
    if place > begin or not spans:
        spans.append(Span(begin, place - begin, first_line))
    return spans


def _parts(block: bytes) -> Iterator[bytes]:
    """Yield a block of whole lines in order, halved until no part has too many lines or spaces."""
    waiting = [block]
    while waiting:
        part = waiting.pop()
        cut = part.find(b"\n", len(part) // 2) + 1
        many = part.count(b"\n") > BLOCK_LINES or part.count(b" ") > BLOCK_SPACES
        if many and cut == len(part):  # the last line begins in the first half
            cut = part.rfind(b"\n", 0, len(part) // 2) + 1
        if many and 0 < cut < len(part):
            waiting += [part[cut:], part[:cut]]
        else:
            yield part


def _too_long() -> str:
    return f"over {LONGEST_LINE >> 20} MB long"


def _has_long_line(block: bytes) -> bool:
    """Return whether a line may be longer than ``LONGEST_LINE``.

    Such a line covers at least one whole step of half that length, which then has no line end.
    """
    step = LONGEST_LINE // 2
    ends = range(step, len(block) + 1, step)
    return any(block.find(b"\n", end - step, end) < 0 for end in ends)


def _is_clean(block: bytes) -> bool:
    """Return whether no line has a problem, except perhaps a wrong number of columns."""
    if _has_long_line(block):
        return False
    # An interrupted write or download can leave zeros instead of lines.
    if b"\0" in block or block.startswith(BOM) or b"\n" + BOM in block:
        return False
    if block.count(b"\r") != block.count(b"\r\n"):
        return False
    try:
        pc.cast(pa.array([block], pa.large_binary()), pa.large_string())  # validates, no copy
    except pa.ArrowInvalid:
        return False
    return True


def _problem(line: bytes, num_columns: int) -> tuple[str | None, int | None]:
    """Return a line's problem and the position of the wrong byte; each is None if there is none."""
    if len(line) > LONGEST_LINE:
        return _too_long(), None
    if b"\0" in line:
        return "NUL bytes", line.index(b"\0")
    if line.startswith(BOM):
        return "a byte order mark inside the file", 0
    if b"\r" in line.removesuffix(b"\r"):
        return "a carriage return inside the line", line.index(b"\r")
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start + 1}", error.start
    found = line.count(b"\t") + 1
    if found != num_columns and (found > 1 or line.removesuffix(b"\r")):
        return f"{found} columns instead of {num_columns}", None
    return None, None
