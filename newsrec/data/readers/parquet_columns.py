"""Turns Arrow columns of any sensible type into ids, texts, times and lists."""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as types
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS, UNKNOWN_NEWS
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.readers.base import Rows
from newsrec.data.readers.behaviors import is_time, times
from newsrec.data.readers.parquet_checks import is_list, is_text

SCALES = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
"""Ticks per second of each unit of time."""
LARGEST_IN_SECONDS = 10**11
"""Whole numbers up to this are seconds since 1970, up to 1000 times this milliseconds, and so on:
as seconds it is the year 5138, as milliseconds 1973."""
LONGEST_TEXT = 1 << 20
"""Most bytes of a text or an id."""
NO_TIME = "not a time such as 2019-11-11 09:05:58"
SHOWN = 100
"""Most bytes of a text, and most values of a list, that a message is made from."""
FIRST_SECOND, END_SECOND = (
    int(np.datetime64(year, "s").astype(np.int64)) for year in ("1000", "3000")
)


def as_text(values: pa.Array) -> pa.Array:
    """Return ids or texts as strings; null where a value is null or not UTF-8 ``[rows]``.

    Whole numbers become decimal digits, 16 bytes of fixed size a UUID, other bytes of fixed size
    hexadecimal digits.
    """
    if types.is_dictionary(values.type):
        return as_text(values.dictionary).take(values.indices)
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if types.is_integer(values.type):
        return values.cast(pa.string())
    if types.is_fixed_size_binary(values.type):
        write = _uuid if values.type.byte_width == 16 else bytes.hex
        texts = [None if value is None else write(value) for value in values.to_pylist()]
        return pa.array(texts, pa.string())
    raw = values.cast(pa.binary())
    try:
        return raw.cast(pa.string())  # validates, no copy
    except pa.ArrowInvalid:
        return pa.array([_decoded(value) for value in raw.to_pylist()], pa.string())


def is_filled(texts: pa.Array) -> NDArray[np.bool_]:
    """Return whether each text is neither null nor empty ``[rows]``."""
    return as_bools(pc.fill_null(pc.greater(pc.binary_length(texts), 0), False))


def as_bools(values: pa.Array) -> NDArray[np.bool_]:
    """Return booleans without nulls as an array."""
    found: NDArray[np.bool_] = values.to_numpy(zero_copy_only=False)
    return found


def as_seconds(values: pa.Array) -> tuple[NDArray[np.datetime64], NDArray[np.bool_]]:
    """Return times in whole seconds, those with a zone in UTC, and which of them are times.

    Args:
        values: Timestamps or dates of any unit; text as ISO 8601 or MIND write times; or whole
            numbers: seconds, milliseconds, microseconds or nanoseconds since 1970, by their size.
    """
    kind = values.type
    if is_text(kind):
        encoded = values if types.is_dictionary(kind) else values.dictionary_encode()
        seconds, good = _parse_times(as_text(encoded.dictionary))
        code = encoded.indices.fill_null(len(seconds)).to_numpy()
        return _checked(np.append(seconds, 0)[code], np.append(good, False)[code])
    good = as_bools(values.is_valid())
    if types.is_date(kind):
        values = values.cast(pa.timestamp("s"))
    elif types.is_integer(kind):
        number = values.cast(pa.int64(), safe=False).fill_null(0).to_numpy()
        size = np.searchsorted(LARGEST_IN_SECONDS * 1000 ** np.arange(3), number, side="left")
        good &= number >= 0  # also numbers of 64 bits without a sign that are too large
        return _checked(number // 1000**size, good)
    ticks = values.cast(pa.int64()).fill_null(0).to_numpy()
    return _checked(ticks // SCALES[values.type.unit], good)


class Lists(NamedTuple):
    """A column of lists."""

    values: pa.Array
    """All values joined."""
    offsets: NDArray[np.int64]
    """Where each list begins, and the end ``[rows + 1]``; null is an empty list."""

    @classmethod
    def of(cls, column: pa.Array) -> "Lists":
        """Split a column of lists of any form, or of nulls alone."""
        if types.is_null(column.type):
            column = column.cast(pa.list_(pa.string()))
        lengths = pc.fill_null(pc.list_value_length(column), 0)
        return cls(pc.list_flatten(column), to_offsets(lengths.to_numpy(zero_copy_only=False)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of each list ``[rows]``."""
        return np.diff(self.offsets)

    def rows_with(self, wrong: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which lists have a value where ``wrong`` ``[values]`` is True ``[rows]``."""
        before = to_offsets(wrong)
        found: NDArray[np.bool_] = np.diff(before[self.offsets]) > 0
        return found


class Lookup:
    """Finds the catalogue rows of news ids.

    Each distinct id is looked up once, as text, so ids of different types can meet.

    Args:
        ids: News ids of the real news.
    """

    def __init__(self, ids: pa.Array) -> None:
        self.ids = ids
        self._last: tuple[pa.Array, NDArray[np.int32]] | None = None

    def find(self, values: pa.Array) -> NDArray[np.int32]:
        """Return rows: ``UNKNOWN_NEWS`` if an id is unknown, 0 if it is null or empty."""
        encoded = values if types.is_dictionary(values.type) else values.dictionary_encode()
        rows = self._rows(encoded.dictionary)
        code = encoded.indices.fill_null(len(rows) - 1) if encoded.null_count else encoded.indices
        found: NDArray[np.int32] = rows[code.to_numpy()]
        return found

    def known(self, lists: Lists) -> tuple[Ragged, int]:
        """Return the known news of each list, and the number of unknown news."""
        rows = self.find(lists.values)
        known = rows >= FIRST_NEWS
        unknown = int((rows == UNKNOWN_NEWS).sum())
        return Ragged(rows, lists.offsets).select(known), unknown

    def _rows(self, distinct: pa.Array) -> NDArray[np.int32]:
        """Return the row of each distinct id, and 0 at the end, for null."""
        last = self._last
        if last is not None and last[0].equals(distinct):  # blocks of a file share most ids
            return last[1]
        texts = as_text(distinct)
        found = pc.index_in(texts, value_set=self.ids)
        rows = found.fill_null(0).to_numpy() + np.int32(FIRST_NEWS)
        rows[as_bools(found.is_null())] = UNKNOWN_NEWS
        # An id that is not UTF-8 is null as text, but it is an id that no news item has.
        rows[as_bools(pc.fill_null(pc.equal(texts, ""), False))] = 0
        rows[as_bools(distinct.is_null())] = 0
        rows = np.append(rows, np.int32(0))
        self._last = distinct, rows
        return rows


def is_short(column: pa.Array) -> NDArray[np.bool_]:
    """Return whether texts are not too long; a small file can have a long one in every row."""
    if not types.is_dictionary(column.type) or not is_text(column.type):
        return np.ones(len(column), dtype=bool)
    long = pc.greater(pc.binary_length(column.dictionary), LONGEST_TEXT)
    return ~as_bools(pc.fill_null(long.take(column.indices), False))


def too_long() -> str:
    """Return the problem of a text that is not short."""
    return f"over {LONGEST_TEXT >> 20} MB of text"


def shown(rows: Rows, name: str) -> Callable[[int], str]:
    """Return a function that shows the value of a row, even if it is long or not UTF-8."""

    def show(row: int) -> str:
        value = rows.table[name][row]
        if is_list(value.type):
            parts = [] if value.values is None else value.values[:SHOWN]
            return " ".join(map(shown_value, parts))
        return shown_value(value)

    return show


def shown_value(value: pa.Scalar) -> str:
    """Return a value as text, even if it is long, not UTF-8, or a time that Python lacks."""
    if is_text(value.type) and value.is_valid:
        value = value.value if types.is_dictionary(value.type) else value
        raw: bytes = value.cast(pa.binary()).as_py()
        return raw[:SHOWN].decode(errors="replace")
    try:
        return str(value.as_py())
    except (OverflowError, ValueError):  # a time that Python's datetime cannot hold
        return str(value.cast(pa.int64()).as_py())


def _uuid(value: bytes) -> str:
    return str(uuid.UUID(bytes=value))


def _decoded(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _checked(
    seconds: NDArray[np.int64], good: NDArray[np.bool_]
) -> tuple[NDArray[np.datetime64], NDArray[np.bool_]]:
    good = good & (seconds >= FIRST_SECOND) & (seconds < END_SECOND)
    return np.where(good, seconds, 0).astype("datetime64[s]"), good


def _parse_times(texts: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return seconds since 1970 in UTC, and which texts are times ``[rows]``."""
    good = as_bools(texts.is_valid())
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            ticks = texts.cast(kind).cast(pa.int64()).fill_null(0).to_numpy()
        except pa.ArrowInvalid:  # a text of another form
            continue
        return ticks // SCALES["us"], good
    good = as_bools(pc.fill_null(is_time(texts), False))
    seconds = times(texts).cast(pa.int64()).fill_null(0).to_numpy().copy()
    for row in np.flatnonzero(~good).tolist():
        moment = _moment(texts[row].as_py())
        if moment is not None:
            seconds[row], good[row] = moment, True
    return seconds, good


def _moment(text: str | None) -> int | None:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() // 1)
