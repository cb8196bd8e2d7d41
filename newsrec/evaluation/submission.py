"""A leaderboard's file: a zip with a text file, ``prediction.txt``, that ranks all candidates.

A line is ``ID [r1,r2,...]``: the impression's number, and the rank of each candidate in the order
of the split's file. Lines are written and read as arrays; a line with a mistake is read again on
its own to find what is wrong.
"""

import re
import zipfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from newsrec.console import counted
from newsrec.data.ragged import to_offsets
from newsrec.data.readers.tsv import BOM

NAME = "prediction.txt"
"""The only file in the zip for MIND's leaderboard; for other formats see ``Reader.submission``."""
CHUNK = 1 << 20
"""Candidates written at once; memory depends on this, not on the size of the split."""
LEVEL = 4
"""zlib's compression level. Its default, 6, takes several times as long for a file a few percent
smaller."""

KINDS = {
    "form": "not like ID [r1,r2,...]",
    "blank": "blank",
    "id": "with another id than the data have there",
    "count": "with another number of ranks than candidates",
    "rank": "with something that is not a rank",
    "permutation": "whose ranks are not 1 to n, each once",
    "extra": "beyond the last impression",
}
"""Kinds of bad lines, in the words of a message that counts them."""

DIGITS = 18
"""Most digits of a number."""
ID = re.compile(rb"0|[1-9][0-9]{0,17}")
RANK = re.compile(rb"[1-9][0-9]{0,17}")


class Mistake(NamedTuple):
    """A mistake in a line."""

    kind: str
    """One of ``KINDS``."""
    problem: str
    """What the line has, and what it should have."""
    impression_id: int
    """The impression that the line seems to be for, -1 if unclear."""


def zip_name(name: str) -> str:
    """Return the name of the zip of a leaderboard's text file."""
    return Path(name).with_suffix(".zip").name


def write_predictions(
    path: Path,
    impression_id: NDArray[np.int64],
    ranks: NDArray[np.integer],
    offsets: NDArray[np.int64],
    name: str = NAME,
) -> None:
    """Write a zip with one file, ``name``, which has one line per impression.

    The bytes depend only on the id of each impression ``[impressions]``, the ranks (1 is the best)
    ``[candidates]``, the offsets and the name.
    """
    entry = zipfile.ZipInfo(name)  # its date is fixed: 1980-01-01
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    # Public as compress_level since Python 3.13, which keeps this name as an alias.
    entry._compresslevel = LEVEL  # type: ignore[attr-defined,unused-ignore]
    offsets = np.asarray(offsets)
    start = 0
    with zipfile.ZipFile(path, "w") as archive, archive.open(entry, "w", force_zip64=True) as file:
        while start < len(impression_id):
            end = int(np.searchsorted(offsets, offsets[start] + CHUNK, side="right")) - 1
            end = max(end, start + 1)
            bounds = offsets[start : end + 1]
            part = ranks[bounds[0] : bounds[-1]]
            file.write(text_of(impression_id[start:end], part, bounds - bounds[0]))
            start = end


def text_of(
    impression_id: NDArray[np.int64], ranks: NDArray[np.integer], offsets: NDArray[np.int64]
) -> pa.Buffer:
    """Return the lines of some impressions; arguments as in ``write_predictions``."""
    words = pc.cast(pa.array(ranks), pa.string())
    lists = pc.binary_join(pa.ListArray.from_arrays(offsets.astype(np.int32), words), ",")
    lines = pc.binary_join_element_wise(
        pc.cast(pa.array(impression_id), pa.string()), " [", lists, "]\n", ""
    )
    return lines.buffers()[2]  # Arrow stores strings one after another


def parse_lines(
    text: bytes, ids: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int32] | None:
    """Return the ranks of some whole lines, or None if any line has a mistake.

    Each line must be its id ``[lines]``, a space, an opening bracket, as many ranks as its length
    ``[lines]`` with commas between, a closing bracket and a line end.
    """
    assert (lengths > 0).all()  # an impression without candidates is not read
    letters = np.frombuffer(text, dtype=np.uint8)
    ends = np.flatnonzero(letters - np.uint8(ord("0")) > 9)  # every character but digits
    offsets = to_offsets(lengths + 3)
    if len(ends) != offsets[-1]:
        return None
    marks = np.full(len(ends), ord(","), dtype=np.uint8)
    first, last = offsets[:-1], offsets[1:] - 1
    marks[first], marks[first + 1] = ord(" "), ord("[")
    marks[last - 1], marks[last] = ord("]"), ord("\n")
    if not np.array_equal(letters[ends], marks):
        return None
    widths = np.diff(ends, prepend=-1) - 1
    is_rank = (marks == ord(",")) | (marks == ord("]"))
    if widths[first + 1].any() or widths[last].any():
        return None
    if not np.array_equal(_numbers(letters, ends[first], widths[first]), ids):
        return None
    ranks = _numbers(letters, ends[is_rank], widths[is_rank])
    return ranks.astype(np.int32) if _are_permutations(ranks, lengths) else None


def _numbers(
    letters: NDArray[np.uint8], ends: NDArray[np.int64], widths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the numbers whose digits end before ``ends``; -1 for one in a wrong form.

    Every number is -1 if any is empty or longer than ``DIGITS``.
    """
    longest = int(widths.max(initial=0))
    if longest > DIGITS or not (widths > 0).all():
        return np.full(len(ends), -1)
    values = letters[ends - 1].astype(np.int64) - ord("0")
    for place in range(1, longest):
        longer = np.flatnonzero(widths > place)
        digits = letters[ends[longer] - 1 - place].astype(np.int64) - ord("0")
        values[longer] += digits * 10**place
    values[(widths > 1) & (letters[ends - widths] == ord("0"))] = -1
    return values


def _are_permutations(ranks: NDArray[np.int64], lengths: NDArray[np.int64]) -> bool:
    if (ranks < 1).any() or (ranks > np.repeat(lengths, lengths)).any():
        return False
    seen = np.zeros(len(ranks), dtype=bool)
    seen[np.repeat(to_offsets(lengths)[:-1], lengths) + ranks - 1] = True
    return bool(seen.all())


def mistake_in(
    line: bytes, expected: tuple[int, int] | None, worded: bool = True
) -> Mistake | None:
    """Return the first mistake in a line without its end; None if there is none.

    ``expected`` are the impression's number and its number of candidates, None after the last
    impression. Without ``worded``, a wrong permutation is not explained, which is slow.
    """
    id_word, space, ranks_word = line.partition(b" ")
    named = int(id_word) if ID.fullmatch(id_word) else -1
    if expected is None:
        return Mistake("extra", KINDS["extra"], named)
    number, num_candidates = expected
    if not line.strip():
        return Mistake("blank", f"blank, where impression {number} belongs", named)
    if line.startswith(BOM):
        return Mistake("form", "a byte order mark before the id", number)
    if b"\r" in line:
        return Mistake("form", "a carriage return inside the line", number)
    if not (space and ranks_word.startswith(b"[") and ranks_word.endswith(b"]")):
        return Mistake("form", f"not like {number} [r1,r2,...]", number)
    if id_word != b"%d" % number:
        problem = f"the id is {_short(id_word)}, but the data have {number} there"
        return Mistake("id", problem, named)
    words = ranks_word[1:-1].split(b",") if ranks_word != b"[]" else []
    if len(words) != num_candidates:
        return Mistake(
            "count",
            f"{counted(len(words), 'rank')} for {counted(num_candidates, 'candidate')}",
            number,
        )
    for word in words:
        if not RANK.fullmatch(word):
            wanted = f"a whole number from 1 to {num_candidates}"
            return Mistake("rank", f"the rank {_short(word)!r} is not {wanted}", number)
    if len(set(words)) == num_candidates == max(map(int, words), default=0):
        return None
    problem = _not_a_permutation(list(map(int, words))) if worded else ""
    return Mistake("permutation", problem, number)


def _not_a_permutation(ranks: list[int]) -> str:
    """Explain why ranks, all at least 1, are not 1 to n, each once."""
    missing = min(set(range(1, len(ranks) + 1)) - set(ranks))
    above = next((rank for rank in ranks if rank > len(ranks)), None)
    if above is not None:
        return f"the rank {above} of {counted(len(ranks), 'candidate')}, while {missing} is missing"
    twice, times = Counter(ranks).most_common(1)[0]
    return f"the rank {twice} occurs {times} times, and {missing} is missing"


def _short(word: bytes) -> str:
    text = word[:40].decode(errors="replace")
    return text if len(word) <= 20 else f"{text[:17]}..."
