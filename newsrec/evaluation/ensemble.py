"""Average the scores of several models for the same candidates.

Scores of two models have no common scale, nor do one model's scores for two users. So each
candidate's score is first made relative to its impression: how many standard deviations it lies
above the mean, or its rank.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsrec.metrics import ranks

ENSEMBLES = {
    "mean_score": "scores minus their mean in the impression, divided by their standard deviation",
    "mean_rank": "ranks in the impression",
}
"""Values that can be averaged over models."""

BLOCK = 1 << 14
"""Impressions whose scores by all models are held in memory at once."""


def combine(
    members: Sequence[NDArray[np.floating]],
    offsets: NDArray[np.int64],
    how: str,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Average several models' scores, each ``[candidates]``, impression by impression.

    ``mean_score`` does not change if a model's scores in an impression are shifted or scaled by a
    positive factor; no increasing transform changes ``mean_rank``, which ranks equal scores in the
    order of the file. The result, a mean standard score or a negated mean rank ``[candidates]``, is
    the same to the last bit for any order of the models. ``weights`` are those of the models, for
    all impressions ``[members]`` or for each one ``[impressions, members]``; each row sums to 1.
    None weighs all alike.
    """
    assert how in ENSEMBLES
    offsets = np.asarray(offsets, dtype=np.int64)
    assert all(len(scores) == offsets[-1] for scores in members)
    result = np.empty(int(offsets[-1]))
    if weights is not None:
        shape = (len(offsets) - 1, len(members))
        weights = np.broadcast_to(weights * len(members), shape)  # to take a plain mean at the end
    for first in range(0, len(offsets) - 1, BLOCK):
        bounds = offsets[first : first + BLOCK + 1]
        begin, end = bounds[0], bounds[-1]
        bounds = bounds - begin
        values = np.empty((len(members), end - begin))
        for row, scores in zip(values, members, strict=True):
            part = scores[begin:end]
            row[:] = -ranks(part, bounds) if how == "mean_rank" else standardize(part, bounds)
        if weights is not None:
            values *= np.repeat(weights[first : first + BLOCK], np.diff(bounds), axis=0).T
        values.sort(axis=0)  # sums of floats depend on their order
        result[begin:end] = values.mean(axis=0)
    return result


def standardize(scores: NDArray[np.floating], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give each impression's scores mean 0 and standard deviation 1; zeros if all are equal."""
    lengths = np.diff(offsets)
    starts, lengths = offsets[:-1][lengths > 0], lengths[lengths > 0]
    if not len(starts):
        return np.zeros(0)

    def over(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.repeat(values, lengths)

    values = np.asarray(scores, dtype=np.float64)
    low = np.minimum.reduceat(values, starts)
    span = np.maximum.reduceat(values, starts) - low
    # Scale to 0..1 first, so that equal scores give exact zeros and squares neither under- nor
    # overflow.
    values = (values - over(low)) / over(np.where(span == 0, 1, span))
    values -= over(np.add.reduceat(values, starts) / lengths)
    deviation = np.sqrt(np.add.reduceat(values**2, starts) / lengths)
    return values / over(np.where(deviation == 0, 1, deviation))


def merge_info(members: Sequence[dict[str, Any]], how: str) -> dict[str, Any]:
    """Return the fields of ``metrics.json`` that describe the origin of an ensemble.

    They are as for one checkpoint, except: ``checkpoint_sha256`` lists the hashes of all;
    ``selected_on`` joins the splits that chose any of them by ``+``, ``selected_news`` the kinds of
    news that did; ``trained_on`` has every split that any was trained on; ``other_data`` lists the
    split names that checkpoints used from other folders only.
    """
    chosen = dict.fromkeys(info["selected_on"] for info in members)
    windows: dict[str, dict[str, None]] = {}
    for info in members:
        for name, window in info["trained_on"].items():
            windows.setdefault(name, {})[window] = None
    own = {
        name
        for info in members
        for name in (info["selected_on"], *info["trained_on"])
        if name not in info["other_data"]
    }
    other = dict.fromkeys(name for info in members for name in info["other_data"])
    return {
        **members[0],
        "ensemble": how,
        "selected_on": "+".join(name for name in chosen if name) or None,
        "selected_news": "+".join(dict.fromkeys(info["selected_news"] for info in members)),
        "trained_on": {name: " and ".join(found) for name, found in windows.items()},
        "other_data": [name for name in other if name not in own],
        "checkpoint_sha256": [info["checkpoint_sha256"] for info in members],
    }
