"""The leaderboard's file: each impression's candidates as ranks."""

import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

CHUNK = 1 << 20
"""Candidates whose text is made at once; memory depends on this, not on the split."""
LEVEL = 4
"""Of zlib. Its default, 6, takes several times as long for a file a few percent smaller."""


def write_predictions(
    path: Path,
    impression_id: NDArray[np.int64],
    ranks: NDArray[np.integer],
    offsets: NDArray[np.int64],
) -> None:
    """Write ``prediction.zip``: just ``prediction.txt``, a line ``id [r1,r2,...]`` an impression.

    The bytes depend on the arguments alone.

    Args:
        path: Zip file to write.
        impression_id: MIND's number of each impression, in the order of its file ``[impressions]``.
        ranks: Rank of each candidate in its impression, 1 the best ``[candidates]``.
        offsets: Where each impression's candidates begin, and the end ``[impressions + 1]``.
    """
    entry = zipfile.ZipInfo("prediction.txt")  # its date is fixed: 1980-01-01
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    # The public name of this came with Python 3.13, which keeps the earlier one as an alias.
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
    return lines.buffers()[2]  # Arrow keeps strings one behind the other
