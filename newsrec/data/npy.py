"""Writes a ``.npy`` file piece by piece."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class NpyWriter:
    """Writes a ``.npy`` file piece by piece, so that the whole array is never in memory.

    A row has ``width`` values; None makes the array one-dimensional.
    """

    def __init__(self, path: Path, dtype: DTypeLike, width: int | None = None) -> None:
        self.dtype = np.dtype(dtype)
        self.width = width
        self.length = 0
        self.last = 0
        """The last value (or row) written."""
        self.file = path.open("wb")
        self._header()

    def write(self, values: NDArray[Any]) -> None:
        """Append values, or rows of values."""
        if len(values):
            self.file.write(np.ascontiguousarray(values, dtype=self.dtype).view(np.uint8).data)
            self.length += len(values)
            self.last = values[-1]

    def close(self) -> None:
        """Write the final length into the header, where numpy leaves room for it."""
        self.file.seek(0)
        self._header()
        self.file.close()

    def _header(self) -> None:
        shape = (self.length,) if self.width is None else (self.length, self.width)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)
