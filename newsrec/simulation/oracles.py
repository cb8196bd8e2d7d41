"""What each ability is worth in a world of tastes: scorers that know all but one thing.

Each oracle scores with the utilities from which the clicks were drawn, except for the part that it
does not know. Where it replaces the match of the best interest by an estimate, the estimate is
scaled by the least squares fit to the true match over the split's candidates.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from newsrec.data.ragged import Ragged
from newsrec.metrics import mind_metrics
from newsrec.simulation.interests import Interests, match_news, week_of
from newsrec.simulation.tastes import TasteSplit, TasteWorld

NEAREST = 5
"""Clicks nearest to a candidate, for the oracle ``nearest_clicks``."""
RIDGE = 1.0
"""Penalty of the regression for the best single vector; few interests and many news need little."""
BLOCK = 1 << 18
"""Candidates handled at a time, to bound memory."""

ORACLES = {
    "no_position": "all but the order in which the user saw the list",
    "readable": "all but that order and the hidden appeal: nobody who reads the files knows these",
    "no_appeal": "all but both appeals",
    "no_freshness": "all but the age",
    "no_duplicates": "all but which near-duplicates the user has read",
    "no_drift": "all, but the interests are those of the first week of the histories",
    "no_new_topics": "all, but news of topics that begin in the test week match like the average",
    "no_abstracts": "all but what only abstracts say about the news",
    "title_only": "all but what titles do not say about the news",
    "single_vector": "all, but the user is the one vector that fits the matches best",
    "mean_interest": "all, but the user is the mean of the true interests by weight",
    "nearest_clicks": "all, but the user is the mean of the clicks and the mean of the 5 nearest",
    "mean_click": "all, but the user is the mean of the clicks in the history",
    "no_tastes": "nothing about the user",
    "tastes_only": "the match with the best interest and nothing else",
}


def oracle_aucs(world: TasteWorld, split: TasteSplit) -> dict[str, float]:
    """Return the AUC of each of ``ORACLES`` on a split."""
    shown = split.shown
    scores = oracle_scores(world, split)
    return {
        name: mind_metrics(score.astype(np.float32), shown.labels, shown.candidates.offsets)["auc"]
        for name, score in scores
    }


def oracle_scores(
    world: TasteWorld, split: TasteSplit
) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Yield the name and the scores of each of ``ORACLES`` ``[candidates]``."""
    news, shown, parts = world.news, split.shown, split.parts
    utility: NDArray[np.float64] = np.sum(parts, axis=0)
    rows, owner = shown.candidates.values, shown.candidates.owners()
    user, week = shown.user[owner], week_of(shown.day)[owner]
    rest = utility - parts.taste
    full = news.contents.full

    def instead(*estimates: NDArray[np.floating]) -> NDArray[np.float64]:
        columns = np.stack([np.ones(len(rows)), *estimates], axis=1).astype(np.float64)
        fitted, *_ = np.linalg.lstsq(columns, parts.taste, rcond=None)
        return rest + columns @ fitted

    yield "no_position", utility - parts.position
    yield "readable", utility - parts.position - parts.hidden
    yield "no_appeal", utility - parts.appeal - parts.hidden
    yield "no_freshness", utility - parts.freshness
    yield "no_duplicates", utility - parts.duplicates
    affinity = world.interests.affinity
    yield "no_drift", instead(affinity(news.match, user, np.zeros_like(week), rows))
    late = news.is_late[rows]
    known = np.where(late, parts.taste[~late].mean(), parts.taste)
    yield "no_new_topics", rest + known
    for name, part in (("no_abstracts", "no_abstract"), ("title_only", "title")):
        of_part = match_news(full, getattr(news.contents, part))
        yield name, instead(affinity(of_part, user, week, rows))
    yield "single_vector", instead(_single_vector(world, user, week, rows))
    means = mean_interests(world.interests, full)
    yield "mean_interest", instead(np.einsum("nd,nd->n", means[user, week], full[rows]))
    mean, nearest = _click_cosines(split.histories, full, user, rows)
    yield "nearest_clicks", instead(mean, nearest)
    yield "mean_click", instead(mean)
    yield "no_tastes", rest - parts.duplicates
    yield "tastes_only", parts.taste


def mean_interests(interests: Interests, contents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean of each user's interests by weight ``[users, weeks, dim]``."""
    shares = interests.weight / interests.weight.sum(axis=2, keepdims=True)
    means = np.zeros((*shares.shape[:2], contents.shape[1]), dtype=np.float32)
    for k in range(shares.shape[2]):
        means += shares[:, :, k, None] * contents[interests.news[:, :, k]]
    return means


def _single_vector(
    world: TasteWorld,
    user: NDArray[np.int64],
    week: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Return the scores of the vector per user and week that fits the matches with all news best.

    It is a ridge regression on the content vectors and a constant.
    """
    full = world.news.contents.full
    inputs = np.concatenate([full, np.ones((len(full), 1), dtype=np.float32)], axis=1)
    solve = np.linalg.solve(inputs.T @ inputs + RIDGE * np.eye(inputs.shape[1]), inputs.T)
    pairs, which = np.unique(user * (week.max() + 1) + week, return_inverse=True)
    of_user, in_week = np.divmod(pairs, week.max() + 1)
    every = np.arange(len(full))
    vectors = np.empty((len(pairs), inputs.shape[1]), dtype=np.float32)
    step = max(BLOCK // len(full), 1)
    for begin in range(0, len(pairs), step):
        block = slice(begin, begin + step)
        affinity = world.interests.affinity(
            world.news.match, of_user[block, None], in_week[block, None], every
        )
        vectors[block] = affinity @ solve.T
    return np.einsum("nd,nd->n", vectors[which], inputs[rows])


def _click_cosines(
    histories: Ragged,
    contents: NDArray[np.float32],
    user: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the mean cosine of candidates with all and with the nearest clicks; 0 if none."""
    cosines = contents @ contents.T
    mean, nearest = (np.zeros(len(rows), dtype=np.float32) for _ in range(2))
    by_length = np.argsort(histories.lengths[user], kind="stable")
    begin = int(np.count_nonzero(histories.lengths[user] == 0))
    while begin < len(rows):
        longest_fit = max(BLOCK * 8 // int(histories.lengths[user[by_length[-1]]]), 1)
        places = by_length[begin : begin + longest_fit]
        clicks = histories.take(user[places])
        lengths = clicks.lengths
        real = np.arange(lengths.max()) < lengths[:, None]
        found = np.full(real.shape, -np.inf, dtype=np.float32)
        found[real] = cosines[np.repeat(rows[places], lengths), clicks.values]
        found = -np.sort(-found, axis=1)
        mean[places] = np.where(real, found, 0).sum(axis=1) / lengths
        most = np.minimum(lengths, NEAREST)
        nearest[places] = np.where(real, found, 0)[:, :NEAREST].sum(axis=1) / most
        begin += longest_fit
    return mean, nearest
