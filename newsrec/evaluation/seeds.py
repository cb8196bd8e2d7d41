"""How sure a difference is when each side was trained with several seeds.

A mean over impressions moves with the users who happened to be asked and with the seed of the
training. Here both count: the error of the users, as a sandwich over users gives it, and the spread
of the runs on each side, as Welch's t-test takes it, are added up, each known as well as its number
of users or runs allows (Welch and Satterthwaite's degrees of freedom).

The limits: the seeds' spread is taken for normal, as three runs cannot show it to be otherwise, and
from three runs it is itself known to within a factor of three or so. Runs are independent of each
other, also across the sides: the same seed on both pairs nothing. What a seed does to each user
apart is counted on both accounts, which widens the interval a little. In simulations 95 % intervals
held the truth in 93 to 97 % of cases with two runs or more on both sides; against what has no seed,
in 92 % with three and in 88 % with two.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from newsrec.evaluation.intervals import user_sums


class SeedEstimate(NamedTuple):
    """An estimate that covers the choice of users and the training seeds."""

    low: float
    high: float
    p: float
    """Two-sided, of no difference."""
    freedom: float
    """Degrees of freedom of its t-distribution: how much it knows of its own error."""


def seed_interval(
    a: NDArray[np.float64], b: NDArray[np.float64], users: NDArray, level: float = 0.95
) -> SeedEstimate:
    """Return the interval and p of the mean of ``a`` less that of ``b``, over users and seeds.

    Args:
        a: Values of each run on one side, none NaN ``[runs, impressions]``. A single run adds no
            spread: use one only for a deterministic scorer.
        b: The other side's, of the same impressions ``[runs, impressions]``.
        users: Whose impression it is, any integers ``[impressions]``.
        level: How often such intervals hold the truth.

    Returns:
        The estimate; NaN if all impressions are of one user.
    """
    difference = a.mean(axis=0) - b.mean(axis=0)
    variances, freedoms = [clustered_error(difference, users) ** 2], [len(np.unique(users)) - 1]
    for side in (a, b):
        if len(side) > 1:
            variances.append(side.mean(axis=1).var(ddof=1) / len(side))
            freedoms.append(len(side) - 1)
    variance = np.array(variances)
    total, mean = float(variance.sum()), float(difference.mean())
    if np.isnan(total):
        return SeedEstimate(np.nan, np.nan, np.nan, np.nan)
    if total == 0:
        return SeedEstimate(mean, mean, 1.0 if mean == 0 else 0.0, np.inf)
    share = variance / total
    freedom = float(1 / (share**2 / np.array(freedoms)).sum())
    error = total**0.5
    reach = float(stdtrit(freedom, (1 + level) / 2)) * error  # Student's quantile
    p = 2 * float(stdtr(freedom, -abs(mean) / error))
    return SeedEstimate(mean - reach, mean + reach, p, freedom)


def clustered_error(values: NDArray[np.float64], users: NDArray) -> float:
    """Return the standard error of a mean over impressions, clustered by user.

    Args:
        values: One value per impression, none NaN ``[impressions]``.
        users: Whose impression it is, any integers ``[impressions]``.

    Returns:
        The error; NaN if there are fewer than two users.
    """
    sums, counts = user_sums(values[None], users)
    number = len(sums)
    if number < 2:
        return float("nan")
    residuals = sums - values.mean() * counts
    return float(np.sqrt(number / (number - 1) * (residuals**2).sum()) / len(values))
