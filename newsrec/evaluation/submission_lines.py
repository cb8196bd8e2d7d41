"""The lines of a submission: read as arrays, and one by one where something is wrong."""

import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from newsrec.data.ragged import to_offsets
from newsrec.data.readers.tsv import BOM

KINDS = {
    "form": "not like ID [r1,r2,...]",
    "blank": "blank",
    "id": "with another id than behaviors.tsv has there",
    "count": "with another number of ranks than candidates",
    "rank": "with something that is not a rank",
    "permutation": "whose ranks are not 1 to n, each once",
    "extra": "beyond the last impression",
}
"""What can be wrong with a line, as a message counts it; the first that is found counts."""

DIGITS = 18
"""Longest number that is read."""
LIST = re.compile(rb"\[.*\]")
RANK = re.compile(rb"[1-9][0-9]{0,17}")
ID = re.compile(rb"0|[1-9][0-9]{0,17}")


def parse_lines(
    text: bytes, ids: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int32] | None:
    """Return the ranks of some lines, or None if one of them has something wrong.

    What is not a digit must be a space, a bracket, as many commas as the candidates want, a bracket
    and a line end; between these must be numbers, or nothing where nothing belongs.

    Args:
        text: Whole lines.
        ids: The id of each line ``[lines]``.
        lengths: Candidates of each line ``[lines]``.
    """
    assert (lengths > 0).all()  # a line of behaviors.tsv without candidates is not read
    letters = np.frombuffer(text, dtype=np.uint8)
    ends = np.flatnonzero(letters - np.uint8(ord("0")) > 9)  # where a number or nothing ends
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
    """Return the numbers whose digits end before ``ends``; -1 for one that is not written well."""
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
    """Tell if the ranks of every line are 1 to n, each once."""
    if (ranks < 1).any() or (ranks > np.repeat(lengths, lengths)).any():
        return False
    seen = np.zeros(len(ranks), dtype=bool)
    seen[np.repeat(to_offsets(lengths)[:-1], lengths) + ranks - 1] = True
    return bool(seen.all())


def kind_of(line: bytes, number: int, num_candidates: int) -> str | None:
    """Return which of ``KINDS`` a line's mistake is; None if there is none."""
    found, space, ranks = line.partition(b" ")
    if not line.strip():
        return "blank"
    if not (space and LIST.fullmatch(ranks)) or line.startswith(BOM) or b"\r" in line:
        return "form"
    if found != b"%d" % number:
        return "id"
    words = _words(ranks)
    if len(words) != num_candidates:
        return "count"
    if not all(map(RANK.fullmatch, words)):
        return "rank"
    if len(set(words)) == num_candidates == max(map(int, words), default=0):
        return None
    return "permutation"


def explain_line(kind: str, line: bytes, number: int, num_candidates: int) -> str:
    """Say what a line's mistake is: what stands there and what should."""
    found, _, ranks = line.partition(b" ")
    words = _words(ranks)
    if kind == "blank":
        return f"blank, where impression {number} belongs"
    if kind == "id":
        return f"the id is {_short(found)}, but behaviors.tsv has {number} there"
    if kind == "count":
        return f"{len(words):,} ranks for {num_candidates:,} candidates"
    if kind == "rank":
        word = next(word for word in words if not RANK.fullmatch(word))
        return f"the rank {_short(word)!r} is not a whole number from 1 to {num_candidates}"
    if kind == "permutation":
        return _not_a_permutation(list(map(int, words)))
    if line.startswith(BOM):
        return "a byte order mark before the id"
    if b"\r" in line:
        return "a carriage return inside the line"
    return f"not like {number} [r1,r2,...]"


def _words(ranks: bytes) -> list[bytes]:
    """Return what stands between the brackets and commas."""
    return ranks[1:-1].split(b",") if len(ranks) > 2 else []


def _not_a_permutation(ranks: list[int]) -> str:
    """Say why ranks from 1 are not 1 to n, each once."""
    missing = min(set(range(1, len(ranks) + 1)) - set(ranks))
    above = next((rank for rank in ranks if rank > len(ranks)), None)
    if above is not None:
        return f"the rank {above} of {len(ranks)} candidates, while {missing} is missing"
    twice, times = Counter(ranks).most_common(1)[0]
    return f"the rank {twice} stands {times} times, while {missing} is missing"


def id_of(line: bytes, kind: str, expected: int) -> int:
    """Return the id that a bad line stands for, -1 if it cannot be told."""
    if kind not in ("id", "extra", "blank"):  # what follows the id is wrong, or near enough
        return expected
    found = line.partition(b" ")[0]
    return int(found) if ID.fullmatch(found) else -1


def _short(word: bytes) -> str:
    text = word[:40].decode(errors="replace")
    return text if len(word) <= 20 else f"{text[:17]}..."
