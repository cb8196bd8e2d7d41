"""Means of the metrics beyond accuracy, with intervals that are clustered by user.

The mean of a metric of impressions is resampled by users, as AUC is. Coverage and Gini are no
means, so their intervals come from a jackknife: users are divided into groups, and the metric is
computed without each. The lists of other users that fragmentation draws are treated as fixed.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import stdtrit

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import NewsData
from newsrec.evaluation.beyond import (
    CUTS,
    OF_VECTORS,
    OF_VOICES,
    OVER_ALL,
    PER_IMPRESSION,
    WHOLE,
)
from newsrec.evaluation.beyond_lists import Top, measure, shown_news, top_of
from newsrec.evaluation.intervals import mean_interval
from newsrec.evaluation.pools import kinds_of
from newsrec.evaluation.runs import BEYOND, TOP, EvaluatedRun
from newsrec.evaluation.slices import clusters
from newsrec.evaluation.voices import Voices

MOST = 1_000_000
"""Most impressions that are measured; if there are more, this many, evenly over the file."""
GROUPS = 40
"""Most groups of users of the jackknife."""
SAMPLE = 4
"""Numbers of the first news vector that tell whether two results have the same vectors."""


class Beyond(NamedTuple):
    """Metrics beyond accuracy of a split."""

    metrics: dict[str, Any]
    """The field ``beyond`` of ``metrics.json``."""
    values: NDArray[np.float32]
    """Metrics of impressions, in the order of ``PER_IMPRESSION``; NaN where an impression has none
    or was not measured ``[metrics, impressions]``."""
    top: Top
    """The best-ranked candidates."""


def beyond_accuracy(
    data: NewsData,
    split: str,
    ranks: NDArray[np.integer],
    baselines: Mapping[str, NDArray[np.integer]],
    vectors: NDArray[np.floating] | None,
    voices: Voices | None = None,
) -> Beyond:
    """Measure the first news of a ranking and of baselines, for the impressions of a split.

    Args:
        data: The data.
        split: Name of the split.
        ranks: Rank of each candidate ``[candidates]``.
        baselines: Ranks of each baseline, by name.
        vectors: News vectors for diversity and so on ``[news, dim]``; None leaves these out.
        voices: Which named entities count; None counts persons by name.

    Returns:
        ``metrics`` has the fields ``shown_news``, ``vectors`` (the first numbers of the first news
        vector, by which ``compare`` knows the PLM), ``voices`` (``Voices.described``; None without
        a file), ``metrics`` and ``baselines``. ``metrics`` has for each metric its ``value``,
        ``interval`` and, for a mean, number of ``impressions``; ``baselines`` has for each baseline
        and metric the same, and the ``difference`` of these ranks from it, with
        ``difference_interval``.
    """
    part = data.split(split)
    rows = _measured(~part.beyond_accuracy)
    top = top_of(part, ranks)
    top.news[part.beyond_accuracy] = 0  # these lists count in no metric, nor in compare
    tops = {"": top.take(rows)}
    tops |= {name: top_of(part, rank).take(rows) for name, rank in baselines.items()}
    kinds = kinds_of(data, voices)
    values = measure(data, split, tops, vectors, rows, kinds=kinds)
    users = np.asarray(part.user)[rows]
    shown = int(shown_news(part).sum())
    whole = {name: leave_outs(best.news, users, shown) for name, best in tops.items()}
    owner = clusters(users)
    own = values[""]
    metrics = _own_lines(own, whole[""], owner)
    beside = {
        name: _lines_beside(own, values[name], whole[""], whole[name], owner) for name in baselines
    }
    sample = None
    if vectors is not None:
        first = np.asarray(vectors[FIRST_NEWS], dtype=np.float64)
        sample = (first[:SAMPLE] / max(float(np.linalg.norm(first)), 1e-12)).tolist()
    counted = None if voices is None else voices.described(kinds.found)
    found = {"shown_news": shown, "vectors": sample, "voices": counted}
    found |= {"metrics": metrics, "baselines": beside}
    all_values = np.full((len(own), len(part.history)), np.nan, dtype=np.float32)
    all_values[:, rows] = own
    return Beyond(_plain(found), all_values, top)


def _own_lines(
    own: NDArray[np.floating], whole: Mapping[str, NDArray[np.float64]], owner: NDArray[np.integer]
) -> dict[str, Any]:
    """Return each metric of a ranking with its interval; without those that no impression has."""
    bounds = row_intervals(own, owner).tolist()
    numbers = (~np.isnan(own)).sum(axis=1)
    return {
        name: {
            "value": float(np.nanmean(row, dtype=np.float64)),
            "interval": low_high,
            "impressions": int(number),
        }
        for name, row, low_high, number in zip(PER_IMPRESSION, own, bounds, numbers, strict=True)
        if number
    } | {name: {"value": all_[0], "interval": _share_reach(all_)} for name, all_ in whole.items()}


def _lines_beside(
    own: NDArray[np.floating],
    other: NDArray[np.floating],
    own_whole: Mapping[str, NDArray[np.float64]],
    other_whole: Mapping[str, NDArray[np.float64]],
    owner: NDArray[np.integer],
) -> dict[str, Any]:
    """Return each metric of a baseline, and the difference of a ranking from it."""
    lines = _own_lines(other, other_whole, owner)
    difference = own - other
    bounds = row_intervals(difference, owner).tolist()
    for metric, row, low_high in zip(PER_IMPRESSION, difference, bounds, strict=True):
        if np.isnan(row).all():
            lines.pop(metric, None)
            continue
        mean = float(np.nanmean(row, dtype=np.float64))
        lines[metric] |= {"difference": mean, "difference_interval": low_high}
    for metric, values in own_whole.items():
        apart = values - other_whole[metric]
        lines[metric] |= {"difference": apart[0], "difference_interval": _reach(apart)}
    return lines


def with_beyond(table: pa.Table, beyond: Beyond) -> pa.Table:
    """Return the table of impressions with further columns.

    ``beyond/NAME`` is a metric, null where an impression has none; a metric that no impression has
    gets no column. ``top`` has the catalogue rows of the best-ranked candidates, 0 for none.
    """
    for name, row in zip(PER_IMPRESSION, beyond.values, strict=True):
        if np.isnan(row).all():
            continue
        table = table.append_column(f"{BEYOND}{name}", pa.array(row, mask=np.isnan(row)))
    news = beyond.top.news
    rows = pa.FixedSizeListArray.from_arrays(pa.array(news.ravel()), news.shape[1])
    return table.append_column(TOP, rows)


def differences(
    a: Sequence[EvaluatedRun], b: Sequence[EvaluatedRun], left_out: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """Compare two sides beyond accuracy, in each metric that all runs have, but not ``left_out``.

    Each has both means, their difference and its interval, paired by impression and clustered by
    user. Values of several runs of a side are averaged; the interval does not cover the seeds.
    """
    runs = [*a, *b]
    listed = [run.top.any(axis=1) for run in runs if run.top is not None]
    rows = _measured(np.all([np.ones(len(runs[0].number), dtype=bool), *listed], axis=0))
    users = runs[0].number[rows]
    owner = clusters(users)
    named = [name for name in _shared(runs) if name not in left_out]
    result: dict[str, dict[str, Any]] = {}
    if named:
        means = [
            np.mean([[run.beyond[n][rows] for n in named] for run in side], axis=0)
            for side in (a, b)
        ]
        apart = means[0] - means[1]
        for name, one, other, row, bounds in zip(
            named, *means, apart, row_intervals(apart, owner).tolist(), strict=True
        ):
            both = ~np.isnan(row)
            if both.any():
                line = {
                    "a": one[both].mean(),
                    "b": other[both].mean(),
                    "difference": row[both].mean(),
                }
                result[name] = line | {"interval": bounds}
    if all(run.top is not None and "beyond" in run.metrics for run in runs):
        shown = runs[0].metrics["beyond"]["shown_news"]
        for side in (a, b):
            tops = [run.top[rows] for run in side if run.top is not None]
            wholes = [leave_outs(top, users, shown) for top in tops]
            for name in wholes[0]:
                found = np.mean([whole[name] for whole in wholes], axis=0)
                result.setdefault(name, {})["a" if side is a else "b"] = found
        for name in wholes[0]:
            one, other = result[name]["a"], result[name]["b"]
            line = {"a": one[0], "b": other[0], "difference": one[0] - other[0]}
            result[name] = line | {"interval": _reach(one - other)}
    return _plain(result)


def unlike_metrics(runs: Sequence[EvaluatedRun]) -> dict[str, list[str]]:
    """Return by reason what cannot be compared: missing in a run, of other vectors or voices."""
    have = [sum(name in run.beyond for run in runs) for name in PER_IMPRESSION]
    lacking = [n for n, count in zip(PER_IMPRESSION, have, strict=True) if 0 < count < len(runs)]
    found = {"missing": lacking}
    if not _same_vectors(runs):
        found["vectors"] = [name for name in _shared(runs) if name in OF_VECTORS]
    if not _same_voices(runs):
        found["voices"] = [name for name in _shared(runs) if name in OF_VOICES]
    return {reason: names for reason, names in found.items() if names}


def _shared(runs: Sequence[EvaluatedRun]) -> list[str]:
    return [name for name in PER_IMPRESSION if all(name in run.beyond for run in runs)]


def _measured(may: NDArray[np.bool_]) -> NDArray[np.integer]:
    """Return the rows of impressions that are measured, at most ``MOST`` of those that may be."""
    rows = np.flatnonzero(may)
    return rows[np.linspace(0, len(rows) - 1, min(MOST, len(rows))).round().astype(int)]


def _same_vectors(runs: Sequence[EvaluatedRun]) -> bool:
    """Return whether the news vectors of all runs, if they have any, are those of one PLM."""
    samples = [run.metrics.get("beyond", {}).get("vectors") for run in runs]
    known = [sample for sample in samples if sample is not None]
    sizes = {len(sample) for sample in known}
    return len(sizes) < 2 and all(np.allclose(known[0], other, atol=0.01) for other in known)


def _same_voices(runs: Sequence[EvaluatedRun]) -> bool:
    """Return whether all runs count the same named entities, in the same groups."""
    files = [run.metrics.get("beyond", {}).get("voices") or {} for run in runs]
    return len({file.get("digest") for file in files}) < 2


def leave_outs(
    news: NDArray[np.integer], users: NDArray[np.integer], shown: int
) -> dict[str, NDArray[np.float64]]:
    """Return each metric of ``WHOLE`` of all lists, then without each group of users.

    There are none if no known news is shown.

    Args:
        news: The best-ranked candidates, 0 for none ``[impressions, LONGEST]``.
        users: Number of each impression's user ``[impressions]``.
        shown: Number of news items that the impressions show.
    """
    if not shown:
        return {}
    _, owner = np.unique(users, return_inverse=True)
    groups = min(GROUPS, int(owner.max(initial=-1)) + 1)
    result: dict[str, NDArray[np.float64]] = {}
    for k in CUTS:
        width = int(news.max(initial=0)) + 1
        cells = (owner % max(1, groups))[:, None] * width + news[:, :k]
        counts = np.bincount(cells.ravel(), minlength=groups * width).reshape(groups, width)
        counts[:, :FIRST_NEWS] = 0
        total = counts.sum(axis=0)
        listed = np.flatnonzero(total)
        counts, total = counts[:, listed], total[listed]
        unlisted = np.zeros(max(0, shown - len(listed)), dtype=np.int64)
        exposures = [np.concatenate([each, unlisted]) for each in (total, *(total - counts))]
        for name, whole in OVER_ALL.items():
            result[f"{name}@{k}"] = np.array([whole.of(each) for each in exposures])
    return {name: result[name] for name in WHOLE}


def jackknife(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % interval of a metric, given first, from the values without each group."""
    without = values[1:]
    number = len(without)
    if number < 2:
        return float("nan"), float("nan")
    error = float(np.sqrt((number - 1) * without.var()))
    reach = float(stdtrit(number - 1, 0.975)) * error  # Student's quantile
    return float(values[0]) - reach, float(values[0]) + reach


def row_intervals(rows: NDArray[np.floating], users: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the interval of the mean of each row, of its values that are not NaN ``[rows, 2]``.

    Rows with NaN in the same places are resampled together, which saves work.
    """
    bounds = np.full((len(rows), 2), np.nan)
    alike: dict[bytes, list[int]] = {}
    for number, has in enumerate(~np.isnan(rows)):
        if has.any():
            alike.setdefault(np.packbits(has).tobytes(), []).append(number)
    for numbers in alike.values():
        has = ~np.isnan(rows[numbers[0]])
        bounds[numbers] = mean_interval(rows[numbers][:, has], users[has])
    return bounds


def _reach(values: NDArray[np.float64]) -> list[float] | None:
    low, high = jackknife(values)
    return None if np.isnan(low) else [low, high]


def _share_reach(values: NDArray[np.float64]) -> list[float] | None:
    """Return the interval of a share, which is from 0 to 1."""
    bounds = _reach(values)
    return bounds if bounds is None else [max(bounds[0], 0.0), min(bounds[1], 1.0)]


def _plain(values: Any) -> Any:
    """Turn NumPy's numbers into Python's, also inside dictionaries."""
    if isinstance(values, dict):
        return {name: _plain(value) for name, value in values.items()}
    return float(values) if isinstance(values, np.floating) else values
