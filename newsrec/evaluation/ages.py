"""When each news item was first shown, and a baseline that ranks newer news first.

MIND has no dates of publication. The time of the first impression that has a news item as a
candidate is used instead, so news published before the data begin looks newer than it is.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import NewsData

NEVER = np.iinfo(np.int64).max
"""First time of padding, of unknown news and of news that no impression shows."""
STEP = 1 << 14
"""Impressions processed at once."""


def first_shown(data: NewsData) -> NDArray[np.int64]:
    """Return the second at which each news item is first a candidate in any split ``[news]``.

    Labels are not read, so splits without labels count too. An impression that shows a news item
    never comes before its first time, so the times contain no more than a live system would know.
    """
    first = np.full(data.num_news, NEVER)
    bounds = np.asarray(data.arrays["candidate_offsets"])
    news = data.arrays["candidate_values"]
    time = np.asarray(data.arrays["time"]).astype(np.int64)
    for begin in range(0, len(time), STEP):
        ends = bounds[begin : begin + STEP + 1]
        times = np.repeat(time[begin : begin + STEP], np.diff(ends))
        np.minimum.at(first, news[ends[0] : ends[-1]], times)
    first[:FIRST_NEWS] = NEVER
    return first


def ages(data: NewsData, split: str) -> NDArray[np.float32]:
    """Return the hours since each candidate of a split was first shown in any split.

    An age depends on no later impression and on no label. A news item that no earlier impression
    shows has age 0; unknown news has NaN ``[candidates]``.
    """
    hours = np.empty(len(data.split(split).candidates.values), dtype=np.float32)
    for block, part in _hours(data, split):
        hours[block] = part
    return hours


def age_scores(data: NewsData, split: str) -> NDArray[np.float32]:
    """Newer news first: 1 / (1 + hours since the candidate was first shown in any split).

    Ages are those of ``ages``; unknown news has 0.
    """
    scores = np.empty(len(data.split(split).candidates.values), dtype=np.float32)
    for block, hours in _hours(data, split):
        scores[block] = np.where(np.isnan(hours), 0, 1 / (1 + hours))
    return scores


def _hours(data: NewsData, split: str) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yield blocks of candidates, and how old each is in hours; NaN for unknown news."""
    target = data.split(split)
    first = first_shown(data)
    bounds = np.asarray(target.candidates.offsets)
    for begin in range(0, len(target.time), STEP):
        ends = bounds[begin : begin + STEP + 1]
        block = slice(int(ends[0]), int(ends[-1]))
        news = target.candidates.values[block]
        now = np.repeat(target.time[begin : begin + STEP].astype(np.int64), np.diff(ends))
        known = news >= FIRST_NEWS
        yield block, np.where(known, np.where(known, now - first[news], 0) / 3600, np.nan)
