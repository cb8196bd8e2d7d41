"""News vectors as a folder stores them: float32, float16, or int8 with one scale for each row.

Scores are made in float32 from the stored vectors, block by block, so that memory is bounded. They
are exact for what is stored: float16 and int8 round when they are written, and never again.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsrec.errors import UserError

TYPES = ("float32", "float16", "int8")
"""Types in which a folder may store the vectors of its news."""

NUMBERS_AT_ONCE = 2**19
"""Numbers that are decoded at once, few enough for a processor's cache."""

MOST = 127
"""Largest number of int8 that is used, so that the range is symmetric."""

ALL = slice(None)


@dataclass(frozen=True)
class Packed:
    """News vectors in float16 or int8, which can be read like an array of float32.

    Indexing decodes: ``packed[rows]`` is an array of float32, whatever ``rows`` is.
    """

    values: NDArray[Any]
    """Stored numbers, float16 or int8 ``[news, dim]``."""
    scales: NDArray[np.float32] | None = None
    """Factor of each row, with int8 ``[news]``."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the decoded vectors."""
        return self.values.shape

    def __getitem__(self, rows: Any) -> NDArray[np.float32]:
        numbers = np.asarray(self.values[rows])
        found = np.empty(numbers.shape, dtype=np.float32)
        decode(numbers, found)
        if self.scales is not None:
            found *= np.asarray(self.scales[rows])[..., None]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[ALL].astype(dtype or np.float32, copy=False)

    def part(self, rows: slice) -> "Packed":
        """Return some of the rows, without decoding or copying them."""
        return Packed(self.values[rows], None if self.scales is None else self.scales[rows])


Vectors = NDArray[np.float32] | Packed
"""News vectors ``[news, dim]`` of any type in ``TYPES``."""


def part(vectors: Vectors, rows: slice) -> Vectors:
    """Return some rows of vectors, without decoding or copying them."""
    return vectors.part(rows) if isinstance(vectors, Packed) else vectors[rows]


def blocks(vectors: Vectors) -> Iterator[slice]:
    """Yield the rows of vectors in blocks of about ``NUMBERS_AT_ONCE`` numbers."""
    step = max(1, NUMBERS_AT_ONCE // max(1, vectors.shape[1]))
    for start in range(0, len(vectors), step):
        yield slice(start, min(start + step, len(vectors)))


def products(
    users: NDArray[np.float32], news: Vectors, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return the dot products of user vectors ``[users, dim]`` with news ``[users, news]``.

    Args:
        users: User vectors.
        news: News vectors.
        out: Array for the result.
    """
    if not isinstance(news, Packed):
        found: NDArray[np.float32] = np.matmul(users, news.T, out=out)
        return found
    if out is None:
        out = np.empty((len(users), len(news)), dtype=np.float32)
    buffer = np.empty((max(1, NUMBERS_AT_ONCE // max(1, news.shape[1])), news.shape[1]), np.float32)
    for rows in blocks(news):
        decoded = buffer[: rows.stop - rows.start]
        decode(news.values[rows], decoded)
        np.matmul(users, decoded.T, out=out[:, rows])
    if news.scales is not None:  # once for each score, instead of once for each number
        out *= news.scales
    return out


def decode(values: NDArray[Any], out: NDArray[np.float32]) -> None:
    """Write stored numbers into an array of float32, without their rows' scales.

    numpy converts float16 one by one; done with the bits of the whole array, it takes a tenth of
    the time. Infinity and NaN, which no folder holds, would become other numbers.
    """
    if values.dtype != np.float16:
        np.copyto(out, values, casting="unsafe")
        return
    bits = out.view(np.int32)
    np.copyto(bits, values.view(np.int16))  # copies the sign into the upper half
    bits <<= 13  # to the places of float32's exponent and fraction
    bits &= np.int32(-0x70000001)  # clears the copies of the sign that do not belong there
    out *= np.float32(2.0**112)  # the exponents differ by 127 - 15


def pack(vectors: NDArray[np.float32], kind: str) -> Vectors:
    """Return vectors in another type.

    A number in int8 is at most half its row's scale away from the original; the scale is a 127th of
    the row's largest number.

    Args:
        vectors: Vectors ``[news, dim]``.
        kind: One of ``TYPES``.

    Raises:
        UserError: If a number is too large for float16.
    """
    if kind == "float32":
        return vectors
    if kind == "float16":
        largest = float(np.abs(vectors).max(initial=0))
        if largest > np.finfo(np.float16).max:
            raise UserError(
                f"A news vector holds {largest:.3g}, and float16 ends at "
                f"{np.finfo(np.float16).max:,.0f}. Choose --vectors int8 or float32."
            )
        return Packed(vectors.astype(np.float16))
    assert kind == "int8"
    values = np.empty(vectors.shape, np.int8)
    scales = np.empty(len(vectors), np.float32)
    for rows in blocks(vectors):
        block = np.asarray(vectors[rows], np.float32)
        scale = np.abs(block).max(axis=1, initial=0) / np.float32(MOST)
        scale[scale < np.finfo(np.float32).tiny] = 0  # such numbers cannot be divided by exactly
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
        values[rows] = np.clip(np.rint(block * inverse[:, None]), -MOST, MOST)
        scales[rows] = scale
    return Packed(values, scales)


def concatenate(parts: list[Vectors]) -> Vectors:
    """Join vectors of one type ``[news, dim]``."""
    return _map(lambda arrays: np.concatenate(arrays), parts)


def take(vectors: Vectors, rows: Any) -> Vectors:
    """Return rows of vectors in their type, as a copy."""
    return _map(lambda arrays: arrays[0][rows], [vectors])


def mean(vectors: Vectors) -> NDArray[np.float32]:
    """Return the mean of vectors ``[dim]``; zeros if there are none."""
    total = np.zeros(vectors.shape[1], np.float64)
    for rows in blocks(vectors):
        total += vectors[rows].sum(axis=0, dtype=np.float64)
    return (total / max(len(vectors), 1)).astype(np.float32)


def finite_rows(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return whether each row of float32 or float16 is free of NaN and infinity ``[news]``."""
    found: NDArray[np.bool_]
    if values.dtype == np.float16:  # whose sum could overflow, and is slow
        found = (values.view(np.uint16) & 0x7FFF).max(axis=1, initial=0) < 0x7C00
    else:
        found = np.isfinite(values.sum(axis=1))  # NaN and infinity stay in a sum
    return found


def kind_of(vectors: Vectors) -> str:
    """Return the type of vectors, one of ``TYPES``."""
    return vectors.values.dtype.name if isinstance(vectors, Packed) else "float32"


def _map(join: Callable[[list[NDArray[Any]]], NDArray[Any]], parts: list[Vectors]) -> Vectors:
    packed = [vectors for vectors in parts if isinstance(vectors, Packed)]
    if not packed:
        return join([vectors for vectors in parts if not isinstance(vectors, Packed)])
    assert len(packed) == len(parts), "vectors of two types"
    scales = [vectors.scales for vectors in packed if vectors.scales is not None]
    return Packed(join([vectors.values for vectors in packed]), join(scales) if scales else None)
