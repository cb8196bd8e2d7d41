"""Writes the arrays of impressions; ``newsrec.data.compile`` reads the files."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike, NDArray

from newsrec.data.npy import NpyWriter
from newsrec.data.ragged import Ragged
from newsrec.data.readers.base import LISTED, BadLine, Impressions
from newsrec.data.tables import Histories, Users

ARRAYS: dict[str, DTypeLike] = {
    "impression_id": np.int64,
    "user": np.int32,
    "time": "datetime64[s]",
    "history": np.int32,
    "candidate_offsets": np.int64,
    "candidate_values": np.int32,
    "labels": np.int8,
    "history_offsets": np.int64,
    "history_values": np.int32,
}
"""Type of each array. An array has the rows of all splits joined; all splits share one table of
histories."""
USERS = "users.arrow"


class Written(NamedTuple):
    """Counts and bad lines of impressions whose arrays were written."""

    counts: dict[str, int]
    bad: list[BadLine]
    """The first bad lines."""
    num_bad: int

    @classmethod
    def total(cls, some: "Iterable[Written]", on_bad_line: str) -> "Written":
        """Add up counts and bad lines; stop at the first bad line if ``on_bad_line`` is error."""
        counts: Counter[str] = Counter()
        bad: list[BadLine] = []
        num_bad = 0
        for written in some:
            bad = sorted(bad + written.bad, key=lambda line: line.line)[:LISTED]
            num_bad += written.num_bad
            if num_bad and on_bad_line == "error":
                break
            counts.update(written.counts)
        return cls(dict(counts), bad, num_bad)


class ImpressionArrays:
    """Writes the arrays of impressions into a folder, in pieces.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._arrays = {n: NpyWriter(folder / f"{n}.npy", kind) for n, kind in ARRAYS.items()}
        for name in ("candidate_offsets", "history_offsets"):
            self._arrays[name].write(np.zeros(1))
        arrays = self._arrays
        self._histories = Histories(arrays["history_values"], arrays["history_offsets"])
        self._users = Users()

    def add(self, block: Impressions) -> Written:
        """Append a block of impressions."""
        candidates, labels = block.candidates, block.labels
        if labels is None:
            labels = np.zeros(len(candidates.values), dtype=np.int8)
        self._write(
            impression_id=block.impression_id,
            time=block.time,
            history=self._histories.add(block.histories),
            candidate_values=candidates.values,
            labels=labels,
            candidate_offsets=candidates.offsets[1:],
        )
        self._users.add(block.users)
        return Written(block.counts(), block.rows.bad, block.rows.num_bad)

    def join(self, part: Path) -> None:
        """Append the arrays that another ``ImpressionArrays`` wrote into the folder ``part``."""
        found = {name: np.load(part / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
        rows = self._histories.add(Ragged(found["history_values"], found["history_offsets"]))
        self._write(
            history=rows[found["history"]],
            candidate_offsets=found["candidate_offsets"][1:],
            **{n: found[n] for n in ("impression_id", "time", "candidate_values", "labels")},
        )
        users = read_table(part / USERS)["user_id"].combine_chunks()
        self._users.add(pa.DictionaryArray.from_arrays(pa.array(found["user"]), users))

    def finish(self) -> NDArray[np.int32]:
        """Write the users; return the row of each impression's user ``[impressions]``."""
        users, user = self._users.finish()
        self._arrays["user"].write(user)
        write_table(self.folder / USERS, pa.table({"user_id": users}))
        return user

    def close(self) -> None:
        """Close the files."""
        for array in self._arrays.values():
            array.close()

    def _write(self, candidate_offsets: NDArray[np.int64], **arrays: NDArray[Any]) -> None:
        for name, values in arrays.items():
            self._arrays[name].write(values)
        offsets = self._arrays["candidate_offsets"]
        offsets.write(offsets.last + candidate_offsets)


def read_table(path: Path) -> pa.Table:
    """Return a table that ``write_table`` wrote, as a memory map."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as an Arrow file."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
