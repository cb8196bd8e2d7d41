"""When each story was first shown, as far as a data folder tells, and newer stories first.

MIND has no dates of publication. The first impression in which a story is a candidate is the first
that the folder knows of it; stories of before the folder begins look younger than they are.
"""

import numpy as np
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import NewsData

NEVER = np.iinfo(np.int64).max
"""First time of a story that no impression shows, of padding and of the unknown story."""
STEP = 1 << 14
"""Impressions at once."""


def first_shown(data: NewsData) -> NDArray[np.int64]:
    """Return the second at which each story is first a candidate, in any split ``[news]``.

    Labels are not read, so the impressions of a split without them count as well. No story is first
    shown after an impression that shows it: nothing here knows more than a live system would.
    """
    first = np.full(data.num_news, NEVER)
    bounds = np.asarray(data.arrays["candidate_offsets"])
    stories = data.arrays["candidate_values"]
    time = np.asarray(data.arrays["time"]).astype(np.int64)
    for begin in range(0, len(time), STEP):
        ends = bounds[begin : begin + STEP + 1]
        times = np.repeat(time[begin : begin + STEP], np.diff(ends))
        np.minimum.at(first, stories[ends[0] : ends[-1]], times)
    first[:FIRST_NEWS] = NEVER
    return first


def age_scores(data: NewsData, split: str) -> NDArray[np.float32]:
    """Newer stories first: 1 / (1 + hours since the candidate was first shown, in any split).

    Only impressions up to the scored one decide, and no label is read. A story that no earlier
    impression shows is new.
    """
    target = data.split(split)
    first = first_shown(data)
    scores = np.empty(len(target.candidates.values), dtype=np.float32)
    bounds = np.asarray(target.candidates.offsets)
    for begin in range(0, len(target.time), STEP):
        ends = bounds[begin : begin + STEP + 1]
        stories = target.candidates.values[ends[0] : ends[-1]]
        now = np.repeat(target.time[begin : begin + STEP].astype(np.int64), np.diff(ends))
        known = stories >= FIRST_NEWS
        hours = np.where(known, now - first[stories], 0) / 3600
        scores[ends[0] : ends[-1]] = known / (1 + hours)
    return scores
