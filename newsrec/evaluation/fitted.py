"""Weights of an ensemble's models, learned from clicks that are not those reported.

The scores of each model are standardised within an impression, as in ``mean_score``. The weights
are those of a conditional logit: the softmax of the weighted scores over an impression's candidates
should give the clicks. They are at least 0 and are drawn towards each other, so that few clicks
give nearly equal weights, and equal models equal ones. The problem is convex and starts from equal
weights, so the same scores give the same weights.

Weights are learned on dev. If dev itself is reported, its users are divided into folds, and each
fold is scored with weights that the other folds gave: no user's clicks decide on that user's own
scores.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.optimize import minimize

from newsrec.console import counted
from newsrec.data.dataset import NewsData, Split
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.errors import UserError
from newsrec.evaluation.ensemble import combine, standardize
from newsrec.metrics import impression_metrics

FITTED = "fitted"
"""Name of this ensemble among the choices of ``--ensemble``."""
ABOUT = (
    "scores as in mean_score, weighted. The weights are learned from the clicks of dev; if dev is "
    "reported, those for each fifth of the users are learned from the clicks of the others"
)
SOURCE = "dev"
"""The split that weights are learned on."""
FOLDS = 5
RIDGE = 10.0
"""Pull of the weights towards their mean; it weighs about as much as ten impressions."""
LARGEST = 50.0
"""Upper limit of a weight before the weights are scaled to sum to 1. Scores have standard deviation
1, so the best candidate then gets all of the softmax."""
MOST_IMPRESSIONS = 50_000
"""Impressions that weights are learned from; of more, as many are taken, evenly over the file."""


class Fitted(NamedTuple):
    """Learned weights; each row of weights sums to 1."""

    weights: NDArray[np.float64]
    """Weights learned from all users ``[members]``."""
    by_fold: NDArray[np.float64]
    """Weights learned from the users outside each fold ``[folds, members]``."""
    fold: NDArray[np.int64]
    """Fold of each impression's user ``[impressions]``."""


def learns_on(data: NewsData, split: str) -> str:
    """Return the split to learn weights on: dev, or ``split`` in a folder without labelled dev.

    Raises:
        UserError: If neither has labels.
    """
    for name in (SOURCE, split):
        if name in data.splits and data.splits[name].labels is not None:
            return name
    raise UserError(
        f"--ensemble {FITTED} learns its weights on {SOURCE}, and {data.root} has no {SOURCE} with "
        "labels. Put one there, or choose --ensemble mean_score."
    )


def combine_fitted(
    data: NewsData,
    split: str,
    names: Sequence[str],
    members: Sequence[NDArray[np.floating]],
    lessons: Sequence[NDArray[np.floating]],
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Average the scores of several models with learned weights.

    Args:
        data: The data folder.
        split: Split that is reported.
        names: Names of the models.
        members: Scores of each model on ``split`` ``[candidates]`` each.
        lessons: Scores of each model on the split that ``learns_on`` names ``[candidates]`` each.

    Returns:
        The scores ``[candidates]``, and the field ``fitted`` of ``metrics.json``.
    """
    source = data.split(learns_on(data, split))
    for name, scores, lesson in zip(names, members, lessons, strict=True):
        if not (np.isfinite(scores).all() and np.isfinite(lesson).all()):
            raise UserError(
                f"{name} has an infinite score, which no weight can be given to. Leave it out, or "
                "choose --ensemble mean_rank."
            )
    cross_fitted = source.name == split
    fitted = learn(source, lessons, data.users, cross_fitted)
    weights = fitted.by_fold[fitted.fold] if cross_fitted else fitted.weights
    scores = combine(members, data.split(split).candidates.offsets, "mean_score", weights)
    assert source.labels is not None
    alone = [impression_metrics(s, source.labels, source.candidates.offsets) for s in lessons]
    valid = alone[0].valid
    described = {
        "learned_on": source.name,
        "window": source.window,
        "cross_fitted": cross_fitted,
        "impressions": int(min(valid.sum(), MOST_IMPRESSIONS)),
        "users": len(np.unique(source.user[valid])),
        "members": [
            {
                "name": name,
                "weight": float(weight),
                "fold_weights": folds.tolist(),
                "auc": float(own.of("auc")[valid].mean()),
                "constant": _is_constant(lesson, source.candidates.offsets),
            }
            for name, weight, folds, own, lesson in zip(
                names, fitted.weights, fitted.by_fold.T, alone, lessons, strict=True
            )
        ],
    }
    return scores, described


def learn(
    source: Split,
    lessons: Sequence[NDArray[np.floating]],
    user_ids: pa.Array,
    cross_fitted: bool,
) -> Fitted:
    """Learn weights from all users of a split, and from those outside each of its folds.

    Args:
        source: A labelled split.
        lessons: Scores of each model on it, all finite ``[candidates]`` each.
        user_ids: Ids of the users that ``source.user`` numbers.
        cross_fitted: Whether the split is also the one reported, which takes two folds.

    Raises:
        UserError: If too few users have an impression with a clicked and a skipped candidate.
    """
    assert source.labels is not None
    offsets = np.asarray(source.candidates.offsets)
    clicks = np.diff(to_offsets(source.labels)[offsets])
    rows = np.flatnonzero((clicks > 0) & (clicks < np.diff(offsets)))
    fold, folds = user_folds(source.user, source.user[rows], user_ids)
    if folds < 1 + cross_fitted:
        raise UserError(
            f"--ensemble {FITTED}: in {source.name}, impressions with a clicked and a skipped "
            f"candidate are of {counted(folds, 'user')}, and weights need {1 + cross_fitted} at "
            "least. Choose --ensemble mean_score."
        )
    if len(rows) > MOST_IMPRESSIONS:
        rows = rows[np.linspace(0, len(rows) - 1, MOST_IMPRESSIONS).astype(np.int64)]
    places = source.candidates.places(rows)
    values = [standardize(np.asarray(s)[places.values], places.offsets) for s in lessons]
    labels = np.asarray(source.labels)[places.values]
    lesson = Ragged(np.array([*values, labels]).T, places.offsets)

    def weights(keep: NDArray[np.bool_]) -> NDArray[np.float64]:
        part = lesson.take(np.flatnonzero(keep))
        return fit_weights(part.values[:, :-1].T, part.offsets, part.values[:, -1])

    by_fold = [weights(fold[rows] != number) for number in range(folds)] if folds > 1 else []
    everyone = weights(np.ones(len(rows), dtype=bool))
    return Fitted(everyone, np.reshape(by_fold, (-1, len(lessons))), fold)


def user_folds(
    users: NDArray[np.integer], evaluated: NDArray[np.integer], user_ids: pa.Array
) -> tuple[NDArray[np.int64], int]:
    """Divide users into folds of nearly equal size, by a hash of their ids.

    A user's fold depends neither on the order of the files nor on other splits.

    Args:
        users: User of each impression ``[impressions]``.
        evaluated: Users of the impressions with a clicked and a skipped candidate, who are dealt
            out first.
        user_ids: Ids of the users.

    Returns:
        The fold of each impression ``[impressions]``, and the number of folds: ``FOLDS``, or the
        number of evaluated users if there are fewer.
    """
    distinct, owner = np.unique(users, return_inverse=True)
    ids = user_ids.take(pa.array(distinct)).to_pylist()
    has = np.isin(distinct, evaluated).tolist()
    order = sorted(range(len(ids)), key=lambda i: (not has[i], crc32(ids[i].encode()), ids[i]))
    folds = min(FOLDS, sum(has))
    fold = np.empty(len(ids), dtype=np.int64)
    fold[order] = np.arange(len(ids)) % max(folds, 1)
    return fold[owner], folds


def fit_weights(
    values: NDArray[np.float64], offsets: NDArray[np.int64], labels: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return the weights under which a softmax over the candidates best gives the clicks.

    The loss of an impression is the mean, over its clicks, of the click's negative log-probability.
    All impressions count alike, as they do in the metrics.

    Args:
        values: Standardised scores of each model ``[members, candidates]``.
        offsets: Where each impression's candidates begin, and the end ``[impressions + 1]``.
        labels: 1 clicked, 0 skipped; every impression has both ``[candidates]``.

    Returns:
        Weights of at least 0 that sum to 1. A model whose scores are equal in every impression has
        weight 0. All weights are equal if no model's scores point towards the clicks
        ``[members]``.
    """
    says = values.any(axis=1)
    if not says.all():
        weights = np.zeros(len(values))
        weights[says] = fit_weights(values[says], offsets, labels) if says.any() else 0
        return weights if says.any() else np.full(len(values), 1 / max(len(values), 1))
    starts, lengths = offsets[:-1], np.diff(offsets)
    target = labels / np.repeat(np.add.reduceat(labels, starts), lengths)
    towards = values @ target

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scores = weights @ values
        top = np.maximum.reduceat(scores, starts)
        odds = np.exp(scores - np.repeat(top, lengths))
        total = np.add.reduceat(odds, starts)
        apart = weights - weights.mean()
        value = (np.log(total) + top).sum() - weights @ towards + RIDGE / 2 * apart @ apart
        gradient = values @ (odds / np.repeat(total, lengths)) - towards + RIDGE * apart
        return value / len(starts), gradient / len(starts)

    equal = np.full(len(values), 1 / len(values))
    found = minimize(
        loss, equal, jac=True, method="L-BFGS-B", bounds=[(0, LARGEST)] * len(values),
        options={"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000},
    )  # fmt: skip
    total = found.x.sum()
    return found.x / total if total > 1e-6 else equal


def _is_constant(scores: NDArray[np.floating], offsets: NDArray[np.int64]) -> bool:
    """Return whether the candidates of each impression all have the same score."""
    return not standardize(scores, offsets).any()
