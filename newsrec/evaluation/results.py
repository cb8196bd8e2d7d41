"""The metrics of a scored split: over all impressions, by slice, and of each impression."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import NewsData, Split
from newsrec.data.splits import cut_to_unseen, seen_news
from newsrec.evaluation.intervals import mean_interval
from newsrec.evaluation.names import COUNTS
from newsrec.evaluation.power import power_of
from newsrec.evaluation.slices import Slice, clusters, slice_impressions, summarize_slices
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
USER_NUMBER = "user_number"
"""Column of ``per_impression.parquet``."""


class Results(NamedTuple):
    """The metrics of a scored split."""

    metrics: dict[str, Any]
    """Content of ``metrics.json``."""
    ranks: NDArray[np.int32]
    """Rank of each candidate in its impression ``[candidates]``."""
    values: ImpressionMetrics | None
    """The metrics of every impression; None where the split has no labels."""
    slices: dict[str, Slice]
    """The group of every impression in each slice."""


def compute_results(
    data: NewsData,
    split: str,
    scores: NDArray[np.floating],
    baselines: Mapping[str, NDArray[np.float32]] | None = None,
) -> Results:
    """Compute the metrics of a split from its scores, in the order of the file ``[candidates]``.

    ``metrics`` has counts, also those of ``COUNTS`` that the data has, the data's fingerprint and
    the category entropy. In a labelled split ``metrics`` also has the numbers of ``evaluated``
    impressions and their ``users``, and ``slices``. If any impression was evaluated, ``metrics``
    has the metrics with their 95 % intervals, clustered by user, and ``baselines``: for each
    baseline its metrics, the interval of its AUC, and ``auc_difference`` with
    ``auc_difference_interval``, the AUC of these scores minus the baseline's, paired by impression,
    and ``auc_detectable``, the true difference that the split would show with a chance of 80 %.
    Without ``baselines``, scores by name ``[candidates]``, nothing is compared.

    In a labelled split of a folder with train, ``unseen`` has the same metrics of the candidates
    that train has not seen, ranked among themselves, for the scores and for each baseline.
    """
    part = data.split(split)
    offsets = part.candidates.offsets
    rank = ranks(scores, offsets)
    beyond = part.beyond_accuracy
    entropy = category_entropy(rank, category_codes(data)[part.candidates.values], offsets)
    result: dict[str, Any] = {
        "format": RESULTS_FORMAT,
        "split": split,
        "window": part.window,
        "impressions": len(part.history),
        "unknown_candidates": part.counts["unknown_candidates"],
        "dropped_lines": part.counts.get("dropped_lines", 0),
        "data_fingerprint": part.fingerprint,
        ENTROPY: float(entropy[~beyond].mean()) if not beyond.all() else 0.0,
    }
    result |= {name: part.counts[name] for name in COUNTS if name in part.counts}
    slices = slice_impressions(data, split)
    if part.labels is None:
        return Results(result, rank, None, slices)
    own = impression_metrics(scores, part.labels, offsets)
    result |= summarize(own)
    result["single_class"] -= int(beyond.sum())
    result["users"] = len(np.unique(part.user[own.valid]))
    if not result["evaluated"]:
        for metric in METRICS:
            del result[metric]  # NaN, which JSON cannot hold
    others = {
        name: impression_metrics(values, part.labels, offsets)
        for name, values in (baselines or {}).items()
    }
    if result["evaluated"]:
        intervals, *beside = _intervals(own, list(others.values()), part.user)
        result["intervals"] = dict(zip(METRICS, intervals, strict=True))
        result["baselines"] = {
            name: {
                **{metric: summarize(other)[metric] for metric in METRICS},
                "intervals": {"auc": interval},
                "auc_difference": float(np.mean((own.of("auc") - other.of("auc"))[own.valid])),
                "auc_difference_interval": difference,
                "auc_detectable": power_of(
                    (own.of("auc") - other.of("auc"))[own.valid], part.user[own.valid]
                )["detectable"],
            }
            for (name, other), interval, difference in zip(others.items(), *beside, strict=True)
        }
    if data.train in data.splits:
        result["unseen"] = _on_unseen(data, part, scores, baselines or {})
    result["slices"] = summarize_slices(slices, own, part.user)
    return Results(result, rank, own, slices)


def evaluate_scores(data: NewsData, split: str, scores: NDArray[np.floating]) -> dict[str, Any]:
    """Return the content of ``metrics.json`` for a split's scores, without baselines."""
    return compute_results(data, split, scores).metrics


def per_impression_table(data: NewsData, split: str, results: Results) -> pa.Table:
    """Return the metrics and the groups of every impression, in the order of the file.

    Columns: ``impression_id`` and ``user`` as in the file; ``user_number``, the order in which
    intervals draw weights of users, so that ``compare`` finds the same intervals; ``auc``, ``mrr``,
    ``ndcg@5`` and ``ndcg@10``, null where the impression has no clicked or no skipped candidate;
    ``slice/NAME``, the group in each slice, null where the impression has none.
    """
    part = data.split(split)
    assert results.values is not None
    columns: dict[str, pa.Array] = {
        "impression_id": pa.array(np.asarray(part.impression_id)),
        "user": data.users.take(pa.array(np.asarray(part.user))).cast(pa.string()),
        USER_NUMBER: pa.array(np.asarray(part.user)),
    }
    for metric, values in zip(METRICS, results.values.values, strict=True):
        columns[metric] = pa.array(values, mask=~results.values.valid)
    for name, (groups, code) in results.slices.items():
        columns[f"slice/{name}"] = pa.DictionaryArray.from_arrays(
            pa.array(code, mask=code < 0), pa.array(groups, pa.string())
        )
    return pa.table(columns)


def category_codes(data: NewsData) -> NDArray[np.int64]:
    """Return the number of each catalogue row's category; -1 for padding and unknown news."""
    encoded = data.news["category"].combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int64)
    return np.concatenate([np.full(FIRST_NEWS, -1), codes])


def _on_unseen(
    data: NewsData,
    part: Split,
    scores: NDArray[np.floating],
    baselines: Mapping[str, NDArray[np.float32]],
) -> dict[str, Any]:
    """Return the metrics of the candidates that train has not seen, ranked among themselves."""
    cut, places, _ = cut_to_unseen(part, seen_news(data.split(data.train), data.num_news))
    result: dict[str, Any] = {
        "impressions": len(cut.history),
        "candidates": len(places),
        "users": len(np.unique(cut.user)),
    }
    if not len(places):
        return result
    assert cut.labels is not None
    offsets = cut.candidates.offsets
    own, *others = (
        impression_metrics(values[places], cut.labels, offsets)
        for values in (scores, *baselines.values())
    )
    result |= {metric: summarize(own)[metric] for metric in METRICS}
    bounds = mean_interval(own.values, clusters(cut.user)).tolist()
    result["intervals"] = dict(zip(METRICS, bounds, strict=True))
    result["baselines"] = {
        name: {metric: summarize(other)[metric] for metric in METRICS}
        for name, other in zip(baselines, others, strict=True)
    }
    return result


def _intervals(
    own: ImpressionMetrics, others: list[ImpressionMetrics], users: NDArray[np.integer]
) -> list[list[list[float]]]:
    """Return the intervals of the metrics, of each baseline's AUC, and of the AUC minus it.

    They come from one set of resamples, because a further row costs next to nothing beside the
    random numbers. The intervals of the differences are those of ``paired_interval``.
    """
    valid = own.valid  # depends only on the labels, so it is the same for all
    aucs = np.array([other.of("auc")[valid] for other in others]).reshape(-1, int(valid.sum()))
    rows = np.concatenate([own.values[:, valid], aucs, own.of("auc")[valid] - aucs])
    bounds = mean_interval(rows, users[valid]).tolist()
    middle = len(METRICS) + len(others)
    return [bounds[: len(METRICS)], bounds[len(METRICS) : middle], bounds[middle:]]
