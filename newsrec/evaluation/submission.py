"""The leaderboard's file: each impression's candidates as ranks."""

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CHUNK = 50_000


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
    with zipfile.ZipFile(path, "w") as archive, archive.open(entry, "w", force_zip64=True) as file:
        for start in range(0, len(impression_id), CHUNK):
            end = min(start + CHUNK, len(impression_id))
            words = list(map(str, ranks[offsets[start] : offsets[end]].tolist()))
            bounds = (offsets[start : end + 1] - offsets[start]).tolist()
            ids = impression_id[start:end].tolist()
            lines = (
                f"{number} [{','.join(words[first:last])}]\n"
                for number, first, last in zip(ids, bounds[:-1], bounds[1:], strict=True)
            )
            file.write("".join(lines).encode())
