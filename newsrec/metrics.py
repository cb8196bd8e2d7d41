"""MIND's metrics, computed for a whole split at once.

AUC, MRR, nDCG@5 and nDCG@10 are computed for each impression and then averaged. All are computed
from the ranks of a leaderboard submission: candidates sorted by score, highest first, equal scores
in the order of the file. An impression without a clicked or without a skipped candidate has no AUC;
it is left out of all metrics and counted. To add a metric, add a function and a line in ``TABLE``.

Scores, labels and offsets are flat: the candidates of impression ``i`` are
``scores[offsets[i]:offsets[i + 1]]``. Arrays may be NumPy or PyTorch.

>>> mind_metrics([0.9, 0.1, 0.5, 0.2, 0.7], [0, 0, 1, 1, 0], offsets=[0, 3, 5])["auc"]
0.25
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Clicks(NamedTuple):
    """The clicks of some impressions, the input of a metric.

    Only impressions with a clicked and a skipped candidate have metrics. In shapes, ``impressions``
    counts these, ``all impressions`` also the others.
    """

    rank: NDArray[np.int64]
    """Rank of each click among its impression's candidates, 1 the best ``[clicks]``."""
    impression: NDArray[np.int64]
    """Position of each click's impression among all impressions ``[clicks]``."""
    valid: NDArray[np.bool_]
    """True where an impression has metrics ``[all impressions]``."""
    num_clicked: NDArray[np.int64]
    """Number of clicked candidates ``[impressions]``."""
    num_skipped: NDArray[np.int64]
    """Number of skipped candidates ``[impressions]``."""

    def sums(self, values: NDArray) -> NDArray[np.float64]:
        """Sum a value of each click over its impression ``[impressions]``."""
        sums = np.bincount(self.impression, weights=values, minlength=len(self.valid))
        return sums[self.valid].astype(np.float64, copy=False)


def auc(clicks: Clicks) -> NDArray[np.float64]:
    """Return the share of pairs (clicked, skipped) in which the clicked candidate ranks higher."""
    clicked, skipped = clicks.num_clicked, clicks.num_skipped
    # The i-th click from the top has rank - i skipped candidates above it (Mann-Whitney).
    skipped_above = clicks.sums(clicks.rank.astype(np.float64)) - clicked * (clicked + 1) / 2
    return 1 - skipped_above / (clicked * skipped)


def mrr(clicks: Clicks) -> NDArray[np.float64]:
    """Return the mean of 1 / rank over the clicks."""
    return clicks.sums(1 / clicks.rank) / clicks.num_clicked


def ndcg(clicks: Clicks, k: int) -> NDArray[np.float64]:
    """Return the discounted gain of clicks ranked 1 to ``k``, divided by the highest possible."""
    gain = 1 / np.log2(clicks.rank + 1)
    highest = np.cumsum(1 / np.log2(np.arange(2, k + 2)))  # for 1..k clicks
    return clicks.sums(gain * (clicks.rank <= k)) / highest[np.minimum(clicks.num_clicked, k) - 1]


class Metric(NamedTuple):
    """One line of ``TABLE``."""

    heading: str
    """Name of the metric in tables and pages."""
    of: Callable[[Clicks], NDArray[np.float64]]
    """Computes the metric of each impression that has metrics ``[impressions]``."""


TABLE: dict[str, Metric] = {
    "auc": Metric("AUC", auc),
    "mrr": Metric("MRR", mrr),
    "ndcg@5": Metric("nDCG@5", partial(ndcg, k=5)),
    "ndcg@10": Metric("nDCG@10", partial(ndcg, k=10)),
}
METRICS = tuple(TABLE)
"""Names of the metrics, in the order in which they are reported."""


class ImpressionMetrics(NamedTuple):
    """The metrics of every impression; results report the mean over ``valid``."""

    values: NDArray[np.float64]
    """Metrics in the order of ``METRICS``; NaN where not ``valid`` ``[metrics, impressions]``."""
    valid: NDArray[np.bool_]
    """True where the impression has a clicked and a skipped candidate ``[impressions]``."""
    tied: NDArray[np.bool_]
    """True where two candidates have the same score ``[impressions]``."""

    def of(self, metric: str) -> NDArray[np.float64]:
        """Return one metric of every impression ``[impressions]``."""
        return self.values[METRICS.index(metric)]


def mind_metrics(scores: ArrayLike, labels: ArrayLike, offsets: ArrayLike) -> dict[str, Any]:
    """Return MIND's metrics, averaged over impressions, and counts of impressions.

    Args:
        scores: Any real numbers, higher is better ``[candidates]``.
        labels: 1 clicked, 0 skipped ``[candidates]``.
        offsets: Where each impression's candidates begin, and the end ``[impressions + 1]``.

    Returns:
        ``auc``, ``mrr``, ``ndcg@5``, ``ndcg@10`` (NaN if no impression can be evaluated) and the
        counts ``impressions``, ``evaluated``, ``single_class``, ``tied``.

    Raises:
        ValueError: If the arrays do not fit together, a score is NaN or a label is not 0 or 1.
    """
    return summarize(impression_metrics(scores, labels, offsets))


def summarize(result: ImpressionMetrics) -> dict[str, Any]:
    """Return the means and counts that ``mind_metrics`` returns, from per-impression metrics."""
    evaluated = int(result.valid.sum())
    valid = result.values[:, result.valid]
    means = valid.mean(axis=1) if evaluated else np.full(len(METRICS), np.nan)
    return {
        "impressions": len(result.valid),
        "evaluated": evaluated,
        "single_class": len(result.valid) - evaluated,
        "tied": int(result.tied.sum()),
        **dict(zip(METRICS, means.tolist(), strict=True)),
    }


def impression_metrics(
    scores: ArrayLike, labels: ArrayLike, offsets: ArrayLike
) -> ImpressionMetrics:
    """Return the metrics of every impression; arguments as in ``mind_metrics``."""
    flat_scores, bounds = _check(scores, offsets)
    clicked = _numpy(labels)
    if clicked.shape != flat_scores.shape:
        raise ValueError(f"{len(flat_scores)} scores but {len(clicked)} labels.")
    wrong = np.flatnonzero((clicked != 0) & (clicked != 1))
    if len(wrong):
        raise ValueError(f"Label {clicked[wrong[0]]} at position {wrong[0]} is neither 0 nor 1.")

    num_impressions = len(bounds) - 1
    values = np.full((len(METRICS), num_impressions), np.nan)
    tied = np.zeros(num_impressions, dtype=bool)
    valid = np.zeros(num_impressions, dtype=bool)
    for first, last, order, ties in _sorted_blocks(flat_scores, bounds):
        tied[first:last] = ties
        block = slice(bounds[first], bounds[last])
        starts = bounds[first : last + 1] - bounds[first]
        clicks = _clicks(clicked[block][order].astype(bool), starts)
        valid[first:last] = clicks.valid
        for row, metric in zip(values, TABLE.values(), strict=True):
            row[first:last][clicks.valid] = metric.of(clicks)
    return ImpressionMetrics(values, valid, tied)


def ranks(scores: ArrayLike, offsets: ArrayLike) -> NDArray[np.int32]:
    """Return each candidate's rank in its impression, 1 the best, as in a submission.

    Args:
        scores: Any real numbers, higher is better ``[candidates]``.
        offsets: Where each impression's candidates begin, and the end ``[impressions + 1]``.

    Returns:
        A permutation of 1..n for every impression of n candidates ``[candidates]``.
    """
    flat_scores, bounds = _check(scores, offsets)
    result = np.empty(len(flat_scores), dtype=np.int32)
    for first, last, order, _ in _sorted_blocks(flat_scores, bounds):
        begin, end = bounds[first], bounds[last]
        starts = bounds[first:last] - begin
        in_order = np.arange(end - begin) - np.repeat(starts, np.diff(bounds[first : last + 1]))
        result[begin:end][order] = in_order + 1
    return result


def category_entropy(
    ranks: ArrayLike, categories: ArrayLike, offsets: ArrayLike, k: int = 10
) -> NDArray[np.float64]:
    """Return the Shannon entropy, in bits, of the categories of each impression's best candidates.

    It measures how mixed the candidates ranked 1 to ``k`` are: 0 if all have the same category,
    ``log2(k)`` if all differ. It needs no labels, and no impression is left out: with fewer than
    ``k`` candidates all are taken, and without candidates the entropy is 0.

    Args:
        ranks: Rank of each candidate in its impression, as ``ranks`` returns it ``[candidates]``.
        categories: Number of each candidate's category, any integers ``[candidates]``.
        offsets: Where each impression's candidates begin, and the end ``[impressions + 1]``.
        k: Number of best-ranked candidates to take.

    Returns:
        Entropy of each impression ``[impressions]``.

    Raises:
        ValueError: If the arrays do not fit together.
    """
    rank, category = _numpy(ranks), _numpy(categories)
    bounds = _numpy(offsets).astype(np.int64)
    if rank.shape != category.shape or rank.ndim != 1 or bounds[-1] != len(rank):
        raise ValueError(
            f"Ranks {rank.shape} and categories {category.shape} must be flat, up to {bounds[-1]}."
        )
    num_impressions = len(bounds) - 1
    shown = np.flatnonzero(rank <= k)
    owner = np.searchsorted(bounds, shown, side="right") - 1
    names, code = np.unique(category[shown], return_inverse=True)
    cells, counts = np.unique(owner * max(1, len(names)) + code, return_counts=True)
    impression = cells // max(1, len(names))
    totals = np.bincount(impression, counts, num_impressions)
    share = counts / totals[impression]
    sums = np.bincount(impression, share * np.log2(share), num_impressions).astype(np.float64)
    return 0 - sums  # a single category gives 0.0, not -0.0


def _clicks(clicked: NDArray[np.bool_], starts: NDArray[np.int64]) -> Clicks:
    """Return the clicks of impressions, given the labels of each impression in rank order."""
    lengths = np.diff(starts)
    positions = np.flatnonzero(clicked)
    impression = np.searchsorted(starts, positions, side="right") - 1
    num_clicked = np.bincount(impression, minlength=len(lengths))
    num_skipped = lengths - num_clicked
    valid = (num_clicked > 0) & (num_skipped > 0)
    rank = positions - starts[impression] + 1
    return Clicks(rank, impression, valid, num_clicked[valid], num_skipped[valid])


def _sorted_blocks(
    scores: NDArray[np.floating], bounds: NDArray[np.int64]
) -> Iterator[tuple[int, int, NDArray[np.int64], NDArray[np.bool_]]]:
    """Yield ``first, last, order, tied`` for consecutive blocks of impressions.

    ``order`` sorts the block's candidates by impression, then score (highest first), then position.
    float32 scores are sorted as packed integers: the impression in the high bits, the score in the
    middle and the position in the low bits, from which ``order`` is read.
    """
    lengths = np.diff(bounds)
    position_bits = int(lengths.max(initial=1) - 1).bit_length()
    packed = scores.dtype == np.float32 and position_bits < 24
    # Impression and position must fit beside 32 bits of score; 2^18 impressions also bound memory.
    size = 1 << min(18, 31 - position_bits) if packed else 1 << 18
    for first in range(0, len(lengths), size):
        last = min(first + size, len(lengths))
        values = scores[bounds[first] : bounds[last]]
        impression = np.repeat(np.arange(last - first), lengths[first:last])
        starts = bounds[first:last] - bounds[first]
        if packed:
            position = np.arange(len(values)) - starts[impression]
            key = (impression << 32) | _descending(values)
            key = np.sort((key << position_bits) | position)
            order = (key & ((1 << position_bits) - 1)) + starts[impression]
            key >>= position_bits
            equal = key[1:] == key[:-1]
        else:
            order = np.lexsort((-values, impression))
            in_order = values[order]
            equal = (in_order[1:] == in_order[:-1]) & (impression[1:] == impression[:-1])
        tied = np.zeros(last - first, dtype=bool)
        tied[impression[1:][equal]] = True
        yield first, last, order, tied


def _descending(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Map float32 values to integers in 0..2^32-1 in reverse order."""
    bits = (values + np.float32(0)).view(np.int32).astype(np.int64)  # + 0: -0.0 equals 0.0
    ascending = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)
    return 0x7FFFFFFF - ascending


def _check(scores: ArrayLike, offsets: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """Return scores as float32 or float64 and offsets as int64; raise ValueError if invalid."""
    values, bounds = _numpy(scores), _numpy(offsets).astype(np.int64)
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    elif values.dtype != np.float32:
        values = values.astype(np.float64)
    if values.ndim != 1 or bounds.ndim != 1:
        raise ValueError(f"Scores {values.shape} and offsets {bounds.shape} must be flat.")
    ends = bounds[[0, -1]].tolist() if len(bounds) else []
    if ends != [0, len(values)] or (np.diff(bounds) < 0).any():
        raise ValueError(f"Offsets must rise from 0 to the number of scores, {len(values)}.")
    nan = np.flatnonzero(np.isnan(values))
    if len(nan):
        impression = int(np.searchsorted(bounds, nan[0], side="right")) - 1
        raise ValueError(
            f"{len(nan)} scores are NaN, the first in impression {impression}: "
            "a NaN has no rank. Look for a division by zero or an overflow in the model."
        )
    return values, bounds


def _numpy(values: Any) -> NDArray[Any]:
    if hasattr(values, "detach"):  # a tensor, recognized without importing PyTorch
        values = values.detach().cpu()
        return (values.float() if str(values.dtype) == "torch.bfloat16" else values).numpy()
    return np.asarray(values)
