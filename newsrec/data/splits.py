"""Makes splits from those on disk: train+dev, the last day of train, a gap before validation.

MIND's dev is the day after train, and its test is the week after dev, with mostly new news. If dev
chooses the checkpoint, a metric on dev is too high. If training ends on the day before, the metric
does not show how fast news age. With the splits made here both effects can be measured.
"""

import numpy as np
from numpy.typing import NDArray

from newsrec.data import UNKNOWN_NEWS
from newsrec.data.cache import digest
from newsrec.data.dataset import NewsData, Split, split_of
from newsrec.data.ragged import Ragged
from newsrec.data.readers.source import SPLITS
from newsrec.errors import UserError

LAST_DAY = "last_day"
"""The last day of the training split, left out of training to choose the checkpoint."""
NONE = "none"
"""No validation: the model trains on everything, and the last checkpoint is kept."""


def choose_splits(
    data: NewsData, train: str = "train", val: str = "dev", stale: int = 0
) -> NewsData:
    """Return the data with the training split and the validation split of a run.

    Args:
        data: The data folder.
        train: A split, or several consecutive splits joined by ``+``.
        val: A split, ``last_day`` or ``none``. ``last_day`` makes a split of that name from the
            last day of ``train``, and takes this day out of ``train``.
        stale: Training ends this many days before the day on which ``val`` begins: 1 is the day
            before; 0 leaves nothing out.

    Returns:
        The same data, where ``splits`` also has ``train``, which may be shorter than on disk, and
        ``val``.

    Raises:
        UserError: If a split is missing, overlaps, or nothing is left to train on.
    """
    if val not in (LAST_DAY, NONE):
        data.split(val)
    splits = dict(data.splits)
    parts = train.split("+")
    learned = data.split(train) if len(parts) == 1 else _join(data, parts)
    if val in parts:
        raise UserError(
            f"data.val is {val}, which data.train {train} trains on. Choose last_day, or none to "
            "keep the last checkpoint."
        )
    if val == NONE:
        if stale:
            raise UserError(f"data.stale {stale} counts from the split data.val; it is none.")
    elif val == LAST_DAY:
        day = learned.time.astype("datetime64[D]")
        last = day.max()
        if day.min() == last:
            raise UserError(
                f"data.val last_day: {train} has impressions of {last} alone, so nothing is left "
                "to train on. Choose another data.val."
            )
        splits[LAST_DAY] = _select(learned, day == last, LAST_DAY)
        learned = _select(learned, day < last, train)
    if val != NONE and stale:
        if stale < 0:
            raise UserError(f"data.stale is {stale}; it must be at least 0.")
        first = data._replace(splits=splits).split(val).days[0]
        day = learned.time.astype("datetime64[D]")
        kept = day <= first - stale
        if not kept.any():
            raise UserError(
                f"data.stale {stale} leaves nothing of {train} to train on: it has impressions of "
                f"{learned.window}, and {val} begins on {first}. Choose a smaller gap."
            )
        if not kept.all():
            learned = _select(learned, kept, train)
    splits[train] = learned
    return data._replace(splits=splits, train=train)


def labelled_splits(data: NewsData) -> list[Split]:
    """Return the splits with labels, except joined ones, which repeat other splits' impressions."""
    joined = data.train.split("+") if "+" in data.train else []
    return [s for s in data.splits.values() if s.labels is not None and s.name not in joined]


def _join(data: NewsData, parts: list[str]) -> Split:
    """Join splits into one; their rows are consecutive, so nothing is copied."""
    order = [name for name in SPLITS if name in data.splits]
    splits = [data.split(part) for part in parts]
    names = "+".join(parts)
    for split in splits:
        if split.labels is None:
            raise UserError(f"data.train {names}: {split.name} has no labels to train on.")
    if names not in "+".join(order):
        possible = "+".join(name for name in order if data.splits[name].labels is not None)
        raise UserError(f"data.train is {names}; join splits in their order: {possible}.")
    begin = sum(data.splits[name].counts["impressions"] for name in order[: order.index(parts[0])])
    end = begin + sum(split.counts["impressions"] for split in splits)
    fingerprint = digest(*(split.fingerprint for split in splits))
    num_news = max(split.num_news for split in splits)
    joined = split_of(data.arrays, names, begin, end, {"clicks": 0}, fingerprint, num_news)
    counts = _counts(joined)
    sampled = sum(split.counts.get("sampled_candidates", 0) for split in splits)
    return joined._replace(counts=counts | ({"sampled_candidates": sampled} if sampled else {}))


def _select(split: Split, keep: NDArray[np.bool_], name: str) -> Split:
    """Return some impressions of a split."""
    rows = np.flatnonzero(keep)
    labels = split.labels
    if labels is not None:
        labels = Ragged(labels, split.candidates.offsets).take(rows).values
    part = split._replace(
        name=name,
        impression_id=split.impression_id[rows],
        user=split.user[rows],
        time=split.time[rows],
        history=split.history[rows],
        candidates=split.candidates.take(rows),
        labels=labels,
    )
    fingerprint = digest(split.fingerprint, name, part.window)
    counts = _counts(part)
    if "sampled_candidates" in split.counts:  # then all skipped candidates are
        counts["sampled_candidates"] = counts["candidates"] - counts["clicks"]
    return part._replace(counts=counts, fingerprint=fingerprint)


def _counts(split: Split) -> dict[str, int]:
    """Return the counts that need only the arrays, not the files."""
    lengths = split.histories.lengths[split.history]
    counts = {
        "impressions": len(split.history),
        "users": len(np.unique(split.user)),
        "history_news": int(lengths.sum()),
        "empty_histories": int((lengths == 0).sum()),
        "candidates": len(split.candidates.values),
        "unknown_candidates": int((split.candidates.values == UNKNOWN_NEWS).sum()),
    }
    return counts if split.labels is None else counts | {"clicks": int(split.labels.sum())}
