"""Lowers the scores of candidates that repeat a click, in a whole split."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import Split
from newsrec.errors import UserError
from newsrec.reranking import check_threshold, lower, repeats


class Repeats(NamedTuple):
    """When a candidate is a repeat, and what its score becomes; see ``newsrec.reranking``."""

    threshold: float
    """Smallest cosine of the vectors of a candidate and of a clicked news item."""
    penalty: float | None = None
    """What is subtracted from the score of a repeat; None ranks repeats last."""

    @classmethod
    def of(cls, threshold: float | None, penalty: float | None) -> "Repeats | None":
        """Return the repeats that two options describe; None if neither is given.

        Raises:
            UserError: If an option has an invalid value, or there is a penalty but no threshold.
        """
        if threshold is None:
            if penalty is not None:
                raise UserError(
                    f"--repeat_penalty is {penalty}, but --repeat_threshold is not set. Give "
                    "--repeat_threshold, too: the smallest cosine with a clicked news item."
                )
            return None
        check_threshold(threshold, "--repeat_threshold")
        if penalty is not None and not 0 < penalty < float("inf"):
            raise UserError(
                f"--repeat_penalty is {penalty}; it must be above 0. Leave it out to rank repeats "
                "last."
            )
        return cls(threshold, penalty)

    def find(self, split: Split, news: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return whether each candidate of a split repeats a click ``[candidates]``.

        A candidate is compared with the user's whole history; unknown news repeat nothing.

        Args:
            split: The split.
            news: News vectors, one per catalogue row ``[news, dim]``.
        """
        offsets, values = split.candidates.offsets, np.asarray(split.candidates.values)
        read, clicked = split.histories.offsets, split.histories.values
        found = np.zeros(len(values), dtype=np.bool_)
        for impression, history in enumerate(np.asarray(split.history)):
            shown = slice(offsets[impression], offsets[impression + 1])
            clicks = clicked[read[history] : read[history + 1]]
            found[shown] = repeats(news, values[shown], clicks, self.threshold)
        return found & (values >= FIRST_NEWS)

    def apply(
        self,
        scores: NDArray[np.floating],
        repeated: NDArray[np.bool_],
        offsets: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Return the scores of a split, with the scores of repeats lowered ``[candidates]``.

        Args:
            scores: Scores in the order of the file ``[candidates]``.
            repeated: As ``find`` returns it ``[candidates]``.
            offsets: Where each impression's candidates begin, and the end ``[impressions + 1]``.
        """
        lowered = np.array(scores, dtype=np.float64)
        for impression in np.unique(np.searchsorted(offsets, np.flatnonzero(repeated), "right")):
            shown = slice(offsets[impression - 1], offsets[impression])
            lowered[shown] = lower(lowered[shown], repeated[shown], self.penalty)
        return lowered

    def described(self, number: int) -> dict[str, Any]:
        """Return the field ``repeats`` of ``metrics.json``, with the number of repeats."""
        penalty = "last" if self.penalty is None else self.penalty
        return {"threshold": self.threshold, "penalty": penalty, "candidates": number}
