"""Metrics beyond accuracy: what the news at the top of a ranking are like.

A metric here is a function of the best-ranked candidates of impressions, and gives each impression
a number, NaN where it has none. To add a metric, add a function and a line in ``TABLE``. Coverage
and Gini belong to all lists of a split together: ``newsrec.evaluation.exposure``.

Unknown news has no properties: it keeps its place in a list, and is left out of every metric.
Activation, representation and alternative voices need sentiments and named entities, which only
some data have (``newsrec.evaluation.pools``); without them they are left out.

Sources: Vrijenhoek et al., RADio, RecSys 2022 (calibration, fragmentation, activation,
representation, alternative voices); Kruse et al., EB-NeRD, RecSys Challenge 2024 (diversity,
novelty, unexpectedness); Murakami et al. 2007 (serendipity); Ziegler et al., WWW 2005 (category
diversity).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS
from newsrec.evaluation.exposure import OVER_ALL
from newsrec.evaluation.pools import Pool, distance_from_pool

CUTS = (5, 10)
"""Numbers of best-ranked candidates that each metric is computed for."""
LONGEST = max(CUTS)
NEAR = 0.9
"""Cosine of centred news vectors from which on two news items are near-duplicates."""
Floats = NDArray[np.floating]


class Lists(NamedTuple):
    """The best-ranked candidates of impressions, the best first, and what is known of them.

    Shapes are ``[impressions, LONGEST]`` unless others are given.
    """

    news: NDArray[np.integer]
    """Catalogue rows, 0 after the end of a shorter list."""
    categories: NDArray[np.integer]
    """Number of each category."""
    read: Floats
    """Share of the clicks of the user's history that have the category; NaN without history."""
    others: NDArray[np.integer]
    """Lists of impressions of other users ``[impressions, others, LONGEST]``."""
    hours: Floats
    """Hours since each news item was first shown."""
    information: Floats | None = None
    """Self-information, in bits, of a click on each news item; None without clicks to count."""
    cosines: Floats | None = None
    """Cosines of news vectors ``[impressions, LONGEST, LONGEST]``; None without vectors."""
    to_history: Floats | None = None
    """Mean cosine with the user's clicks, NaN without history; None without vectors."""
    clicked: NDArray[np.bool_] | None = None
    """Whether each was clicked; None without labels."""
    tones: Pool | None = None
    """Strengths of sentiment among the candidates; None without sentiments."""
    groups: Pool | None = None
    """Groups mentioned among the candidates; None without named entities."""
    voices: Pool | None = None
    """Minority and majority voices among the candidates; None without a file of voices."""


def calibration(lists: Lists, k: int) -> Floats:
    """Distance of the list's categories from those of the user's history, 0 to 1.

    The square root of the Jensen-Shannon divergence (base 2) of the share of each category in the
    list, a news item of rank r weighing 1 / r, and its share in the history, all clicks weighing
    the same. RADio: "calibration". NaN without history.
    """
    weights = _rank_weights(lists.news, k)
    q = _shares(lists.categories[:, :k], weights, lists.categories[:, :k])
    p = lists.read[:, :k]
    # Divided among the news items of a category, so that each category counts once.
    own = np.divide(weights, q, out=np.zeros_like(weights), where=weights > 0)
    own_part = (weights * _surprise(q, p)).sum(axis=1)
    read_part = (own * p * _surprise(p, q)).sum(axis=1) + 1 - (own * p).sum(axis=1)
    return _root(own_part + read_part)


def fragmentation(lists: Lists, k: int) -> Floats:
    """Mean distance of the list from lists that other users were given, 0 to 1.

    The square root of the Jensen-Shannon divergence (base 2) of two distributions over news, a news
    item of rank r weighing 1 / r, averaged over a few impressions of other users. RADio:
    "fragmentation", of news items in place of chains of news on one event.
    """
    own, own_weights = lists.news[:, :k], _rank_weights(lists.news, k)
    inside = _shares(own, own_weights, own)
    distances = []
    for other in np.moveaxis(lists.others[:, :, :k], 1, 0):
        weights = _rank_weights(other, k)
        there = _surprise(inside, _shares(own, weights, other))
        here = _surprise(_shares(other, weights, other), _shares(other, own_weights, own))
        distances.append(_root((own_weights * there).sum(axis=1) + (weights * here).sum(axis=1)))
    return np.mean(distances, axis=0)


def category_diversity(lists: Lists, k: int) -> Floats:
    """Share of pairs of the list's news items that have different categories.

    Ziegler et al. 2005: intra-list diversity, where two categories are at distance 1.
    """
    categories = lists.categories[:, :k]
    return _over_pairs(lists.news, k, categories[:, :, None] != categories[:, None, :])


def vector_diversity(lists: Lists, k: int) -> Floats:
    """Mean of 1 - cosine over pairs of the list's news items (EB-NeRD: intra-list diversity).

    The vectors are those of the baseline ``cosine``: means of the PLM's states before training,
    centred, so they do not depend on the model that is evaluated.
    """
    assert lists.cosines is not None
    return _over_pairs(lists.news, k, 1 - lists.cosines[:, :k, :k])


def near_duplicates(lists: Lists, k: int) -> Floats:
    """Share of the list's news items whose vector is like that of one ranked above.

    Two vectors, those of ``vector_diversity``, are alike if their cosine is at least ``NEAR``, a
    definition of this project.
    """
    assert lists.cosines is not None
    known = lists.news[:, :k] >= FIRST_NEWS
    alike = (lists.cosines[:, :k, :k] >= NEAR) & known[:, None, :] & np.tri(k, k, -1, dtype=bool)
    return _mean(lists.news, k, alike.any(axis=2))


def novelty(lists: Lists, k: int) -> Floats:
    """Mean self-information, in bits, of the list's news items (EB-NeRD; Zhou et al. 2010).

    For a news item with c of the n clicks of train it is -log2((c + 1) / (n + m)), where m is the
    number of news items in the catalogue.
    """
    assert lists.information is not None
    return _mean(lists.news, k, lists.information[:, :k])


def unexpectedness(lists: Lists, k: int) -> Floats:
    """Mean of 1 - cosine over pairs of a news item of the list and a click of the history.

    EB-NeRD calls it serendipity, but a random list has most of it. NaN without history.
    """
    assert lists.to_history is not None
    return _mean(lists.news, k, 1 - lists.to_history[:, :k])


def serendipity(lists: Lists, k: int) -> Floats:
    """Mean over the list's news items of 1 - mean cosine with the history if clicked, else 0.

    After Murakami et al. 2007: unexpectedness counts only where the user clicked. NaN
    without history.
    """
    assert lists.to_history is not None
    assert lists.clicked is not None
    return _mean(lists.news, k, (1 - lists.to_history[:, :k]) * lists.clicked[:, :k])


def freshness(lists: Lists, k: int) -> Floats:
    """Mean hours since the list's news items were first shown, in any split.

    This project's own definition, since MIND has no times of publication (``evaluation.ages``).
    """
    return _mean(lists.news, k, lists.hours[:, :k])


def activation(lists: Lists, k: int) -> Floats:
    """Distance of the list's strengths of sentiment from those of the candidates, 0 to 1.

    The strength of a news item is the absolute value of its sentiment, counted in ``pools.BINS``
    bins of equal width from 0 to 1. RADio: "activation"; its code spreads the five bins over the
    range of each impression's candidates. NaN if no news in the list has a sentiment.
    """
    return distance_from_pool(lists.tones, lists.news[:, :k])


def representation(lists: Lists, k: int) -> Floats:
    """Distance of the groups mentioned in the list from those in the candidates, 0 to 1.

    The weight of a news item is divided among its mentions; a group has the share of its members.
    The groups are those of the file of voices; without a file each person is a group. RADio:
    "representation", which counts political parties in news of one category; here all categories
    count. NaN if the list mentions no group.
    """
    return distance_from_pool(lists.groups, lists.news[:, :k])


def alternative_voices(lists: Lists, k: int) -> Floats:
    """Distance of the list's shares of minority and majority voices from the candidates', 0 to 1.

    Like ``representation`` with two groups, which only a file of voices can name. RADio:
    "alternative voices"; its code counts only news that mentions both. NaN if the list mentions
    neither.
    """
    return distance_from_pool(lists.voices, lists.news[:, :k])


class Aspect(NamedTuple):
    """One line of ``TABLE``."""

    heading: str
    """Name of the metric in tables and pages."""
    of: Callable[[Lists, int], Floats]
    """Computes the metric of each impression's k best candidates ``[impressions]``."""
    better: int
    """1 if more is better, -1 if less is, 0 if neither is better as such."""
    needs: tuple[str, ...] = ()
    """Fields of ``Lists`` that must not be None."""


TABLE: dict[str, Aspect] = {
    "calibration": Aspect("calibration", calibration, -1),
    "fragmentation": Aspect("fragmentation", fragmentation, 0),
    "category_diversity": Aspect("category diversity", category_diversity, 1),
    "vector_diversity": Aspect("vector diversity", vector_diversity, 1, ("cosines",)),
    "near_duplicates": Aspect("near-duplicates", near_duplicates, -1, ("cosines",)),
    "novelty": Aspect("novelty, bits", novelty, 1, ("information",)),
    "unexpectedness": Aspect("unexpectedness", unexpectedness, 0, ("to_history",)),
    "serendipity": Aspect("serendipity", serendipity, 1, ("to_history", "clicked")),
    "freshness": Aspect("freshness, hours", freshness, -1),
    "activation": Aspect("activation", activation, 0, ("tones",)),
    "representation": Aspect("representation", representation, 0, ("groups",)),
    "alternative_voices": Aspect("alternative voices", alternative_voices, 0, ("voices",)),
}
"""Metrics of an impression, in the order in which they are reported."""

ASPECT_HEADINGS = {name: line.heading for name, line in (TABLE | OVER_ALL).items()}
BETTER = {name: line.better for name, line in (TABLE | OVER_ALL).items()}
"""The direction of each metric, as in ``Aspect``."""
MEANINGS = {
    name: " ".join((line.of.__doc__ or "").partition("\n")[0].split())
    for name, line in (TABLE | OVER_ALL).items()
}
"""First line of each metric's definition."""
DIRECTIONS = {
    1: "More is better.",
    -1: "Less is better.",
    0: "Neither more nor less is better as such.",
}
EXPLAINED = {name: f"{meaning} {DIRECTIONS[BETTER[name]]}" for name, meaning in MEANINGS.items()}
"""Each metric's meaning and direction, for pages."""
PER_IMPRESSION = tuple(f"{name}@{k}" for name in TABLE for k in CUTS)
"""Names of all metrics of an impression."""
OF_VECTORS = frozenset(
    f"{name}@{k}"
    for name, line in TABLE.items()
    for k in CUTS
    if {"cosines", "to_history"} & {*line.needs}
)
"""Names of the metrics of news vectors."""
OF_CATEGORIES = frozenset(
    f"{name}@{k}" for name in ("calibration", "category_diversity") for k in CUTS
)
"""Names of the metrics of categories."""
OF_VOICES = frozenset(
    f"{name}@{k}" for name in ("representation", "alternative_voices") for k in CUTS
)
"""Names of the metrics that depend on the file of voices."""
WHOLE = tuple(f"{name}@{k}" for name in OVER_ALL for k in CUTS)
"""Names of all metrics of a split."""


def measure_lists(lists: Lists) -> NDArray[np.float32]:
    """Return every metric of impressions; NaN where one is not known ``[metrics, impressions]``.

    The metrics are in the order of ``PER_IMPRESSION``.
    """
    values = np.full((len(PER_IMPRESSION), len(lists.news)), np.nan, dtype=np.float32)
    row = 0
    for aspect in TABLE.values():
        for k in CUTS:
            if all(getattr(lists, field) is not None for field in aspect.needs):
                values[row] = aspect.of(lists, k)
            row += 1
    return values


def _rank_weights(news: NDArray[np.integer], k: int) -> Floats:
    """Return 1 / rank of known news, scaled to sum to 1, 0 for unknown; NaN if none is known."""
    weights = (news[:, :k] >= FIRST_NEWS) / np.arange(1, k + 1)
    total = weights.sum(axis=1, keepdims=True)
    return np.divide(weights, total, out=np.full_like(weights, np.nan), where=total > 0)


def _shares(values: NDArray, weights: Floats, of: NDArray) -> Floats:
    """Return the weight of each of ``values`` in a list ``of`` values with ``weights``."""
    # One small matrix for each impression: matmul would take longer than einsum.
    return np.einsum("ijl,il->ij", values[:, :, None] == of[:, None, :], weights)


def _surprise(p: Floats, q: Floats) -> Floats:
    """Return log2 of p / ((p + q) / 2); 0 where p is 0."""
    ratio = np.divide(2 * p, p + q, out=np.ones(np.broadcast_shapes(p.shape, q.shape)), where=p > 0)
    return np.log2(ratio)


def _root(twice: Floats) -> Floats:
    """Return the square root of half of each value, which rounding may have made negative."""
    return np.sqrt(np.maximum(twice / 2, 0))


def _mean(news: NDArray[np.integer], k: int, values: NDArray) -> Floats:
    """Return the mean of the values of known news in each list, NaN if none is known."""
    known = news[:, :k] >= FIRST_NEWS
    return _ratio(np.where(known, values, 0).sum(axis=1), known.sum(axis=1))


def _over_pairs(news: NDArray[np.integer], k: int, values: NDArray) -> Floats:
    """Return the mean of the values of pairs of known news, NaN if there is no pair."""
    known = news[:, :k] >= FIRST_NEWS
    pairs = known[:, :, None] & known[:, None, :] & np.tri(k, k, -1, dtype=bool)
    return _ratio(np.where(pairs, values, 0).sum(axis=(1, 2)), pairs.sum(axis=(1, 2)))


def _ratio(sums: NDArray, counts: NDArray[np.integer]) -> Floats:
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
