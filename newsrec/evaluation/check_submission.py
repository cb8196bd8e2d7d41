"""Check whether the leaderboard would accept a submission, and score it as intended.

MIND's evaluator reads the submission and its own file side by side. It stops at an unexpected id,
treats missing lines as ties and does not check that ranks are a permutation: some mistakes waste a
submission, others silently give a wrong score. So every line is compared with the data here, and
must have exactly the form that ``submission.py`` describes.

Blocks of lines are parsed as arrays. Only a block with a mistake is read again line by line.
"""

import zipfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.console import clipped, progress
from newsrec.data.dataset import Split
from newsrec.data.ragged import Ragged
from newsrec.data.readers.zips import DAMAGE
from newsrec.errors import UserError
from newsrec.evaluation.submission import NAME, mistake_in, parse_lines, zip_name
from newsrec.places import looked_for

BLOCK_BYTES = 2 << 20
"""Bytes of text parsed at once, few enough for the processor's cache."""
LONGEST_LINE = 64 << 20
SLOW_BYTES = 50_000_000
"""Smaller files take less than about a second to check and need no progress bar."""
LISTED = 5
"""Most names in a zip that a message shows."""

JUDGED = 5
"""Fewest candidates of an impression whose order is judged. With fewer, ranks in the order of the
file are often chance; five candidates have 120 orders."""


class WrongLine(NamedTuple):
    """A line that the leaderboard would refuse or score wrongly."""

    number: int
    """Line number, from 1."""
    problem: str
    text: str

    def __str__(self) -> str:
        return f"line {self.number:,}: {self.problem}: {clipped(self.text)!r}"


@dataclass
class Report:
    """Findings about a submission."""

    expected: int
    """Impressions of the split."""
    name: str = NAME
    """Name of the text file in the zip."""
    lines: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    """Number of bad lines of each of ``KINDS``."""
    first: WrongLine | None = None
    """The first bad line."""
    ids: str = ""
    """Sentence about missing, foreign, repeated or reordered ids; empty if there are none."""
    carriage_returns: int = 0
    """Lines with Windows line ends."""
    judged: int = 0
    """Impressions with at least ``JUDGED`` candidates."""
    in_order: int = 0
    """Judged impressions that are ranked in the order of the file."""
    backwards: int = 0
    """Judged impressions that are ranked in the reverse order of the file."""
    metrics: dict[str, Any] | None = None
    """As in ``metrics.json``; None if a line is bad or no impression can be scored."""

    @property
    def accepted(self) -> bool:
        """Whether the leaderboard would accept the submission and score it as intended."""
        return not self.bad and self.lines == self.expected


def inspect(path: Path, split: Split, name: str = NAME) -> Report:
    """Check a submission against the split that it ranks; refuse a file that is no submission.

    ``name`` is the name of the text file in the zip.

    Memory does not grow with the file, except by the ids of bad lines.
    """
    check = _Check(split, name)
    stream, size = open_submission(path, name)
    with (
        stream,
        progress("checking", size, SLOW_BYTES, lambda rate: f"{rate / 1e6:.0f} MB/s") as advance,
    ):
        for block in _blocks(path, name, stream, advance):
            check.add(block)
    return check.finish()


class _Check:
    """Checks a submission block by block against the split that it ranks."""

    def __init__(self, split: Split, name: str) -> None:
        self.split = split
        self.report = Report(len(split.impression_id), name)
        self.wrong_rows = array("q")  # positions of the lines with a mistake
        self.wrong_ids = array("q")  # ids of the impressions that these lines seem to be for
        self.sums = np.zeros(())  # becomes the sum of each metric
        self.evaluated = 0

    def add(self, text: bytes) -> None:
        """Check the next lines; each must have its line end."""
        # The evaluator opens the file as text, so Python reads \r\n as a line end.
        if b"\r" in text:
            self.report.carriage_returns += text.count(b"\r\n")
            text = text.replace(b"\r\n", b"\n")
        number = text.count(b"\n")
        begin = self.report.lines
        self.report.lines += number
        if begin >= 2 * self.report.expected:  # more lines would not help to say what is wrong
            self.report.bad["extra"] += number
            return
        rows = min(begin, self.report.expected), min(begin + number, self.report.expected)
        part = self.split.candidates.between(*rows)
        ids = np.asarray(self.split.impression_id[slice(*rows)])
        ranks = parse_lines(text, ids, part.lengths) if len(ids) == number else None
        if ranks is None:
            self._line_by_line(text, begin, ids, part.lengths)
        elif not self.report.bad:
            self._count(Ragged(ranks, part.offsets), begin)

    def finish(self) -> Report:
        """Complete the report and return it."""
        report = self.report
        report.ids = self._ids()
        if self.evaluated and report.accepted:
            from newsrec.metrics import METRICS

            report.metrics = {
                "impressions": report.lines,
                "evaluated": self.evaluated,
                "single_class": report.lines - self.evaluated,
                **dict(zip(METRICS, (self.sums / self.evaluated).tolist(), strict=True)),
            }
        return report

    def _line_by_line(
        self, text: bytes, begin: int, ids: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> None:
        report = self.report
        expected = list(zip(ids.tolist(), lengths.tolist(), strict=True))
        for row, line in enumerate(text.split(b"\n")[:-1]):
            here = expected[row] if row < len(expected) else None
            mistake = mistake_in(line, here, worded=report.first is None)
            if mistake is None:
                continue
            report.bad[mistake.kind] += 1
            if report.first is None:
                shown = line[:400].decode(errors="replace")
                report.first = WrongLine(begin + row + 1, mistake.problem, shown)
            self.wrong_rows.append(begin + row)
            self.wrong_ids.append(mistake.impression_id)
        assert report.first is not None  # only a block with a bad line gets here

    def _count(self, ranks: Ragged, begin: int) -> None:
        starts, lengths = ranks.offsets[:-1], ranks.lengths
        place = np.arange(len(ranks.values)) - np.repeat(starts, lengths)
        judged = lengths >= JUDGED
        last = np.repeat(lengths, lengths)
        in_order = np.logical_and.reduceat(ranks.values == place + 1, starts)
        backwards = np.logical_and.reduceat(ranks.values == last - place, starts)
        self.report.judged += int(judged.sum())
        self.report.in_order += int((in_order & judged).sum())
        self.report.backwards += int((backwards & judged).sum())
        if self.split.labels is None:
            return
        from newsrec.metrics import impression_metrics

        first = int(self.split.candidates.offsets[begin])
        labels = self.split.labels[first : first + len(ranks.values)]
        metrics = impression_metrics(-ranks.values.astype(np.float32), labels, ranks.offsets)
        self.sums = self.sums + metrics.values[:, metrics.valid].sum(axis=1)
        self.evaluated += int(metrics.valid.sum())

    def _ids(self) -> str:
        """Say which ids are missing, foreign or repeated, or that their order is wrong."""
        report = self.report
        if not (report.bad["id"] or report.bad["extra"] or report.lines < report.expected):
            return ""
        expected = np.asarray(self.split.impression_id)
        wrong, found = np.array(self.wrong_rows), np.array(self.wrong_ids)
        kept = np.ones(report.expected, dtype=bool)
        kept[report.lines :] = False
        kept[wrong[wrong < report.expected]] = False
        found = np.concatenate([expected[kept], found[found >= 0]])
        distinct, times = np.unique(found, return_counts=True)
        ids, wanted = np.unique(expected, return_counts=True)  # EB-NeRD repeats the id 0
        place = np.searchsorted(ids, distinct).clip(max=len(ids) - 1)
        most = np.where(ids[place] == distinct, wanted[place], 1)
        parts = []
        for ids, what in (
            (np.setdiff1d(expected, found), "missing"),
            (np.setdiff1d(found, expected), "not in the data"),
            (distinct[times > most], "repeated"),
        ):
            if len(ids):
                parts.append(f"{len(ids):,} {what} ({ids[0]}{', ...' if len(ids) > 1 else ''})")
        if parts:
            return f"Wrong ids: {', '.join(parts)}."
        if report.bad["id"]:
            return "All ids are there, but not in the order of the data."
        return ""


def open_submission(path: Path, name: str = NAME) -> tuple[IO[bytes], int]:
    """Return the stream and the size of a submission's text; UserError if it is no such zip."""
    with _explained(path, name), zipfile.ZipFile(path) as archive:  # the stream keeps the file open
        names = archive.namelist()
        if names != [name]:
            shown = ", ".join(map(repr, names[:LISTED])) + (", ..." if len(names) > LISTED else "")
            raise UserError(
                f"{path} holds {shown or 'nothing'}; the leaderboard wants only {name}, not in a "
                f"folder. Zip the file itself: python -m zipfile -c {zip_name(name)} {name}"
            )
        member = archive.getinfo(name)
        if member.flag_bits & 1:
            raise UserError(f"{path} is encrypted. Zip {name} again without a password.")
        return archive.open(name), member.file_size


@contextmanager
def _explained(path: Path, name: str) -> Iterator[None]:
    """Raise a UserError in place of the error from a file that is not a readable zip."""
    try:
        yield
    except UserError:
        raise
    except DAMAGE as error:
        if isinstance(error, FileNotFoundError):
            said = f"There is no {path}. {looked_for(path)}".strip()
            said += f" evaluate writes {zip_name(name)} into its --output."
        elif isinstance(error, IsADirectoryError):
            said = f"{path} is a folder. Give the {zip_name(name)} in it."
        elif isinstance(error, PermissionError):
            said = f"{path}: {error.strerror}. Ask for the permission to read it."
        elif not zipfile.is_zipfile(path):
            said = f"{path} is not a zip, or is cut off. Give a zip of {name}."
        else:
            said = f"{path} cannot be read: {error}. Write or copy it again."
        raise UserError(said) from None


def _blocks(
    path: Path, name: str, stream: IO[bytes], advance: Callable[[int], None]
) -> Iterator[bytes]:
    """Yield whole lines, about ``BLOCK_BYTES`` at a time; the last line gets a missing line end."""
    rest: list[bytes] = []
    lines = 0
    while True:
        with _explained(path, name):
            chunk = stream.read(BLOCK_BYTES)
        advance(len(chunk))
        if not chunk:
            break
        end = chunk.rfind(b"\n") + 1
        rest.append(chunk[:end] or chunk)
        if end:
            block = b"".join(rest)
            lines += block.count(b"\n")
            rest = [chunk[end:]]
            yield block
        elif sum(map(len, rest)) > LONGEST_LINE:
            raise UserError(
                f"{path}, {name}, line {lines + 1:,} is over {LONGEST_LINE >> 20} MB long. "
                "Write a line for each impression."
            )
    last = b"".join(rest)
    if last:
        yield last + b"\n"
