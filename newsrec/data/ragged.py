"""Rows of different lengths in one flat array: used for histories, candidates and tokens."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Ragged(NamedTuple):
    """Compressed sparse rows: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``."""

    values: NDArray[Any]
    """All rows joined ``[values, ...]``."""
    offsets: NDArray[np.int64]
    """Where each row begins, and the end ``[rows + 1]``."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Length of each row ``[rows]``."""
        return np.diff(self.offsets)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    def take(self, rows: NDArray[np.integer], last: int | None = None) -> "Ragged":
        """Return some rows in the given order, cut to their last ``last`` values, if not None."""
        places = self.places(rows, last)
        return Ragged(np.asarray(self.values)[places.values], places.offsets)

    def places(self, rows: NDArray[np.integer], last: int | None = None) -> "Ragged":
        """Return the positions in ``values`` of the values that ``take`` returns.

        The same positions index every array that is parallel to ``values``, such as labels.
        """
        bounds = np.asarray(self.offsets)  # a memory map's own indexing is slow
        ends = bounds[1:][rows]
        lengths = ends - bounds[:-1][rows]
        if last is not None:
            lengths = np.minimum(lengths, last)
        offsets = to_offsets(lengths)
        places = np.repeat(ends - lengths - offsets[:-1], lengths)
        places += np.arange(len(places))
        return Ragged(places, offsets)

    def between(self, start: int, stop: int) -> "Ragged":
        """Return rows ``start`` to ``stop``; values are shared, from row 0 also the offsets."""
        offsets = self.offsets[start : stop + 1]
        values = self.values[offsets[0] : offsets[-1]]
        return Ragged(values, offsets - offsets[0] if offsets[0] else offsets)

    def select(self, keep: NDArray[np.bool_]) -> "Ragged":
        """Return the rows without those values where ``keep`` ``[values]`` is False."""
        kept_before = to_offsets(keep)
        return Ragged(self.values[keep], kept_before[self.offsets])

    def pad(self) -> NDArray[Any]:
        """Return one array, shorter rows padded at the end with zeros ``[rows, longest, ...]``."""
        lengths = self.lengths
        shape = (self.num_rows, int(lengths.max(initial=0)), *self.values.shape[1:])
        padded = np.zeros(shape, dtype=self.values.dtype)
        padded[np.arange(shape[1]) < lengths[:, None]] = self.values
        return padded

    def owners(self) -> NDArray[np.int64]:
        """Return the row that each value belongs to ``[values]``."""
        return np.repeat(np.arange(self.num_rows), self.lengths)


def to_offsets(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """Return row offsets for rows of the given lengths ``[rows + 1]``."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
