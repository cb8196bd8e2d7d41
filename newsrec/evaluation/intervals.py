"""How sure a mean over impressions is, when one user has many impressions.

The impressions of one user share a history and a taste, so they say less than as many impressions
of strangers. The bootstrap here draws whole users. Its intervals cover the choice of users, and
nothing else: not the seed of the training, not another day or week of news.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK_WEIGHTS = 1 << 20
"""Weights of users in resamples that are held at once (8 MB)."""


def mean_interval(
    values: ArrayLike,
    users: ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> NDArray[np.float64]:
    """Return bootstrap intervals of means over impressions, resampling whole users.

    Each resample gives every user a Poisson(1) weight, which is the usual bootstrap where users are
    many; a few dozen are needed for the interval to mean anything. Its bounds are percentiles of
    the resamples' means. All metrics share the weights. The interval covers the choice of users,
    not the training seed: two runs that differ by less than their seeds do may still have
    intervals apart.

    Args:
        values: One value per impression and metric; an impression with a NaN is left out
            ``[metrics, impressions]`` or ``[impressions]``.
        users: Whose impression it is, any integers ``[impressions]``.
        resamples: Number of bootstrap resamples.
        seed: Equal seeds give equal intervals.
        level: Share of resamples between the bounds.

    Returns:
        Lower and upper bound; NaN if no impression is left ``[metrics, 2]`` or ``[2]``.

    Raises:
        ValueError: If values and users do not fit together.
    """
    values, users = np.asarray(values, dtype=np.float64), np.asarray(users)
    if users.ndim != 1 or values.ndim not in (1, 2) or values.shape[-1] != len(users):
        raise ValueError(f"Values {values.shape} and users {users.shape} do not fit together.")
    rows = np.atleast_2d(values)
    kept = ~np.isnan(rows).any(axis=0)
    if not kept.any():
        return np.full((*values.shape[:-1], 2), np.nan)
    distinct, owner = np.unique(users[kept], return_inverse=True)
    # Sums of each user's values and, last, the number of the user's impressions.
    sums = np.stack([np.bincount(owner, row[kept]) for row in rows] + [np.bincount(owner)])

    rng = np.random.default_rng(seed)
    totals = np.zeros((len(sums), resamples))
    step = max(1, BLOCK_WEIGHTS // resamples)
    for first in range(0, len(distinct), step):
        block = sums[:, first : first + step]
        totals += block @ rng.poisson(1.0, size=(block.shape[1], resamples)).astype(np.float64)
    drawn = totals[:, totals[-1] > 0]  # with a handful of users, a resample may draw none
    tail = (1 - level) / 2
    bounds = np.quantile(drawn[:-1] / drawn[-1], [tail, 1 - tail], axis=1).T
    return bounds.reshape(*values.shape[:-1], 2)


def paired_interval(
    a: ArrayLike,
    b: ArrayLike,
    users: ArrayLike,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Return the mean of ``a - b`` over impressions and its interval, as ``mean_interval`` does.

    What both find hard cancels, so the interval is mostly much narrower than those of ``a`` and
    ``b``. It covers the choice of users, not the training seeds of the two models.

    Args:
        a: One model's value of each impression ``[impressions]``.
        b: The other model's values of the same impressions ``[impressions]``.
        users: Whose impression it is, any integers ``[impressions]``.
        resamples: Number of bootstrap resamples.
        seed: Equal seeds give equal intervals.
        level: Share of resamples between the bounds.

    Returns:
        Mean difference, lower and upper bound, over impressions where neither value is NaN;
        all NaN if there are none.

    Raises:
        ValueError: If the three do not have the same shape.
    """
    a, b, users = (
        np.asarray(a, dtype=np.float64),
        np.asarray(b, dtype=np.float64),
        np.asarray(users),
    )
    if a.ndim != 1 or not a.shape == b.shape == users.shape:
        raise ValueError(
            f"Shapes differ or are not flat: {a.shape}, {b.shape}, users {users.shape}."
        )
    difference = a - b
    kept = ~np.isnan(difference)
    low, high = mean_interval(difference, users, resamples=resamples, seed=seed, level=level)
    mean = difference[kept].mean() if kept.any() else np.nan
    return float(mean), float(low), float(high)
