"""Lowers the scores of older candidates by a half-life, given or chosen by the AUC of a split."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.data.dataset import NewsData
from newsrec.errors import UserError
from newsrec.evaluation.ages import ages
from newsrec.evaluation.intervals import mean_interval
from newsrec.metrics import impression_metrics
from newsrec.reranking import age_term

AUTO = "auto"
GRID = (1.0, 2.0, 4.0, 8.0, 16.0, 24.0, 48.0, 96.0, 192.0, 384.0)
"""Half-lives in hours that ``auto`` measures."""


class HalfLife(NamedTuple):
    """Hours in which the odds of a candidate halve; None if the split's AUC is to choose them."""

    hours: float | None

    @classmethod
    def of(cls, value: Any) -> "HalfLife | None":
        """Return what an option says: a number of hours, ``auto``, or None for no half-life.

        Raises:
            UserError: If it says something else.
        """
        if value is None:
            return None
        if value == AUTO:
            return cls(None)
        try:
            hours = float(value)
        except (TypeError, ValueError):
            hours = math.nan
        if not 0 < hours < math.inf:
            raise UserError(
                f"--half_life is {value}; give a number of hours above 0, such as 24, or {AUTO}."
            )
        return cls(hours)

    def check(self, data: NewsData, split: str) -> None:
        """Refuse to choose by the AUC of a split without labels."""
        if self.hours is None and data.split(split).labels is None:
            raise UserError(
                f"--half_life {AUTO} takes the half-life with the highest AUC, and {split} has no "
                "labels. Give --half_life the number of hours that it chose on dev."
            )

    def apply(
        self, data: NewsData, split: str, scores: NDArray[np.floating]
    ) -> tuple[NDArray[np.floating], dict[str, Any]]:
        """Lower the scores of a split, and return them with the field of ``metrics.json``.

        Unknown candidates have no age, and are not lowered.

        Args:
            data: The data.
            split: Name of the split.
            scores: Scores in the order of the file ``[candidates]``.

        Returns:
            The scores, and ``hours``, None if no half-life is better than none; if the AUC chose
            them also ``chosen_on``, and ``measured`` with the AUC of each half-life, its difference
            from the AUC without half-life, and the 95 % interval of the difference, paired by
            impression and clustered by user.
        """
        old = ages(data, split)
        if self.hours is not None:
            return _lowered(scores, old, self.hours), {"hours": self.hours}
        part = data.split(split)
        labels, offsets = part.labels, part.candidates.offsets
        assert labels is not None

        def aucs(scored: NDArray[np.floating]) -> NDArray[np.float64]:
            return impression_metrics(scored, labels, offsets).of("auc")

        plain = aucs(scores)
        found: dict[str, Any] = {"hours": None, "chosen_on": split, "measured": []}
        if np.isnan(plain).all():
            return scores, found
        differences = np.array([aucs(_lowered(scores, old, hours)) - plain for hours in GRID])
        means = np.nanmean(differences, axis=1)
        bounds = mean_interval(differences, part.user)
        for hours, mean, interval in zip(GRID, means.tolist(), bounds.tolist(), strict=True):
            line = {"hours": hours, "auc": float(np.nanmean(plain)) + mean, "auc_difference": mean}
            found["measured"].append(line | {"auc_difference_interval": interval})
        best = int(np.argmax(means))
        if means[best] <= 0:
            return scores, found
        return _lowered(scores, old, GRID[best]), found | {"hours": GRID[best]}


def _lowered(
    scores: NDArray[np.floating], old: NDArray[np.floating], hours: float
) -> NDArray[np.float64]:
    lowered: NDArray[np.float64] = scores + age_term(old, hours)
    return lowered
