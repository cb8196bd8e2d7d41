"""Tables of users and histories: many impressions share one, so each is stored once."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.data.mixing import mix
from newsrec.data.npy import NpyWriter
from newsrec.data.ragged import Ragged, to_offsets


class Users:
    """Collects the ids of all users, and the row of each impression's user."""

    def __init__(self) -> None:
        self.ids = [pa.array([], pa.string())]
        self.rows = [np.zeros(0, np.int64)]
        self.num_ids = 0

    def add(self, users: pa.DictionaryArray) -> None:
        """Add the users of some more impressions."""
        self.ids.append(users.dictionary)
        self.rows.append(users.indices.to_numpy() + np.int64(self.num_ids))
        self.num_ids += len(users.dictionary)

    def finish(self) -> tuple[pa.Array, NDArray[np.int32]]:
        """Return the distinct ids, and the row of each impression's user ``[impressions]``."""
        ids = pa.concat_arrays(self.ids).dictionary_encode()
        return ids.dictionary, ids.indices.to_numpy()[np.concatenate(self.rows)]


class Histories:
    """Writes each distinct history once.

    Histories are compared by a 64-bit hash of their news and positions. For the 2 million histories
    of MIND-large the chance that any two are confused is 1 in 10 million.
    """

    def __init__(self, values: NpyWriter, offsets: NpyWriter) -> None:
        self.values = values
        self.offsets = offsets
        self.hashes = np.zeros(0, dtype=np.uint64)
        """Hashes of all histories written so far, sorted."""
        self.rows = np.zeros(0, dtype=np.int64)
        """Row of the history with each hash."""

    def add(self, histories: Ragged) -> NDArray[np.int32]:
        """Write the histories that are new; return the row of each history ``[impressions]``."""
        hashes, first, inverse = np.unique(
            hash_rows(histories), return_index=True, return_inverse=True
        )
        place = np.searchsorted(self.hashes, hashes)
        known = np.zeros(len(hashes), dtype=bool)
        inside = place < len(self.hashes)
        known[inside] = self.hashes[place[inside]] == hashes[inside]
        new = np.flatnonzero(~known)
        new = new[np.argsort(first[new])]  # in the order of the file
        rows = np.empty(len(hashes), dtype=np.int64)
        rows[known] = self.rows[place[known]]
        rows[new] = len(self.rows) + np.arange(len(new))
        added = histories.take(first[new])
        self.values.write(added.values)
        self.offsets.write(self.offsets.last + added.offsets[1:])
        new.sort()
        self.hashes = np.insert(self.hashes, place[new], hashes[new])
        self.rows = np.insert(self.rows, place[new], rows[new])
        return rows[inverse].astype(np.int32)


def hash_rows(rows: Ragged) -> NDArray[np.uint64]:
    """Return a hash of each row's values and their positions; 0 for an empty row ``[rows]``."""
    place = np.arange(len(rows.values)) - np.repeat(rows.offsets[:-1], rows.lengths)
    state = (rows.values.astype(np.uint64) << np.uint64(32)) + place.astype(np.uint64)
    sums = to_offsets(mix(state).view(np.int64))
    return np.diff(sums[rows.offsets]).view(np.uint64)
