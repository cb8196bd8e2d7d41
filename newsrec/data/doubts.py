"""Finds signs of wrongly made splits: repeated impression ids, and splits that overlap in time."""

import itertools
from collections.abc import Sequence

import numpy as np

from newsrec.data.dataset import Split


def doubts(splits: Sequence[Split]) -> list[str]:
    """Return a warning for each split with repeated ids, and for each pair of splits out of order.

    Args:
        splits: Splits in the order in which they should follow each other: train, dev, test.
    """
    found = []
    for split in splits:
        own = np.asarray(split.impression_id)
        if split.counts.get("beyond_accuracy"):  # EB-NeRD gives all of these lists the id 0
            own = own[own != 0]
        ids, counts = np.unique(own, return_counts=True)
        more = len(own) - len(ids)
        if more:
            who = "1 impression has" if more == 1 else f"{more:,} impressions have"
            found.append(
                f"Warning, {split.name}: {who} an id that occurs earlier, "
                f"such as {ids[counts > 1][0]}. If rows were written twice, remove them, since "
                "each counts in every metric; otherwise give each impression its own id."
            )
    for earlier, later in itertools.pairwise(splits):
        last, first = earlier.time.max(), later.time.min()
        if first < last:
            found.append(
                f"Warning: {later.name} begins at {first}, before {earlier.name} ends at {last}. "
                f"{earlier.name} then has clicks made after impressions of {later.name}, and the "
                f"metrics on {later.name} are too high. Cut the splits by time, as MIND's are."
            )
    return found
