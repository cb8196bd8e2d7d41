"""Scorers that need no training, each computed for a whole split at once.

They show what a model has to beat: scores from clicks, topics, words or sentence vectors alone.
Scores are flat and in the order of the file, like a model's scores.

Unknown candidates score 0, except in ``random``. With an empty history, all candidates score 0 in
the baselines that read it. User profiles are computed in blocks of distinct histories to bound the
memory.
"""

import logging
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS, UNKNOWN_NEWS
from newsrec.data.dataset import NewsData, Split
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.splits import labelled_splits
from newsrec.errors import DataError, UserError
from newsrec.evaluation.ages import age_scores
from newsrec.model.matching import match_pairs

log = logging.getLogger(__name__)

RECENT_WINDOW = 24 * 60 * 60
"""How far back from an impression ``recent`` counts clicks, in seconds."""
WORD = re.compile(r"\b\w\w+\b")
BLOCK_NEWS = 1 << 16
"""Most history entries and candidates that one block gathers."""
PROFILE_CELLS = 1 << 23
"""Most numbers in the dense user profiles of one block (64 MB)."""
VECTOR_CELLS = 1 << 24
"""Most numbers in the news vectors of one block (64 MB; user vectors take as much again)."""


def score_baseline(
    name: str,
    data: NewsData,
    split: str,
    *,
    news_vectors: NDArray[np.float32] | None = None,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Score every candidate of a split by one of ``BASELINES``, in file order ``[candidates]``.

    ``popularity`` and ``recent`` read clicks (``clicks_of``), only ``cosine`` needs
    ``news_vectors`` ``[news, dim]``, and only ``random`` uses the seed. Raises UserError if there
    is no such baseline or split, or no split has the clicks that the baseline needs.
    """
    if name not in _SCORERS:
        raise UserError(f"There is no baseline {name!r}. Choose one of {', '.join(BASELINES)}.")
    if name == "random":
        return random_scores(data, split, seed)
    if name == "cosine":
        if news_vectors is None:
            raise ValueError("The baseline cosine needs news_vectors.")
        return cosine_scores(data, split, news_vectors)
    return _SCORERS[name](data, split)


def scores_beside(
    data: NewsData,
    split: str,
    news_vectors: NDArray[np.float32] | None,
    leave_out: str | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Score a split by every baseline whose input the folder has, except ``leave_out``.

    Returns scores by the name of the baseline, each ``[candidates]``; without ``news_vectors``
    ``[news, dim]`` there is no ``cosine``.
    """
    scores = {}
    for name in BASELINES:
        if name == leave_out or (name == "cosine" and news_vectors is None):
            continue
        try:
            scores[name] = score_baseline(name, data, split, news_vectors=news_vectors)
        except UserError as error:
            log.info("baseline %s left out: %s", name, error)
    return scores


def describe_baselines() -> dict[str, str]:
    """Return a one-line description of each baseline, by its name."""
    return {name: (scorer.__doc__ or "").partition("\n")[0] for name, scorer in _SCORERS.items()}


def clicks_of(name: str, data: NewsData) -> list[Split]:
    """Return the splits whose clicks a baseline counts.

    In the scored split, ``recent`` counts for each impression only the clicks before it.
    """
    if name == "popularity":
        return [data.split(data.train)]
    return labelled_splits(data) if name == "recent" else []


def random_scores(data: NewsData, split: str, seed: int = 0) -> NDArray[np.float32]:
    """Uniform random numbers, which give an AUC of .5."""
    num_candidates = len(data.split(split).candidates.values)
    return np.random.default_rng(seed).random(num_candidates, dtype=np.float32)


def popularity_scores(data: NewsData, split: str) -> NDArray[np.float32]:
    """Clicks on the candidate in all of train, 0 if it has none there.

    On ``train`` itself this leaks, because the count includes the click to be predicted.
    """
    train = data.split(data.train)
    if train.labels is None:
        said = f"{data.root}: {train.name} has no labels, so there are no clicks to count."
        raise DataError(said)
    clicked = train.candidates.values[np.flatnonzero(train.labels)]
    clicks = np.bincount(clicked, minlength=data.num_news).astype(np.float32)
    clicks[:FIRST_NEWS] = 0
    return clicks[data.split(split).candidates.values]


def recent_scores(data: NewsData, split: str) -> NDArray[np.float32]:
    """Clicks on the candidate in the 24 hours before the impression, never at or after its time.

    Like a live system, it counts the clicks of all labelled splits, the scored one included.
    """
    target = data.split(split)
    news, times = [], []
    for source in labelled_splits(data):
        assert source.labels is not None
        clicked = np.flatnonzero(source.labels)
        owner = np.searchsorted(source.candidates.offsets, clicked, side="right") - 1
        news.append(source.candidates.values[clicked])
        times.append(source.time[owner].astype(np.int64))
    if not news:
        raise DataError(f"{data.root} has no split with labels, so there are no clicks to count.")
    clicked_news, time = np.concatenate(news), np.concatenate(times)
    known = clicked_news != UNKNOWN_NEWS
    clicked_news, time = clicked_news[known].astype(np.int64), time[known]

    # One sorted key orders the clicks by news item, then by second. Seconds are counted from more
    # than a window before the first, so no window reaches clicks of the previous news item.
    shown = target.time.astype(np.int64)
    everything = np.concatenate([time, shown])
    start = everything.min(initial=1 << 62) - RECENT_WINDOW - 1
    span = everything.max(initial=start) - start + 1
    clicks = np.sort(clicked_news * span + time - start)

    scores = np.empty(len(target.candidates.values), dtype=np.float32)
    bounds = target.candidates.offsets
    step = 1 << 14  # impressions at once
    for first in range(0, len(shown), step):
        ends = bounds[first : first + step + 1]
        block = slice(ends[0], ends[-1])
        now = target.candidates.values[block].astype(np.int64) * span
        now += np.repeat(shown[first : first + step] - start, np.diff(ends))
        order = np.argsort(now)  # lookups in sorted order find their neighbours in the cache
        now = now[order]
        before = np.searchsorted(clicks, now, side="left")
        before -= np.searchsorted(clicks, now - RECENT_WINDOW, side="right")
        scores[block][order] = before
    return scores


def category_scores(data: NewsData, split: str) -> NDArray[np.float32]:
    """Share of the history in the candidate's category, plus the share in its subcategory."""
    # MIND uses some subcategory names in several categories, so compare pairs of both.
    pairs = pc.binary_join_element_wise(data.news["category"], data.news["subcategory"], "\t")
    columns = [c.combine_chunks().dictionary_encode() for c in (data.news["category"], pairs)]
    values = np.stack([c.indices.to_numpy() for c in columns], axis=1)
    values[:, 1] += len(columns[0].dictionary)
    lengths = np.repeat([0, 2], [FIRST_NEWS, len(values)])
    terms = Ragged(values.ravel(), to_offsets(lengths))
    num_terms = sum(len(c.dictionary) for c in columns)
    return _term_scores(data.split(split), terms, np.ones(values.size), num_terms)


def tfidf_scores(data: NewsData, split: str) -> NDArray[np.float32]:
    """Cosine of the candidate's TF-IDF title vector and the mean vector of the history.

    Words, weights and normalization are the defaults of scikit-learn's ``TfidfVectorizer``, fitted
    on the titles of the whole catalogue.
    """
    terms, weights, num_terms = _tfidf(data.news["title"].to_pylist())
    return _term_scores(data.split(split), terms, weights, num_terms, cosine=True)


def cosine_scores(
    data: NewsData, split: str, news_vectors: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Dot product of the candidate's news vector and the mean vector of the history, both centred.

    To centre the vectors ``[news, dim]``, scale each to length 1, then subtract the mean over the
    catalogue; the rows of padding and of unknown news are ignored. An untrained model with a
    residual path scores like this, centred on the news of training and validation.
    """
    target = data.split(split)
    if news_vectors.ndim != 2 or len(news_vectors) != data.num_news:
        shape = list(news_vectors.shape)
        raise ValueError(f"news_vectors are {shape}, but the catalogue has {data.num_news} rows.")
    centred = np.asarray(news_vectors, dtype=np.float32)
    centred = centred * _inverse(np.linalg.norm(centred, axis=1))[:, None]
    centred -= centred[FIRST_NEWS:].mean(axis=0, dtype=np.float64)
    centred[:FIRST_NEWS] = 0

    scores = np.zeros(len(target.candidates.values), dtype=np.float32)
    for block in _blocks(target, max(1, VECTOR_CELLS // max(1, news_vectors.shape[1]))):
        clicked = centred[block.histories.values]
        # No history here is empty: reduceat would give it the first vector of the next history.
        users = np.add.reduceat(clicked, block.histories.offsets[:-1], axis=0)
        users /= block.histories.lengths[:, None]
        candidates = torch.from_numpy(centred[block.news])
        owners = torch.from_numpy(users[block.owner]).unsqueeze(1)
        scores[block.positions] = match_pairs(owners, candidates).numpy()
    return scores


_SCORERS: dict[str, Callable[..., NDArray[np.float32]]] = {
    "random": random_scores,
    "popularity": popularity_scores,
    "recent": recent_scores,
    "age": age_scores,
    "category": category_scores,
    "tfidf": tfidf_scores,
    "cosine": cosine_scores,
}

BASELINES: tuple[str, ...] = tuple(_SCORERS)
"""Names of the baselines."""


class _Block(NamedTuple):
    """Some distinct histories, none of them empty, and the candidates of their impressions."""

    histories: Ragged  # catalogue rows
    owner: NDArray[np.int64]  # row of histories that each candidate belongs to [candidates]
    news: NDArray[np.int32]  # catalogue row of each candidate [candidates]
    positions: NDArray[np.int64]  # position of each candidate in the split [candidates]


def _blocks(split: Split, max_news: int, max_histories: int = 1 << 62) -> Iterator[_Block]:
    """Divide a split into blocks that keep the impressions of one history together.

    A history whose impressions do not fit into one block appears in several.
    """
    lengths = split.histories.lengths
    order = np.argsort(split.history, kind="stable")
    order = order[lengths[split.history[order]] > 0]
    history = split.history[order]
    first = np.diff(history, prepend=-1) != 0
    rank = np.cumsum(first)
    work = to_offsets(split.candidates.lengths[order] + first * lengths[history])
    begin = 0
    while begin < len(order):
        by_news = np.searchsorted(work, work[begin] + max_news, side="right") - 1
        by_histories = np.searchsorted(rank, rank[begin] + max_histories)
        end = max(begin + 1, min(by_news, by_histories))
        places = split.candidates.places(order[begin:end])
        owner = (rank[begin:end] - rank[begin])[places.owners()]
        histories = split.histories.take(np.unique(history[begin:end]))
        news = split.candidates.values[places.values]
        yield _Block(histories, owner, news, places.values)
        begin = end


def _term_scores(
    split: Split, terms: Ragged, weights: NDArray[np.float64], num_terms: int, cosine: bool = False
) -> NDArray[np.float32]:
    """Score by the dot product of a candidate's sparse vector and the mean vector of the history.

    ``terms`` are the terms of each catalogue row, numbers below ``num_terms``, ``weights`` their
    weights. ``cosine`` divides by the length of the mean vector; news vectors must have length 1.
    """
    scores = np.zeros(len(split.candidates.values), dtype=np.float32)
    max_histories = max(1, PROFILE_CELLS // max(1, num_terms))
    profiles = np.zeros(max_histories * num_terms)
    for block in _blocks(split, BLOCK_NEWS, max_histories):
        places = terms.places(block.histories.values)
        at, user = places.values, block.histories.owners()[places.owners()]
        cells = user * num_terms + terms.values[at]
        shares = weights[at] / block.histories.lengths[user]
        np.add.at(profiles, cells, shares)

        places = terms.places(block.news)
        at, candidate = places.values, places.owners()
        products = profiles[block.owner[candidate] * num_terms + terms.values[at]] * weights[at]
        dots = np.bincount(candidate, products, len(block.news))
        if cosine:
            # sum_k p_k^2, summed over the added shares only, so that no profile is read whole.
            squares = np.bincount(user, shares * profiles[cells], block.histories.num_rows)
            dots = dots * _inverse(np.sqrt(squares))[block.owner]
        scores[block.positions] = dots
        profiles[cells] = 0  # cheaper than new zeros: few cells of a profile are used
    return scores


def _tfidf(titles: list[str]) -> tuple[Ragged, NDArray[np.float64], int]:
    """Return the words of each catalogue row, their weights and the size of the vocabulary."""
    vocabulary: dict[str, int] = {}
    rows, words = [], []
    for row, title in enumerate(titles, start=FIRST_NEWS):
        for word in WORD.findall(title.lower()):
            rows.append(row)
            words.append(vocabulary.setdefault(word, len(vocabulary)))
    num_rows, num_terms = FIRST_NEWS + len(titles), max(1, len(vocabulary))
    cells = np.array(rows, dtype=np.int64) * num_terms + np.array(words, dtype=np.int64)
    cells, counts = np.unique(cells, return_counts=True)
    owner, term = cells // num_terms, cells % num_terms
    num_titles = np.bincount(term, minlength=num_terms)  # number of titles with each word
    weights = counts * (np.log((1 + len(titles)) / (1 + num_titles)) + 1)[term]
    weights *= _inverse(np.sqrt(np.bincount(owner, weights**2, num_rows)))[owner]
    return Ragged(term, to_offsets(np.bincount(owner, minlength=num_rows))), weights, num_terms


def _inverse(values: NDArray) -> NDArray:
    """Return 1 / each value; zeros stay zeros."""
    return np.divide(1, values, out=np.zeros_like(values), where=values > 0)
