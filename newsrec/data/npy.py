"""A ``.npy`` file that grows."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class NpyWriter:
    """A ``.npy`` file that grows, so that no array is ever whole in memory.

    Args:
        path: The file.
        dtype: Kind of its values.
        width: Values of a row; None makes the array one-dimensional.
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
        """Append values, or rows of them."""
        if len(values):
            self.file.write(np.ascontiguousarray(values, dtype=self.dtype).view(np.uint8).data)
            self.length += len(values)
            self.last = values[-1]

    def close(self) -> None:
        """Write the length into the header, which numpy leaves room for."""
        self.file.seek(0)
        self._header()
        self.file.close()

    def _header(self) -> None:
        shape = (self.length,) if self.width is None else (self.length, self.width)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)
