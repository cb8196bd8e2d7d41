"""Makes splits from those on disk: train+dev, the last day of train, a gap before validation.

MIND's dev is the day after train, and its test is the week after dev, with mostly new news. If dev
chooses the checkpoint, a metric on dev is too high. If training ends on the day before, the metric
does not show how fast news age. With the splits made here both effects can be measured, and the
checkpoint can be chosen on news that training has not seen, as most news of test is.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.cache import digest
from newsrec.data.dataset import NewsData, Split, split_of
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.readers.base import count
from newsrec.data.readers.source import SPLITS
from newsrec.errors import UserError

LAST_DAY = "last_day"
"""The last days of the training split, left out of training to choose the checkpoint."""
BLOCK = 1 << 16
"""Histories read at once."""
NONE = "none"
"""No validation: the model trains on everything, and the last checkpoint is kept."""
NEWS_TO_JUDGE = ("all", "new")
"""Candidates by which the validation split chooses the checkpoint: all, or those that train has not
seen."""


class Unseen(NamedTuple):
    """Impressions cut down to the news that training has not seen."""

    split: Split
    """The impressions that still have a clicked and a skipped candidate."""
    places: NDArray[np.int64]
    """Where each of its candidates stands among those of the whole split ``[candidates]``."""
    left_out: dict[str, int]
    """Number of impressions that are left out, by what they lack."""


def choose_splits(
    data: NewsData, train: str = "train", val: str = "dev", stale: int = 0, days: int = 1
) -> NewsData:
    """Return the data with the training split and the validation split of a run.

    ``train`` is a split, or several consecutive splits joined by ``+``; ``val`` is a split,
    last_day or none. last_day makes a split of that name from the last ``days`` days of ``train``,
    whether or not they have impressions, and takes them out of ``train``. Training ends ``stale``
    days before the day on which ``val`` begins: 1 is the day before; 0 leaves nothing out. Raises
    UserError if a split is missing, overlaps, or nothing is left to train on.
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
    if days != 1 and val != LAST_DAY:
        raise UserError(f"data.val_days {days} are those of data.val last_day; data.val is {val}.")
    if val == NONE:
        if stale:
            raise UserError(f"data.stale {stale} counts from the split data.val; it is none.")
    elif val == LAST_DAY:
        if days < 1:
            raise UserError(f"data.val_days is {days}; it must be at least 1.")
        day = learned.time.astype("datetime64[D]")
        judged = day > day.max() - days
        if judged.all():
            what = f"data.val_days {days}" if days > 1 else "data.val last_day"
            raise UserError(
                f"{what}: {train} has impressions of {learned.window} alone, so nothing is left "
                f"to train on. Choose {'fewer' if days > 1 else 'another data.val'}."
            )
        splits[LAST_DAY] = _select(learned, judged, LAST_DAY)
        learned = _select(learned, ~judged, train)
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


def judged_news(data: NewsData, val: str, news: str) -> Unseen | None:
    """Return the impressions that choose the checkpoint, if not the whole of ``val`` does.

    Args:
        data: As ``choose_splits`` returns it.
        val: The split that chooses the checkpoint, or ``none``.
        news: One of ``NEWS_TO_JUDGE``.

    Raises:
        UserError: If there is no such split, or nothing is left of it.
    """
    if news == "all":
        return None
    if val == NONE:
        raise UserError(f"data.val_news {news} says what data.val judges; data.val is none.")
    unseen = cut_to_unseen(data.split(val), seen_news(data.split(data.train), data.num_news))
    if not len(unseen.split.history):
        raise UserError(
            f"data.val_news {news} leaves nothing of {val} to choose a checkpoint by: no "
            f"impression has both a clicked and a skipped candidate that {data.train} has not "
            "seen. Choose a larger data.stale or data.val_days, or data.val_news all."
        )
    return unseen


def seen_news(split: Split, num_news: int) -> NDArray[np.bool_]:
    """Return which news a split shows or has in a history, unknown news left out ``[news]``."""
    seen = np.zeros(num_news, dtype=bool)
    seen[split.candidates.values] = True
    used = np.zeros(split.histories.num_rows, dtype=bool)
    used[split.history] = True
    for start in range(0, len(used), BLOCK):  # so that not all histories are copied at once
        block = split.histories.between(start, start + BLOCK)
        seen[block.values[np.repeat(used[start : start + BLOCK], block.lengths)]] = True
    seen[:FIRST_NEWS] = False
    return seen


def cut_to_unseen(split: Split, seen: NDArray[np.bool_]) -> Unseen:
    """Cut the impressions of a labelled split down to news that training has not seen.

    Seen and unknown candidates are removed. Which candidates stay does not depend on the labels,
    so nothing is gained by ranking new news above old. An impression is kept if it still has a
    click and a skipped candidate.

    Args:
        split: A labelled split. The result has its name and fingerprint.
        seen: Which news training has seen ``[news]``.
    """
    assert split.labels is not None
    values = np.asarray(split.candidates.values)
    new = ~seen[values] & (values >= FIRST_NEWS)
    left = split.candidates.select(new)
    clicked = np.diff(to_offsets(np.asarray(split.labels)[new])[left.offsets])
    keep = (clicked > 0) & (clicked < left.lengths)
    places = np.flatnonzero(new & np.repeat(keep, split.candidates.lengths))
    cut = _take(split._replace(candidates=left, labels=split.labels[new]), keep)
    left_out = {
        "an unseen click": int((clicked == 0).sum()),
        "an unseen skipped candidate": int(((clicked > 0) & ~keep).sum()),
    }
    return Unseen(cut, places, left_out)


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
    """Return some impressions of a split as a split of another name."""
    part = _take(split, keep)._replace(name=name)
    return part._replace(fingerprint=digest(split.fingerprint, name, part.window))


def _take(split: Split, keep: NDArray[np.bool_]) -> Split:
    """Return some impressions of a split, possibly none."""
    places, candidates = np.flatnonzero(keep), split.candidates
    rows: slice | NDArray[np.int64] = places
    shown: slice | NDArray[np.bool_]
    if len(places) and places[-1] - places[0] + 1 == len(places):  # stays mapped, is not copied
        rows = slice(places[0], places[-1] + 1)
        shown = slice(candidates.offsets[rows.start], candidates.offsets[rows.stop])
        candidates = candidates.between(rows.start, rows.stop)
    else:
        lengths = candidates.lengths
        shown = np.repeat(keep, lengths)
        candidates = Ragged(candidates.values[shown], to_offsets(lengths[places]))
    part = split._replace(
        impression_id=split.impression_id[rows],
        user=split.user[rows],
        time=split.time[rows],
        history=split.history[rows],
        candidates=candidates,
        labels=None if split.labels is None else split.labels[shown],
    )
    counts = _counts(part)
    if "sampled_candidates" in split.counts:  # then all skipped candidates are
        counts["sampled_candidates"] = counts["candidates"] - counts["clicks"]
    if "beyond_accuracy" in split.counts:
        counts["beyond_accuracy"] = int(part.beyond_accuracy.sum())
    return part._replace(counts=counts)


def _counts(split: Split) -> dict[str, int]:
    lengths = split.histories.lengths[split.history]
    counts = count(lengths, split.candidates.values, split.labels)
    return counts | {"users": len(np.unique(split.user))}
