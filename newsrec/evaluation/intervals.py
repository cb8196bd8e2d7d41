"""Confidence intervals and tests for a mean over impressions, clustered by user.

The impressions of one user share a history and a taste, so they carry less information than as many
impressions of different users. The bootstrap and the test here resample whole users. They cover
only the choice of users: not the training seed (``newsrec.evaluation.seeds`` does), and not another
day or week of news.

Both process users in blocks and keep only a sum for each resample, so memory does not grow with
users times resamples.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FEWEST_USERS = 20
"""Fewest users for an interval. Fewer show too little of how users differ, so intervals miss the
true value too often."""

BLOCK_WEIGHTS = 1 << 18
"""User weights held at once, few enough for the processor's cache."""

POISSON_STEPS = np.round(
    np.cumsum([math.exp(-1) / math.factorial(k) for k in range(8)]) * (1 << 16)
).astype(np.uint16)
"""Cumulative probabilities of Poisson(1) where its value steps to 1, 2, ..., 8, times 2^16."""

TOGETHER = 8
SIGNS = 1.0 - 2.0 * (np.arange(1 << TOGETHER)[:, None] >> np.arange(TOGETHER) & 1)
"""All combinations of signs for eight users, one for each byte ``[256, 8]``."""


def mean_interval(
    values: ArrayLike,
    users: ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> NDArray[np.float64]:
    """Return bootstrap intervals of means over impressions, resampling whole users.

    Each resample gives every user a Poisson(1) weight, which approaches the usual bootstrap with
    many users; an interval needs a few dozen users to mean anything. The bounds are percentiles of
    the resampled means. All metrics share the weights. The interval covers the choice of users, not
    the training seed: runs that differ only by their seed may have intervals that do not overlap.

    Values are ``[metrics, impressions]`` or ``[impressions]``; an impression with a NaN is left
    out. Users are any integers ``[impressions]``. ``level`` is the share of resamples between the
    bounds. Returns lower and upper bound, NaN if no impression is left ``[metrics, 2]`` or ``[2]``.
    ValueError if the shapes do not fit together.
    """
    values, users = np.asarray(values, dtype=np.float64), np.asarray(users)
    if users.ndim != 1 or values.ndim not in (1, 2) or values.shape[-1] != len(users):
        raise ValueError(f"Values {values.shape} and users {users.shape} do not fit together.")
    rows = np.atleast_2d(values)
    kept = ~np.isnan(rows).any(axis=0)
    if not kept.any():
        return np.full((*values.shape[:-1], 2), np.nan)
    sums = user_sums(rows[:, kept], users[kept])
    rng = np.random.Generator(np.random.SFC64(seed))
    totals = np.zeros((len(sums), resamples))
    step = max(1, BLOCK_WEIGHTS // resamples)
    for first in range(0, sums.shape[1], step):
        block = sums[:, first : first + step]
        totals += block @ _poisson(rng, block.shape[1], resamples)
    drawn = totals[:, totals[-1] > 0]  # with a handful of users, a resample may draw none
    tail = (1 - level) / 2
    bounds = np.quantile(drawn[:-1] / drawn[-1], [tail, 1 - tail], axis=1).T
    return bounds.reshape(*values.shape[:-1], 2)


def paired_interval(
    a: ArrayLike, b: ArrayLike, users: ArrayLike, **options: Any
) -> tuple[float, float, float]:
    """Return the mean of ``a - b`` over impressions and its interval, as ``mean_interval`` does.

    The difficulty of an impression cancels out, so the interval is usually much narrower than those
    of ``a`` and ``b``, two models' values of the same impressions ``[impressions]``. It covers the
    choice of users, not the training seeds of the two models. Impressions with a NaN are left out;
    all three numbers are NaN if no impression is left. ValueError if shapes differ.
    """
    a, b = (np.asarray(values, dtype=np.float64) for values in (a, b))
    users = np.asarray(users)
    if a.ndim != 1 or not a.shape == b.shape == users.shape:
        raise ValueError(
            f"Shapes differ or are not flat: {a.shape}, {b.shape}, users {users.shape}."
        )
    difference = a - b
    kept = ~np.isnan(difference)
    low, high = mean_interval(difference, users, **options)
    mean = difference[kept].mean() if kept.any() else np.nan
    return float(mean), float(low), float(high)


def sign_flip_p(
    difference: ArrayLike, users: ArrayLike, resamples: int = 9_999, seed: int = 0
) -> float:
    """Return the two-sided p-value of a mean difference, by a sign-flip test over users.

    If two models were equally good, each user's sum of differences could just as well have the
    other sign. The test gives every user a random sign, shared by all impressions of the user, and
    counts the resamples whose mean is at least as far from 0 as the observed mean. It covers the
    choice of users, not the training seed.

    p is ``(1 + c) / (resamples + 1)`` where ``c`` resamples reach the observed mean; 1 if no
    impression differs. Impressions with a NaN are left out ``[impressions]``; NaN if none is left.
    ValueError if shapes differ.
    """
    difference, users = np.asarray(difference, dtype=np.float64), np.asarray(users)
    if difference.ndim != 1 or difference.shape != users.shape:
        raise ValueError(f"Shapes differ or are not flat: {difference.shape}, users {users.shape}.")
    kept = ~np.isnan(difference)
    if not kept.any():
        return float("nan")
    sums = user_sums(difference[kept][None], users[kept])[0]
    sums = sums[sums != 0]  # a sign does not change a zero
    observed, size = abs(sums.sum()), np.abs(sums).sum()
    rng = np.random.Generator(np.random.SFC64(seed))
    totals = np.zeros(resamples)
    groups = np.pad(sums, (0, -len(sums) % TOGETHER)).reshape(-1, TOGETHER)
    step = max(1, BLOCK_WEIGHTS // resamples)
    for first in range(0, len(groups), step):
        block = groups[first : first + step]
        drawn = _random_bytes(rng, len(block), resamples)
        for signed, signs in zip(block @ SIGNS.T, drawn, strict=True):
            # A byte gives eight users their signs. All are in range, so nothing is clipped.
            totals += np.take(signed, signs, mode="clip")
    reached = np.abs(totals) >= observed - 1e-12 * size  # equal sums may differ by rounding
    return (1 + int(reached.sum())) / (resamples + 1)


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Return the p-values ``[tests]`` adjusted for their number by Holm's method.

    If every adjusted p below .05 is called significant, the chance of even one false positive is at
    most .05. A NaN stays NaN and does not count as a test.
    """
    result = np.array(p, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(result))
    order = tested[np.argsort(result[tested])]
    steps = result[order] * np.arange(len(order), 0, -1)
    result[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return result


def user_sums(rows: NDArray[np.float64], users: NDArray) -> NDArray[np.float64]:
    """Return each user's sum of every row and, last, count of impressions ``[metrics + 1, users]``.

    Rows have one value per impression and metric, none NaN ``[metrics, impressions]``. The sums are
    in the order of the sorted user numbers.
    """
    _, owner = np.unique(users, return_inverse=True)
    return np.stack([np.bincount(owner, row) for row in rows] + [np.bincount(owner)])


def _poisson(rng: np.random.Generator, users: int, resamples: int) -> NDArray[np.float64]:
    """Draw Poisson(1) weights of users ``[users, resamples]``.

    A weight takes sixteen random bits: much faster than ``rng.poisson``, with probabilities right
    to 2^-16. Each user starts with fresh bits, so weights do not depend on the blocks.
    """
    words = _random_bytes(rng, users, 2 * resamples).view(np.uint16)
    weights = np.zeros((users, resamples), dtype=np.uint8)
    for step in POISSON_STEPS:
        weights += words >= step
    return weights.astype(np.float64)


def _random_bytes(rng: np.random.Generator, *shape: int) -> NDArray[np.uint8]:
    """Draw random bytes; every row starts with a fresh 64-bit word."""
    words = rng.integers(0, 1 << 64, size=(*shape[:-1], -(-shape[-1] // 8)), dtype=np.uint64)
    return words.view(np.uint8)[..., : shape[-1]]
