"""Confidence interval of a difference when each side was trained with several seeds.

A mean over impressions depends on which users are in the split and on the training seed. The
variance here is the sum of both parts: the clustered (sandwich) variance over users, and the
variance of the runs on each side, as in Welch's t-test. The degrees of freedom combine the numbers
of users and runs (Welch-Satterthwaite).

Limits: The effect of seeds is assumed to be normal, which three runs cannot disprove, and three
runs show its spread only to within a factor of about three. Runs are assumed to be independent,
also across the sides: using the same seed on both sides pairs nothing. An effect of the seed that
differs between users is counted in both parts, which widens the interval a little. In the
simulations of ``tests/test_seeds.py``, 95 % intervals hold the true value in at least 92.5 % of
cases with three runs on both sides, and in at least 89 % with three runs against a scorer without a
seed.
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
    """Two-sided p-value of no difference."""
    freedom: float
    """Degrees of freedom of the t-distribution."""


def seed_interval(
    a: NDArray[np.float64], b: NDArray[np.float64], users: NDArray, level: float = 0.95
) -> SeedEstimate:
    """Return the interval and p of the mean of ``a`` minus the mean of ``b``, over users and seeds.

    Each side has the values of its runs for the same impressions, none NaN ``[runs, impressions]``.
    Use a single run only for a deterministic scorer, because it adds no spread. All is NaN if there
    is only one user.
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
    """Return the standard error of a mean, clustered by user ``[impressions]``; NaN for one."""
    sums, counts = user_sums(values[None], users)
    number = len(sums)
    if number < 2:
        return float("nan")
    residuals = sums - values.mean() * counts
    return float(np.sqrt(number / (number - 1) * (residuals**2).sum()) / len(values))
