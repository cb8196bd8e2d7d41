"""Draws candidates for training; each draw depends only on counters.

Equal counters give equal draws, so the number of workers or processes and a resume change nothing.
"""

import numpy as np
from numpy.typing import NDArray

from newsrec.data.mixing import mix
from newsrec.data.ragged import Ragged


def draw_skipped(
    num_skipped: NDArray[np.int64], npratio: int, seed: int, epoch: int, sample: NDArray[np.integer]
) -> NDArray[np.int64]:
    """Draw ``npratio`` different skipped news for each sample.

    Args:
        num_skipped: Number of skipped news to draw from ``[batch]``.
        npratio: How many to draw.
        seed: Seed of the run.
        epoch: Number of the epoch.
        sample: Number of each sample ``[batch]``.

    Returns:
        Positions from 0 to ``num_skipped - 1``, ascending in each row; a row ends in -1 if there
        are too few ``[batch, npratio]``.
    """
    beyond = np.iinfo(np.int64).max
    uniform = counter_uniform(seed, epoch, sample[:, None], np.arange(npratio))
    chosen = np.full((len(sample), npratio), beyond)
    for draw in range(npratio):
        left = num_skipped - draw
        place = (uniform[:, draw] * left).astype(np.int64)
        # place counts positions not drawn yet: step over the earlier draws, lowest first.
        for earlier in chosen[:, :draw].T:
            place += place >= earlier
        chosen[:, draw] = np.where(left > 0, place, beyond)
        chosen[:, : draw + 1].sort(axis=1)
    chosen[chosen == beyond] = -1
    return chosen


def draw_candidates(
    labels: Ragged, most: int, seed: int, epoch: int, impression: NDArray[np.integer]
) -> NDArray[np.bool_]:
    """Draw up to ``most`` candidates of each impression: clicks first, but always a skipped one.

    Of ``most`` candidates, at most ``most - 1`` are clicks; skipped ones take the other places.

    Args:
        labels: 1 clicked, 0 skipped, a row per impression; each row has both.
        most: Candidates to keep, at least 2.
        seed: Seed of the run.
        epoch: Number of the epoch.
        impression: Number of each impression ``[impressions]``.

    Returns:
        True for the candidates that are kept ``[candidates]``.
    """
    owner, clicked = labels.owners(), labels.values == 1
    place = np.arange(len(owner)) - labels.offsets[owner]
    uniform = counter_uniform(seed, epoch, impression[owner], place)
    rank = np.empty_like(place)  # among the impression's candidates, clicks before skipped ones
    rank[np.lexsort((uniform, ~clicked, owner))] = place
    clicks = np.bincount(owner[clicked], minlength=labels.num_rows)
    kept = np.minimum(clicks, most - 1)
    return np.where(clicked, rank < most - 1, rank - clicks[owner] < most - kept[owner])


def counter_uniform(*counters: int | NDArray[np.integer]) -> NDArray[np.floating]:
    """Return a number in [0, 1) for each tuple of counters; equal tuples give equal numbers."""
    state = np.zeros(1, dtype=np.uint64)
    for counter in counters:
        state = mix(state + np.asarray(counter).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53
