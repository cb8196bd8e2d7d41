"""What is known of a split once it is scored: of all of it, and of each impression."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import NewsData
from newsrec.evaluation.intervals import mean_interval
from newsrec.evaluation.slices import Slice, slice_impressions, summarize_slices
from newsrec.metrics import (
    METRICS,
    ImpressionMetrics,
    category_entropy,
    impression_metrics,
    ranks,
    summarize,
)

RESULTS_FORMAT = 1
"""Version of ``metrics.json``."""
ENTROPY = "category_entropy@10"


class Results(NamedTuple):
    """A split's scores, measured."""

    metrics: dict[str, Any]
    """What ``metrics.json`` holds."""
    ranks: NDArray[np.int32]
    """Rank of each candidate in its impression ``[candidates]``."""
    values: ImpressionMetrics | None
    """The metrics of every impression; None where the split has no labels."""
    slices: dict[str, Slice]
    """The groups of every impression."""


def compute_results(
    data: NewsData,
    split: str,
    scores: NDArray[np.floating],
    baselines: Mapping[str, NDArray[np.float32]] | None = None,
) -> Results:
    """Measure a split's scores.

    ``metrics`` has counts, the fingerprint and the entropy of categories; where the split has
    labels also how many impressions were ``evaluated``, of how many ``users``, and if any was the
    metrics and their 95 % intervals, clustered by user, the same by
    ``slices``, and ``baselines``: of each the metrics, the interval of its AUC, and
    ``auc_difference`` with ``auc_difference_interval``: the AUC of these scores less the
    baseline's, paired impression by impression.

    Args:
        data: The data folder.
        split: Split that was scored.
        scores: In the order of its file ``[candidates]``.
        baselines: What to set beside them, by name, in the same order.
    """
    part = data.split(split)
    offsets = part.candidates.offsets
    rank = ranks(scores, offsets)
    entropy = category_entropy(rank, category_codes(data)[part.candidates.values], offsets)
    result: dict[str, Any] = {
        "format": RESULTS_FORMAT,
        "split": split,
        "window": part.window,
        "impressions": len(part.history),
        "unknown_candidates": part.counts["unknown_candidates"],
        "skipped_lines": part.counts.get("skipped_lines", 0),
        "data_fingerprint": part.fingerprint,
        ENTROPY: float(entropy.mean()),
    }
    slices = slice_impressions(data, split)
    if part.labels is None:
        return Results(result, rank, None, slices)
    own = impression_metrics(scores, part.labels, offsets)
    result |= summarize(own)
    result["users"] = len(np.unique(part.user[own.valid]))
    if not result["evaluated"]:
        for metric in METRICS:
            del result[metric]  # NaN, which JSON does not have
    others = {
        name: impression_metrics(values, part.labels, offsets)
        for name, values in (baselines or {}).items()
    }
    if result["evaluated"]:
        bounds = _intervals(own, list(others.values()), part.user)
        result["intervals"] = dict(zip(METRICS, bounds.own, strict=True))
        result["baselines"] = {
            name: {
                **{metric: summarize(other)[metric] for metric in METRICS},
                "intervals": {"auc": interval},
                "auc_difference": float(np.mean((own.of("auc") - other.of("auc"))[own.valid])),
                "auc_difference_interval": difference,
            }
            for (name, other), interval, difference in zip(
                others.items(), bounds.others, bounds.differences, strict=True
            )
        }
    result["slices"] = summarize_slices(slices, own, part.user)
    return Results(result, rank, own, slices)


def evaluate_scores(data: NewsData, split: str, scores: NDArray[np.floating]) -> dict[str, Any]:
    """Return what ``metrics.json`` says of a split's scores, no baselines beside them."""
    return compute_results(data, split, scores).metrics


def per_impression_table(data: NewsData, split: str, results: Results) -> pa.Table:
    """Return the metrics and the groups of every impression, in the order of the file.

    Columns: ``impression_id`` and ``user`` as in the file; ``auc``, ``mrr``, ``ndcg@5``,
    ``ndcg@10``, null where the impression has no click or no skip; ``slice/NAME``, the group in
    each slice, null where it is in none.

    Args:
        data: The data folder.
        split: A labelled split.
        results: What was computed of it.
    """
    part = data.split(split)
    assert results.values is not None
    columns: dict[str, pa.Array] = {
        "impression_id": pa.array(np.asarray(part.impression_id)),
        "user": data.users.take(pa.array(np.asarray(part.user))).cast(pa.string()),
    }
    for metric, values in zip(METRICS, results.values.values, strict=True):
        columns[metric] = pa.array(values, mask=~results.values.valid)
    for name, (groups, code) in results.slices.items():
        columns[f"slice/{name}"] = pa.DictionaryArray.from_arrays(
            pa.array(code, mask=code < 0), pa.array(groups, pa.string())
        )
    return pa.table(columns)


def category_codes(data: NewsData) -> NDArray[np.int64]:
    """Return a number for each story's category; the unknown story's is one of its own."""
    encoded = data.news["category"].combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int64)
    return np.concatenate([np.full(FIRST_NEWS, -1), codes])


class _Bounds(NamedTuple):
    own: list[list[float]]
    """Of the metrics ``[metrics, 2]``."""
    others: list[list[float]]
    """Of each baseline's AUC ``[baselines, 2]``."""
    differences: list[list[float]]
    """Of the AUC less each baseline's ``[baselines, 2]``."""


def _intervals(
    own: ImpressionMetrics, others: list[ImpressionMetrics], users: NDArray[np.integer]
) -> _Bounds:
    """Return all intervals over the whole split, from one set of resamples.

    A row of a bootstrap costs next to nothing beside its random numbers. The differences' are those
    of ``paired_interval``: what both find hard cancels.
    """
    valid = own.valid  # by the labels alone, so the same for all
    aucs = np.array([other.of("auc")[valid] for other in others]).reshape(-1, int(valid.sum()))
    rows = np.concatenate([own.values[:, valid], aucs, own.of("auc")[valid] - aucs])
    bounds = mean_interval(rows, users[valid]).tolist()
    middle = len(METRICS) + len(others)
    return _Bounds(bounds[: len(METRICS)], bounds[len(METRICS) : middle], bounds[middle:])
