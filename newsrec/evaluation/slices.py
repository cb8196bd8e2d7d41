"""Group impressions: by user, by how new the news is, by what was clicked and when.

A mean over a split hides how well a model serves users without history, or users and news that
training never saw. Each slice puts every impression into one group, or into none if it has no such
property (an impression without a click has no clicked news). All are array operations over the
whole split.

News is *in train* if it was shown or in a history in the training split. Unknown news, which no
``news.tsv`` has, is never in train.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import NewsData, Split
from newsrec.data.ragged import to_offsets
from newsrec.data.splits import seen_news
from newsrec.evaluation.ages import NEVER, first_shown
from newsrec.evaluation.intervals import mean_interval
from newsrec.metrics import METRICS, ImpressionMetrics

SLICES = {
    "history_length": "clicks in the user's history, unknown news left out, before any cut",
    "user": "whether train has the user",
    "shown_new": "how many of the candidates are not in train",
    "clicked_new": "whether the first clicked news item is in train",
    "history_new": "whether a news item of the history is not in train; empty histories left out",
    "news_age": "time since the first clicked news item was first shown, in any split",
    "category": "category of the first clicked news item",
    "candidates": "number of candidates",
    "day": "when it was shown",
}
"""What each slice groups impressions by, in the order in which slices are reported."""

NO_GROUP = -1
"""Code of an impression that is in no group."""
HISTORY_LENGTHS = {"0": 0, "1-5": 1, "6-20": 6, "21-50": 21, "> 50": 51}
"""Groups of history lengths, with the smallest length of each."""
NUM_CANDIDATES = {"1": 0, "2-10": 2, "11-25": 11, "26-50": 26, "51-100": 51, "> 100": 101}
AGES = {"< 1 h": 0, "1-6 h": 3600, "6-24 h": 6 * 3600, "> 24 h": 24 * 3600}
"""Groups of ages, with the smallest of each in seconds; exactly 24 hours are in the last."""
MAX_CATEGORIES = 24
"""Most categories with a group of their own, the rest share one; MIND has 18."""
MAX_PERIODS = 60
"""Most days or months that are groups; with more days, months are used, with more months, years."""
CLUSTERS = 2000
"""Most clusters in the bootstrap of a group. With more users, each cluster is a bundle of whole
users: the standard error is still right within 1.6 % (``1 / sqrt(2 * CLUSTERS)``), in a fraction of
the time."""


class Slice(NamedTuple):
    """A division of a split's impressions into groups."""

    groups: tuple[str, ...]
    """Names of the groups, in the order in which they are shown."""
    code: NDArray[np.int8]
    """Number of each impression's group, ``NO_GROUP`` where it has none ``[impressions]``."""


def slice_impressions(data: NewsData, split: str) -> dict[str, Slice]:
    """Return the group of every impression in each of ``SLICES``.

    Slices by clicked news are left out if the split has no labels, and slices by what is new if the
    data has no train.
    """
    part = data.split(split)
    result = {
        "history_length": _binned(part.histories.lengths[part.history], HISTORY_LENGTHS),
        "candidates": _binned(part.candidates.lengths, NUM_CANDIDATES),
        "day": _days(part.time),
    }
    clicked = None if part.labels is None else first_clicked(part)
    if clicked is not None:
        result["category"] = _categories(data, clicked)
        age = np.where(clicked >= FIRST_NEWS, part.time.astype(np.int64), NEVER)
        age -= first_shown(data)[np.maximum(clicked, 0)]
        result["news_age"] = _binned(age, AGES, clicked >= FIRST_NEWS)
    if data.train in data.splits:
        result |= _newness(data.split(data.train), part, clicked, data.num_news, len(data.users))
    return {name: result[name] for name in SLICES if name in result}


def summarize_slices(
    slices: Mapping[str, Slice], metrics: ImpressionMetrics, users: NDArray[np.integer]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the metrics of each group that has impressions, by slice and group.

    The counts of a group are ``impressions``, ``evaluated`` and ``users`` (of the evaluated
    impressions). If any impression was evaluated, it also has the metrics and, under ``intervals``,
    the 95 % interval of the AUC, clustered by user.
    """
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for name, (groups, code) in slices.items():
        result[name] = {}
        for number, group in enumerate(groups):
            inside = code == number
            if not inside.any():
                continue
            chosen = np.flatnonzero(inside & metrics.valid)
            summary: dict[str, Any] = {
                "impressions": int(inside.sum()),
                "evaluated": len(chosen),
                "users": len(np.unique(users[chosen])),
            }
            if len(chosen):
                means = metrics.values[:, chosen].mean(axis=1).tolist()
                summary |= dict(zip(METRICS, means, strict=True))
                bounds = mean_interval(metrics.of("auc")[chosen], clusters(users[chosen]))
                summary["intervals"] = {"auc": bounds.tolist()}
            result[name][group] = summary
    return result


def clusters(users: NDArray[np.integer]) -> NDArray[np.int64]:
    """Return the cluster of each impression: its user, or a bundle if there are too many users."""
    distinct, owner = np.unique(users, return_inverse=True)
    return owner if len(distinct) <= CLUSTERS else owner % CLUSTERS


def first_clicked(split: Split) -> NDArray[np.int64]:
    """Return the catalogue row of each impression's first click, -1 if none ``[impressions]``."""
    assert split.labels is not None
    offsets = np.asarray(split.candidates.offsets)
    clicks = np.append(np.flatnonzero(split.labels), len(split.labels))
    first = clicks[np.searchsorted(clicks, offsets[:-1])]
    found = first < offsets[1:]
    news = np.full(len(found), -1, dtype=np.int64)
    news[found] = split.candidates.values[first[found]]
    return news


def _newness(
    train: Split, part: Split, clicked: NDArray[np.int64] | None, num_news: int, num_users: int
) -> dict[str, Slice]:
    """Return the slices that compare an impression with train."""
    known = seen_news(train, num_news)
    in_train = np.zeros(num_users, dtype=bool)
    in_train[train.user] = True

    shown = part.candidates.lengths
    new = _count(~known[part.candidates.values], part.candidates.offsets)
    history_new = _count(~known[part.histories.values], part.histories.offsets)[part.history]
    has_history = part.histories.lengths[part.history] > 0
    result = {
        "user": _coded(("in train", "new"), ~in_train[part.user]),
        "shown_new": _coded(
            ("none new", "some new", "all new"), (new > 0) + 1 * ((new == shown) & (new > 0))
        ),
        "history_new": _coded(("none new", "some new"), history_new > 0, has_history),
    }
    if clicked is not None:
        result["clicked_new"] = _coded(("in train", "new"), ~known[clicked], clicked >= 0)
    return result


def _count(values: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many values of each row are True."""
    return np.diff(to_offsets(values)[offsets])


def _binned(
    values: NDArray[np.integer], bins: Mapping[str, int], has: NDArray[np.bool_] | None = None
) -> Slice:
    """Group numbers into bins, given as names and smallest values."""
    least = np.array(list(bins.values()))
    return _coded(tuple(bins), np.searchsorted(least, values, side="right") - 1, has)


def _coded(
    groups: tuple[str, ...], code: NDArray[Any], has: NDArray[np.bool_] | None = None
) -> Slice:
    """Return a slice with these group numbers; no group where ``has`` is False."""
    assert len(groups) <= np.iinfo(np.int8).max
    return Slice(groups, np.where(True if has is None else has, code, NO_GROUP).astype(np.int8))


def _categories(data: NewsData, clicked: NDArray[np.int64]) -> Slice:
    """Group impressions by the category of the clicked news, most clicked categories first."""
    encoded = data.news["category"].combine_chunks().dictionary_encode()
    names = [name or "(none)" for name in encoded.dictionary.to_pylist()]
    real = clicked >= FIRST_NEWS
    category = np.zeros(len(clicked), dtype=np.int64)
    category[real] = encoded.indices.to_numpy()[clicked[real] - FIRST_NEWS]
    clicks = np.bincount(category[real], minlength=len(names))
    order = np.argsort(-clicks, kind="stable")
    order = order[clicks[order] > 0]
    groups = [names[i] for i in order[:MAX_CATEGORIES]]
    if len(order) > MAX_CATEGORIES:
        groups.append("(others)")
    code = np.zeros(max(1, len(names)), dtype=np.int64)
    code[order] = np.minimum(np.arange(len(order)), MAX_CATEGORIES)
    return _coded(tuple(groups), code[category], real)


def _days(time: NDArray[np.datetime64]) -> Slice:
    """Group impressions by day, or by month or year if there are too many."""
    for unit in ("D", "M", "Y"):
        periods, code = np.unique(time.astype(f"datetime64[{unit}]"), return_inverse=True)
        if len(periods) <= MAX_PERIODS:
            break
    return _coded(tuple(map(str, periods)), code)
