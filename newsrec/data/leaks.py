"""Clicks that a history already holds: a sign that histories know the future."""

from typing import NamedTuple

import numpy as np

from newsrec.data.dataset import Split

MOST_IMPRESSIONS = 4_000
"""Impressions of a split that are looked at; of more, as many are taken, evenly over the file."""
SUSPECT = 0.05
"""Share of clicks in their impression's history above which a warning is due. In MIND .25 % of the
candidates are there; where histories hold the clicks to be predicted, nearly all clicks are."""


class InHistory(NamedTuple):
    """How many candidates of the impressions looked at are in the impression's history."""

    candidates: int
    candidates_inside: int
    clicks: int
    """0 where the split has no labels."""
    clicks_inside: int

    @property
    def suspect(self) -> bool:
        """Whether so many clicks are in the history that it may hold future clicks."""
        return self.clicks_inside > SUSPECT * self.clicks


def count_in_history(split: Split) -> InHistory:
    """Count the candidates, and the clicked ones, that their impression's history holds.

    Args:
        split: Any split. Unknown candidates are in no history.
    """
    rows = np.arange(len(split.history))
    if len(rows) > MOST_IMPRESSIONS:
        rows = rows[np.linspace(0, len(rows) - 1, MOST_IMPRESSIONS).astype(np.int64)]
    places = split.candidates.places(rows)
    candidates = np.asarray(split.candidates.values)[places.values].astype(np.int64)
    clicked = np.zeros(len(candidates), dtype=bool)
    if split.labels is not None:
        clicked = np.asarray(split.labels)[places.values] == 1
    used, owner = np.unique(np.asarray(split.history)[rows], return_inverse=True)
    histories = split.histories.take(used)
    inside = np.isin(  # a history and a news item as one number
        (owner[places.owners()] << 32) + candidates,
        (histories.owners() << 32) + histories.values.astype(np.int64),
    )
    counts = len(candidates), inside.sum(), clicked.sum(), (clicked & inside).sum()
    return InHistory(*map(int, counts))
