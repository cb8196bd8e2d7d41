"""The command ``check-submission``: would the leaderboard take a file, and what looks wrong.

A submission is a zip with ``prediction.txt`` alone, a line ``ID [r1,r2,...]`` for each impression
in the order of ``behaviors.tsv``. MIND's evaluator goes through it and its own file side by side,
stops at another id, takes lines that are missing for ties and does not look whether ranks are a
permutation: some mistakes cost a submission, others give a wrong score without a word. Here every
line is held against the data, and must be written just so.

Blocks of lines are parsed as arrays. Only a block in which something is wrong is gone through line
by line, to say what.
"""

import zipfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.console import progress, say, terminal
from newsrec.data.mind import MindData, Split, open_mind
from newsrec.data.ragged import Ragged
from newsrec.data.source import SPLITS
from newsrec.data.zips import DAMAGE
from newsrec.errors import UserError
from newsrec.evaluation.submission_lines import KINDS, explain_line, id_of, kind_of, parse_lines
from newsrec.places import looked_for

if TYPE_CHECKING:
    import argparse

    from rich.table import Table

NAME = "prediction.txt"
BLOCK_BYTES = 2 << 20
"""Text parsed at once: little enough for the processor's cache."""
LONGEST_LINE = 64 << 20
SLOW_BYTES = 50_000_000
"""What takes less than about a second to check needs no progress bar."""
LISTED = 5
"""Names in a zip that a message shows."""

JUDGED = 5
"""Impressions with fewer candidates may well be in the order of the file by chance; of five
candidates one order in 120 is."""
MOST_IN_ORDER = 0.05
FEWEST_IN_ORDER = 10
"""Impressions in the order of the file, or in its reverse, that are more than chance."""
MOST_EMPTY = 0.1
MOST_UNKNOWN = 0.05
"""Shares of empty histories and of ids without a story above which a person should look."""


class BadLine(NamedTuple):
    """A line that would not be taken, or not as it was meant."""

    number: int
    """From 1."""
    problem: str
    text: str

    def __str__(self) -> str:
        shown = self.text if len(self.text) <= 80 else f"{self.text[:77]}..."
        return f"line {self.number:,}: {self.problem}: {shown!r}"


@dataclass
class Report:
    """What was found in a submission."""

    expected: int
    """Impressions of the split."""
    lines: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    """Bad lines of each of ``KINDS``."""
    first: BadLine | None = None
    """The first bad line."""
    ids: str = ""
    """What is wrong with the ids as a whole."""
    carriage_returns: int = 0
    """Lines that end as on Windows."""
    judged: int = 0
    """Impressions with at least ``JUDGED`` candidates, and of these:"""
    in_order: int = 0
    """ranked in the order of the file;"""
    backwards: int = 0
    """ranked in the reverse of it."""
    metrics: dict[str, Any] | None = None
    """As in ``metrics.json``; None if nothing can be scored, or if a line is bad."""

    @property
    def taken(self) -> bool:
        """Whether the leaderboard would take it and score what was meant."""
        return not self.bad and self.lines == self.expected


def add_arguments(parser: "argparse.ArgumentParser") -> None:
    """Add the command's options."""
    parser.add_argument("zip", metavar="ZIP", help="prediction.zip, as evaluate writes it")
    parser.add_argument(
        "--data.root", dest="data.root", required=True, help="data folder with the split"
    )
    parser.add_argument(
        "--data.on_bad_line",
        dest="data.on_bad_line",
        choices=("error", "skip"),
        default="error",
        help="what to do with a line of the data that cannot be read: stop, or leave it out",
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        required=True,
        help="split that was ranked; the leaderboard's is test",
    )


def run(args: "argparse.Namespace") -> None:
    """Check a submission; refuse it, or print what it is and what looks wrong."""
    path = Path(args.zip)
    _open(path)[0].close()  # before the data are compiled for nothing
    data = open_mind(args.data.root, args.data.on_bad_line)
    split = data.split(args.split)
    report = inspect(path, split)
    if not report.taken:
        raise UserError(f"{path} would not be taken for {split.name}.\n{_refusal(report, data)}")
    say(
        f"{path} would be taken: {report.lines:,} lines, one for each impression of {split.name}, "
        f"{split.window}, in its order, each with a permutation of its candidates."
    )
    console = terminal()
    console.print(_data_table(data, split.name))
    say("Empty: without a story that a news.tsv has. Unknown: in no news.tsv.")
    for warning in warnings_of(report, split):
        say(f"Warning: {warning}")
    if report.metrics is None:
        lacks = "labels" if split.labels is None else "impression with a click and a skip"
        say(f"{split.name} has no {lacks}, so there is no score.")
        return
    from newsrec.evaluation.report import comparison_table

    title = f"{split.name}, {split.window}: {report.metrics['evaluated']:,} impressions"
    console.print(comparison_table(title, {path.name: report.metrics}))


def inspect(path: Path, split: Split) -> Report:
    """Hold a submission against a split.

    Memory does not grow with the file, but for the ids of lines that are wrong.

    Args:
        path: The zip.
        split: The split that it ranks.

    Raises:
        UserError: If the file cannot be read as a submission at all.
    """
    check = _Check(split)
    stream, size = _open(path)
    with (
        stream,
        progress("checking", size, SLOW_BYTES, lambda rate: f"{rate / 1e6:.0f} MB/s") as advance,
    ):
        for block in _blocks(path, stream, advance):
            check.add(block)
    return check.finish()


def warnings_of(report: Report, split: Split) -> list[str]:
    """Return what looks wrong in a submission that would be taken."""
    found = []
    for number, order in ((report.in_order, "order"), (report.backwards, "reverse order")):
        # Baselines that know few stories give equal scores, which stay in the order of the file.
        if number >= max(FEWEST_IN_ORDER, MOST_IN_ORDER * report.judged):
            found.append(
                f"{number:,} of {report.judged:,} impressions with {JUDGED} candidates or more "
                f"({number / report.judged:.1%}) are ranked in the {order} of behaviors.tsv; by "
                "chance fewer than 1 % are. Equal scores do that: does every story get a score "
                "of its own?"
            )
    if report.carriage_returns:
        found.append(
            f"lines that end as on Windows: {report.carriage_returns:,}. MIND's evaluator, which "
            "opens the file as text, reads them; other tools may not."
        )
    shares = _shares(split.counts)
    for (what, most), advice in {
        ("empty histories", MOST_EMPTY): "A reader without clicks gets the same news as any other",
        ("unknown history clicks", MOST_UNKNOWN): "Such clicks say nothing",
        ("unknown candidates", MOST_UNKNOWN): "Such candidates all score alike",
    }.items():
        number, total = shares[what]
        if number > most * total:
            found.append(
                f"{number:,} of {total:,} {what.split()[-1]} ({number / total:.1%}) are "
                f"{what.split()[0]}. {advice}: is news.tsv whole, and behaviors.tsv read by its "
                "columns?"
            )
    skipped = split.counts.get("skipped_lines", 0)
    if skipped:
        found.append(
            f"lines of behaviors.tsv that could not be read and were skipped: {skipped:,}. The "
            "leaderboard wants a line for each of them: unpack the data again."
        )
    return found


class _Check:
    """Goes through a submission block by block.

    Args:
        split: The split that it ranks.
    """

    def __init__(self, split: Split) -> None:
        self.split = split
        self.report = Report(expected=len(split.impression_id))
        self.wrong_rows = array("q")  # where another id stands, and which
        self.wrong_ids = array("q")
        self.sums = np.zeros(4)
        self.evaluated = 0

    def add(self, text: bytes) -> None:
        """Check the next lines, each with its line end."""
        # The evaluator opens the file as text, where Python takes \r\n for a line end.
        if b"\r" in text:
            self.report.carriage_returns += text.count(b"\r\n")
            text = text.replace(b"\r\n", b"\n")
        number = text.count(b"\n")
        begin = self.report.lines
        self.report.lines += number
        if begin >= 2 * self.report.expected:  # these do not even help to say what is wrong
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
        """Return what was found."""
        report = self.report
        report.ids = self._ids()
        if self.evaluated and report.taken:
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
            inside = row < len(expected)
            kind = kind_of(line, *expected[row]) if inside else "extra"
            if kind is None:
                continue
            report.bad[kind] += 1
            if report.first is None:
                problem = explain_line(kind, line, *expected[row]) if inside else KINDS[kind]
                shown = line[:400].decode(errors="replace")
                report.first = BadLine(begin + row + 1, problem, shown)
            self.wrong_rows.append(begin + row)
            self.wrong_ids.append(id_of(line, kind, expected[row][0] if inside else -1))
        assert report.first is not None  # a line that no array operation took has a mistake

    def _count(self, ranks: Ragged, begin: int) -> None:
        """Add lines without a mistake."""
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
        self.sums += metrics.values[:, metrics.valid].sum(axis=1)
        self.evaluated += int(metrics.valid.sum())

    def _ids(self) -> str:
        """Say what is wrong with the ids as a whole: an order, a lost line, a line twice."""
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
        parts = []
        for ids, what in (
            (np.setdiff1d(expected, found), "missing"),
            (np.setdiff1d(found, expected), "not in behaviors.tsv"),
            (distinct[times > 1], "there more than once"),
        ):
            if len(ids):
                parts.append(f"{len(ids):,} {what} ({ids[0]}{', ...' if len(ids) > 1 else ''})")
        if parts:
            return f"Of the ids, {', '.join(parts)}."
        if report.bad["id"]:
            return "All ids are there, but not in the order of behaviors.tsv."
        return ""


def _open(path: Path) -> tuple[IO[bytes], int]:
    """Open the text in a submission; give its size, too.

    Raises:
        UserError: If the file is not a zip with just that text.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # the stream keeps the file open
            members = archive.infolist()
            if [member.filename for member in members] != [NAME]:
                raise UserError(f"{path} {_holds([member.filename for member in members])}")
            if members[0].flag_bits & 1:
                raise UserError(f"{path} is encrypted. Zip {NAME} again without a password.")
            return archive.open(NAME), members[0].file_size
    except UserError:
        raise
    except DAMAGE as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    if isinstance(error, FileNotFoundError):
        said = f"There is no {path}. {looked_for(path)}".strip()
        return UserError(f"{said} evaluate writes prediction.zip into its --output.")
    if isinstance(error, IsADirectoryError):
        return UserError(f"{path} is a folder. Give the prediction.zip in it.")
    if isinstance(error, PermissionError):
        return UserError(f"{path}: {error.strerror}. Ask for the permission to read it.")
    if not zipfile.is_zipfile(path):
        return UserError(f"{path} is not a zip, or is cut off. Send {NAME} zipped.")
    return UserError(f"{path} cannot be read: {error}. Write or copy it again.")


def _holds(names: list[str]) -> str:
    """Say what a zip holds in place of the one file."""
    shown = ", ".join(map(repr, names[:LISTED])) + (", ..." if len(names) > LISTED else "")
    return (
        f"holds {shown or 'nothing'}; the leaderboard wants {NAME} alone, in no folder. "
        f"Zip the file itself: python -m zipfile -c prediction.zip {NAME}"
    )


def _blocks(path: Path, stream: IO[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    """Return whole lines, about ``BLOCK_BYTES`` at a time; the last gets a line end if it lacks.

    Raises:
        UserError: If the zip is damaged or a line does not end.
    """
    rest: list[bytes] = []
    lines = 0
    while chunk := _read(path, stream):
        advance(len(chunk))
        end = chunk.rfind(b"\n") + 1
        if not end:
            rest.append(chunk)
            if sum(map(len, rest)) > LONGEST_LINE:
                raise UserError(
                    f"{path}, {NAME}, line {lines + 1:,} is over {LONGEST_LINE >> 20} MB long. "
                    "Write a line for each impression."
                )
            continue
        block = b"".join([*rest, chunk[:end]])
        lines += block.count(b"\n")
        rest = [chunk[end:]]
        yield block
    last = b"".join(rest)
    if last:
        yield last + b"\n"


def _read(path: Path, stream: IO[bytes]) -> bytes:
    try:
        return stream.read(BLOCK_BYTES)
    except DAMAGE as error:
        raise _unreadable(path, error) from None


def _refusal(report: Report, data: MindData) -> str:
    """Say what is wrong: the first bad line, how many there are, the ids, the number of lines."""
    parts = []
    if report.first is not None:
        parts.append(f"{NAME}, {report.first}.")
        kinds = ", ".join(f"{n:,} {KINDS[kind]}" for kind, n in report.bad.most_common())
        parts.append(f"Bad lines: {report.bad.total():,} of {report.lines:,} ({kinds}).")
    if report.lines < report.expected:
        missing = report.expected - report.lines
        parts.append(
            f"{NAME} ends after line {report.lines:,}; {missing:,} of {report.expected:,} "
            "impressions have no line."
        )
    if report.ids:
        parts.append(report.ids)
    others = [s.name for s in data.splits.values() if len(s.history) == report.lines]
    if report.lines != report.expected and others:
        parts.append(f"As many lines as {others[0]} has: is it --split {others[0]}?")
    return "\n".join(parts)


def _data_table(data: MindData, name: str) -> "Table":
    """Return the shares of what the data lack, the split before the others."""
    from rich.table import Table

    splits = [data.splits[name], *(s for s in data.splits.values() if s.name != name)]
    table = Table(title="The data, as this program reads them", title_justify="left")
    table.add_column("")
    for split in splits:
        table.add_column(split.name, justify="right")
    table.add_row("impressions", *(f"{s.counts['impressions']:,}" for s in splits))
    columns = [_shares(split.counts) for split in splits]
    for what in columns[0]:
        cells = (column[what] for column in columns)
        table.add_row(what, *(f"{number:,} {number / max(of, 1):6.1%}" for number, of in cells))
    return table


def _shares(counts: dict[str, int]) -> dict[str, tuple[int, int]]:
    """Return how many histories, clicks and candidates there is no story for, and of how many."""
    unknown = counts["unknown_history_news"]
    return {
        "empty histories": (counts["empty_histories"], counts["impressions"]),
        "unknown history clicks": (unknown, unknown + counts["history_news"]),
        "unknown candidates": (counts["unknown_candidates"], counts["candidates"]),
    }
