"""Where a model errs: groups and impressions that a baseline ranks better, drift, probabilities."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from newsrec.data.dataset import Split
from newsrec.data.ragged import to_offsets
from newsrec.evaluation.intervals import FEWEST_USERS, mean_interval, user_sums
from newsrec.evaluation.slices import Slice, clusters
from newsrec.metrics import ImpressionMetrics, impression_metrics

NUM_WORST = 10
"""Impressions that are listed."""
EDGES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""Click probabilities that divide candidates into bins."""
STEP = 1 << 14
"""Impressions at once."""


def weakest_groups(
    slices: Mapping[str, Slice],
    own: NDArray[np.float64],
    other: NDArray[np.float64],
    users: NDArray[np.integer],
) -> list[dict[str, Any]]:
    """Return the groups of all slices, those with the smallest gain over a baseline first.

    Groups of fewer than ``FEWEST_USERS`` users, and slices of one group, are left out.

    Args:
        slices: The group of every impression in each slice.
        own: AUC of the model, NaN where there is none ``[impressions]``.
        other: AUC of the baseline, NaN in the same impressions ``[impressions]``.
        users: Number of each impression's user ``[impressions]``.
    """
    found = []
    for name, (groups, code) in slices.items():
        evaluated = code[~np.isnan(own)]
        if len(np.unique(evaluated[evaluated >= 0])) < 2:
            continue
        for number, group in enumerate(groups):
            rows = np.flatnonzero((code == number) & ~np.isnan(own))
            number_of_users = len(np.unique(users[rows]))
            if number_of_users < FEWEST_USERS:
                continue
            difference = own[rows] - other[rows]
            found.append(
                {
                    "slice": name,
                    "group": group,
                    "impressions": len(rows),
                    "users": number_of_users,
                    "auc": float(own[rows].mean()),
                    "baseline_auc": float(other[rows].mean()),
                    "difference": float(difference.mean()),
                    "interval": mean_interval(difference, clusters(users[rows])).tolist(),
                }
            )
    return sorted(found, key=lambda line: line["difference"])


def worst_impressions(
    own: NDArray[np.float64], other: NDArray[np.float64], split: Split
) -> NDArray[np.int64]:
    """Return the rows of impressions where a model's AUC is most below a baseline's.

    The difference is divided by the standard deviation of the AUC of a random order, which for p
    clicked and n skipped candidates is the root of (p + n + 1) / (12 p n) (Mann and Whitney 1947).
    Otherwise all would be impressions of two candidates, where chance often decides.

    They are at most ``NUM_WORST`` impressions ``[impressions]``, and only those where the model is
    worse. Of equally bad ones, the first in the file comes first.
    """
    assert split.labels is not None
    rows = np.flatnonzero(own < other)
    places, bounds = split.candidates.places(rows)
    clicked = np.add.reduceat(split.labels[places] == 1, bounds[:-1]) if len(rows) else rows
    skipped = np.diff(bounds) - clicked
    by_chance = np.sqrt((clicked + skipped + 1) / (12 * clicked * skipped))
    order = np.argsort((own - other)[rows] / by_chance, kind="stable")
    return rows[order[:NUM_WORST]]


def drift(
    values: NDArray[np.float64], time: NDArray[np.datetime64], users: NDArray[np.integer]
) -> dict[str, Any] | None:
    """Return how much a metric changes per day: slope of a line, with its 95 % interval.

    The line is fitted by least squares to impressions; the error is clustered by user. None if the
    impressions are of one day, or of one user.

    Args:
        values: Metric of each impression, NaN where there is none ``[impressions]``.
        time: When each was shown ``[impressions]``.
        users: Number of each impression's user ``[impressions]``.
    """
    kept = ~np.isnan(values)
    day = time[kept].astype("datetime64[D]").astype(np.int64)
    number = len(np.unique(users[kept]))
    if len(np.unique(day)) < 2 or number < 2:
        return None
    away = day - day.mean()
    spread = float((away**2).sum())
    slope = float((away * values[kept]).sum()) / spread
    rest = values[kept] - values[kept].mean() - slope * away
    sums = user_sums((away * rest)[None], users[kept])[0]
    error = float(np.sqrt(number / (number - 1) * (sums**2).sum())) / spread
    reach = float(stdtrit(number - 1, 0.975)) * error
    return {"days": len(np.unique(day)), "slope": slope, "interval": [slope - reach, slope + reach]}


def reliability(split: Split, scores: NDArray[np.floating]) -> dict[str, Any] | None:
    """Return how well click probabilities, a softmax over each impression's scores, are calibrated.

    A candidate's expected clicks are its probability times the number of clicks of its impression,
    at most 1. They decide the candidate's bin. ``ece``, the expected calibration error within
    impressions, is the mean over candidates of the distance of their bin's share of clicked from
    its mean expectation. Chance alone gives about ``ece_by_chance`` if all expectations are right.

    Args:
        split: A split with labels.
        scores: Scores, logits of a softmax over an impression's candidates ``[candidates]``.

    Returns:
        ``ece``, ``ece_by_chance``, ``impressions`` and ``bins``: for each the bounds ``from`` and
        ``to``, the number of ``candidates``, ``expected`` and ``clicked`` shares. None if no
        impression has a click and a skipped candidate.
    """
    assert split.labels is not None
    number = len(EDGES) - 1
    totals = np.zeros((4, number))  # candidates, expected, clicked, variance
    used = 0
    for begin in range(0, split.candidates.num_rows, STEP):
        bounds = np.asarray(split.candidates.offsets[begin : begin + STEP + 1])
        lengths = np.diff(bounds)
        clicked = np.asarray(split.labels[bounds[0] : bounds[-1]]) == 1
        clicks = np.diff(to_offsets(clicked)[bounds - bounds[0]])
        valid = (clicks > 0) & (clicks < lengths)
        kept = np.repeat(valid, lengths)
        values = np.asarray(scores[bounds[0] : bounds[-1]], dtype=np.float64)[kept]
        lengths, clicks, clicked = lengths[valid], clicks[valid], clicked[kept]
        if not len(lengths):
            continue
        used += len(lengths)
        starts = to_offsets(lengths)[:-1]
        odds = np.exp(values - np.repeat(np.maximum.reduceat(values, starts), lengths))
        odds *= np.repeat(clicks / np.add.reduceat(odds, starts), lengths)
        expected = np.minimum(odds, 1)
        place = np.clip(np.searchsorted(EDGES, expected, side="right") - 1, 0, number - 1)
        for row, weights in zip(
            totals, (None, expected, clicked, expected * (1 - expected)), strict=True
        ):
            row += np.bincount(place, weights, number)
    if not used:
        return None
    candidates, expected, clicks, variance = totals
    bins = [
        {
            "from": EDGES[i],
            "to": EDGES[i + 1],
            "candidates": int(candidates[i]),
            "expected": float(expected[i] / candidates[i]),
            "clicked": float(clicks[i] / candidates[i]),
        }
        for i in range(number)
        if candidates[i]
    ]
    return {
        "ece": float(np.abs(clicks - expected).sum() / candidates.sum()),
        "ece_by_chance": float(np.sqrt(2 / np.pi * variance).sum() / candidates.sum()),
        "impressions": used,
        "bins": bins,
    }


class Analysis(NamedTuple):
    """Where a model errs."""

    metrics: dict[str, Any]
    """The field ``errors`` of ``metrics.json``."""
    worst: NDArray[np.int64]
    """Rows of the impressions that lose most against the baseline ``[impressions]``."""


def analyse(
    split: Split,
    own: ImpressionMetrics,
    slices: Mapping[str, Slice],
    baselines: Mapping[str, NDArray[np.floating]],
    logits: NDArray[np.floating] | None,
) -> Analysis:
    """Analyse the errors of a labelled split.

    Args:
        split: The split.
        own: The metrics of every impression.
        slices: The group of every impression in each slice.
        baselines: Scores of each baseline; only the one with the highest AUC is used.
        logits: The model's scores, if a softmax makes probabilities of them ``[candidates]``.

    Returns:
        ``metrics`` has ``drift`` of the AUC, ``reliability`` of ``logits`` and, with baselines,
        ``baseline``, the ``groups`` of ``weakest_groups``, and ``impressions``: the worst ones,
        each with its ``impression_id``, ``auc`` and ``baseline_auc``.
    """
    auc, users = own.of("auc"), np.asarray(split.user)
    found: dict[str, Any] = {
        "drift": drift(auc, split.time, users),
        "reliability": None if logits is None else reliability(split, logits),
    }
    best, highest = "", np.full(len(auc), -1.0)
    for name, scores in baselines.items():
        assert split.labels is not None
        values = impression_metrics(scores, split.labels, split.candidates.offsets).of("auc")
        if np.nanmean(values) > np.nanmean(highest):
            best, highest = name, values
    if not best:
        return Analysis(found, np.zeros(0, dtype=np.int64))
    worst = worst_impressions(auc, highest, split)
    found |= {
        "baseline": best,
        "groups": weakest_groups(slices, auc, highest, users),
        "impressions": [
            {
                "impression_id": int(split.impression_id[row]),
                "auc": float(auc[row]),
                "baseline_auc": float(highest[row]),
            }
            for row in worst
        ],
    }
    return Analysis(found, worst)
