"""Users of a data folder, to try the service with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

MOST_USERS, MOST_IMPRESSIONS = 50, 100


class Examples:
    """Users with their history and the impressions they were shown.

    Args:
        users: ``user_id``, ``history`` and ``impressions`` of each user, as ``/examples/{number}``
            answers them.
    """

    def __init__(self, users: Sequence[dict[str, Any]] = ()) -> None:
        self._users = list(users)

    @classmethod
    def of(cls, root: str | Path) -> "Examples":
        """Return users of dev, or of train without it: those with most impressions first.

        Raises:
            DataError: If the folder cannot be read, or has neither.
        """
        from newsrec.data.dataset import open_mind  # imports pandas

        data = open_mind(root)
        split = data.split(
            "train" if "dev" not in data.splits and "train" in data.splits else "dev"
        )
        ids = np.array([None, None, *data.news["news_id"].to_pylist()], dtype=object)
        known = split.histories.lengths[split.history]
        users, first, counts = np.unique(split.user, return_index=True, return_counts=True)
        best = np.lexsort((users, -known[first], -counts))[:MOST_USERS]
        chosen = []
        for user in users[best]:
            rows = np.flatnonzero(split.user == user)
            rows = rows[np.argsort(split.time[rows], kind="stable")][:MOST_IMPRESSIONS]
            history = split.histories.take(split.history[rows[:1]]).values
            impressions = []
            for row in rows:
                shown = slice(*split.candidates.offsets[row : row + 2])
                candidates = split.candidates.values[shown]
                real = ids[candidates] != None  # noqa: E711, an array
                labels = np.zeros(len(real), bool) if split.labels is None else split.labels[shown]
                impressions.append(
                    {
                        "time": f"{split.time[row]}+00:00",
                        "candidates": ids[candidates[real]].tolist(),
                        "clicked": ids[candidates[real & (labels == 1)]].tolist(),
                    }
                )
            name = data.users[int(user)].as_py()
            history = ids[history].tolist()
            chosen.append({"user_id": name, "history": history, "impressions": impressions})
        return cls(chosen)

    def heads(self) -> list[dict[str, Any]]:
        """Return, in the order of their numbers, who the users are."""
        return [
            {
                "user_id": user["user_id"],
                "num_history": len(user["history"]),
                "num_impressions": len(user["impressions"]),
            }
            for user in self._users
        ]

    def get(self, number: int) -> dict[str, Any] | None:
        """Return a user by number, or None if there is none."""
        return self._users[number] if 0 <= number < len(self._users) else None
