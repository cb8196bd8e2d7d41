"""Rules for what may be recommended, and how scores become a list."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from newsrec.errors import UserError
from newsrec.reranking import age_term, check_threshold, in_window, pick
from newsrec.serving.search import Best, top_k
from newsrec.serving.vectors import Vectors

SHORTLIST, SHORTLIST_PER_RESULT, GROWTH = 64, 4, 8
"""News is picked from the best ``max(SHORTLIST, SHORTLIST_PER_RESULT * k)``, and from ``GROWTH``
times as many whenever these are too few to be certain."""


@dataclass(frozen=True)
class Rules:
    """What may be recommended, and how scores become a list.

    Args:
        categories: Categories to recommend from; None allows all.
        exclude: Ids of news that are left out.
        exclude_history: Whether news of the history are left out.
        max_age: Most hours since a news item was published; news without a time are then left out.
        half_life: Hours in which the odds of a news item halve; None: age counts for nothing. News
            without a time are not lowered.
        per_category: Most news of one category; news without a category are not limited.
        near_duplicates: Of two news whose vectors have at least this cosine, only the better one is
            kept; None keeps both.
        skip_repeats: Leave out news whose vector has at least this cosine with the vector of a
            clicked news item; None leaves out none.
        diversity: How much unlike the news before it a news item has to be: 0 ranks by score alone,
            up to 1; see ``newsrec.reranking.pick``.
        calibration: How much the categories of the list have to match those of the user's clicks,
            from 0 to 1; see there. Without clicks, or where none has a category, it changes
            nothing.

    Raises:
        UserError: If a value is invalid; the message names the field.
    """

    categories: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    exclude_history: bool = True
    max_age: float | None = None
    half_life: float | None = None
    per_category: int | None = None
    near_duplicates: float | None = None
    skip_repeats: float | None = None
    diversity: float = 0.0
    calibration: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_age", "half_life"):
            hours = getattr(self, name)
            if hours is not None and not (_is_number(hours) and 0 < hours < math.inf):
                raise UserError(f"{name} is {hours!r}; it is a number of hours, above 0.")
        most = self.per_category
        if most is not None and (
            isinstance(most, bool) or not isinstance(most, int | np.integer) or most < 1
        ):
            raise UserError(f"per_category is {most!r}; it is a number of news, 1 or more.")
        for name in ("near_duplicates", "skip_repeats"):
            if getattr(self, name) is not None:
                check_threshold(getattr(self, name), name)
        for name in ("diversity", "calibration"):
            share = getattr(self, name)
            if not (_is_number(share) and 0 <= share <= 1):
                raise UserError(f"{name} is {share!r}; it is a number from 0 to 1.")

    @property
    def by_score_alone(self) -> bool:
        """Whether the best news items are those with the highest scores."""
        limited = self.per_category is not None or self.near_duplicates is not None
        return not (limited or self.diversity or self.calibration)

    @property
    def by_age(self) -> bool:
        """Whether the ages of news decide on a list."""
        return self.half_life is not None or self.max_age is not None

    @property
    def by_category(self) -> bool:
        """Whether the categories of news decide on a list."""
        return self.per_category is not None or self.calibration > 0


def choose(
    scores: NDArray[np.float32],
    vectors: Vectors | None,
    categories: NDArray[np.integer] | None,
    ages: NDArray[np.floating] | None,
    rules: Rules,
    k: int,
    allowed: NDArray[np.bool_] | None = None,
    read: NDArray[np.integer] | None = None,
) -> Best:
    """Return one user's best news under the rules, with their scores after the age term.

    Whoever calls applies ``categories``, ``exclude``, ``exclude_history`` and ``skip_repeats`` to
    ``allowed``; the other rules are applied here. The result is that of picking from all news.

    Args:
        scores: Score of each news item; minus infinity is never chosen ``[news]``.
        vectors: News vectors ``[news, dim]``; needed by ``near_duplicates`` and ``diversity``.
        categories: Number of each category, negative for none ``[news]``; needed by
            ``per_category`` and ``calibration``.
        ages: Age of each news item in hours, NaN where unknown ``[news]``; needed by ``max_age``
            and ``half_life``.
        rules: The rules.
        k: Number of news, 1 or more; fewer are found if fewer may be.
        allowed: False for news that must not be chosen ``[news]``; None allows all.
        read: Numbers of the categories of the user's clicks; needed by ``calibration``.
    """
    scores = np.array(scores, dtype=np.float32)
    if rules.half_life is not None:
        assert ages is not None
        scores += age_term(ages, rules.half_life).astype(np.float32)
    if rules.max_age is not None:
        assert ages is not None
        scores[~in_window(ages, rules.max_age)] = -np.inf
    if allowed is not None:
        scores[~allowed] = -np.inf
    k = min(k, len(scores))
    if rules.by_score_alone or not k:
        rows = top_k(scores, k) if k else np.zeros(0, np.int64)
        return Best(rows, scores[rows])
    target = None
    if rules.calibration > 0 and categories is not None and read is not None and (read >= 0).any():
        counts = np.bincount(read[read >= 0], minlength=int(categories.max(initial=0)) + 1)
        target = counts / counts.sum()
    compared = rules.near_duplicates is not None or rules.diversity > 0
    size = min(len(scores), max(SHORTLIST, SHORTLIST_PER_RESULT * k))
    while True:
        rows = top_k(scores, size)
        whole = len(rows) < size or size == len(scores)
        picked = pick(
            scores[rows],
            k,
            vectors=vectors[rows] if compared and vectors is not None else None,
            categories=None if categories is None else categories[rows],
            per_category=rules.per_category,
            near_duplicates=rules.near_duplicates,
            diversity=rules.diversity,
            calibration=0.0 if target is None else rules.calibration,
            target=target,
            left_out=-np.inf if whole else float(scores[rows[-1]]),
        )
        if whole or len(picked) == k:
            return Best(rows[picked], scores[rows[picked]])
        size = min(len(scores), GROWTH * size)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
