"""Reads from a data folder what the metrics of ``newsrec.evaluation.beyond`` need, block by block.

Memory holds one block and, for each ranking, one number per impression and metric.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import NewsData, Split
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.evaluation.ages import NEVER, first_shown
from newsrec.evaluation.beyond import (
    LONGEST,
    OF_CATEGORIES,
    PER_IMPRESSION,
    Lists,
    fragmentation,
    measure_lists,
)
from newsrec.evaluation.pools import Kinds, Pool, kinds_of
from newsrec.evaluation.results import category_codes
from newsrec.evaluation.runs import EvaluatedRun

OTHERS = 3
"""Impressions of other users that each is compared with, for fragmentation."""
BLOCK = 1 << 11
"""Impressions at once."""
CELLS = 1 << 22
"""Upper limit of a block's numbers: of its shares of categories, and of its candidates' kinds."""


class Top(NamedTuple):
    """The best-ranked candidates of each impression, the best first."""

    news: NDArray[np.int32]
    """Catalogue rows, 0 after the end of a shorter list ``[impressions, LONGEST]``."""
    clicked: NDArray[np.bool_] | None
    """Whether each was clicked ``[impressions, LONGEST]``; None without labels."""

    def take(self, rows: NDArray[np.integer]) -> "Top":
        """Return those of some impressions."""
        return Top(self.news[rows], None if self.clicked is None else self.clicked[rows])


def top_of(split: Split, ranks: NDArray[np.integer]) -> Top:
    """Return the best-ranked candidates of a split, from the rank of each ``[candidates]``."""
    places = np.flatnonzero(ranks <= LONGEST)
    cells = split.candidates.owners()[places], ranks[places] - 1
    shape = (split.candidates.num_rows, LONGEST)
    news = np.zeros(shape, dtype=np.int32)
    news[cells] = split.candidates.values[places]
    if split.labels is None:
        return Top(news, None)
    clicked = np.zeros(shape, dtype=bool)
    clicked[cells] = split.labels[places]
    return Top(news, clicked)


def centred(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return vectors of length 1: scaled, less their mean over the catalogue, and scaled again.

    The rows of padding and of unknown news, and vectors of zeros, become zeros ``[news, dim]``.
    """
    scaled = _of_length_one(np.asarray(vectors, dtype=np.float32))
    scaled -= scaled[FIRST_NEWS:].mean(axis=0, dtype=np.float64)
    scaled[:FIRST_NEWS] = 0
    return _of_length_one(scaled)


def measure(
    data: NewsData,
    split: str,
    tops: Mapping[str, Top],
    vectors: NDArray[np.floating] | None = None,
    rows: NDArray[np.integer] | None = None,
    seed: int = 0,
    kinds: Kinds | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Return every metric of each impression, by the name of its ranking.

    Args:
        data: The data.
        split: Name of the split.
        tops: The best candidates of each ranking, of the impressions in ``rows``.
        vectors: News vectors for diversity and so on ``[news, dim]``; None leaves these out.
        rows: Impressions that are measured; None measures all.
        seed: Decides which impressions of other users are drawn.
        kinds: Sentiments and named entities of the news; None takes those of ``data``.

    Returns:
        Metrics in the order of ``PER_IMPRESSION``, NaN where an impression has none
        ``[metrics, rows]``. If all impressions are of one user, there is no fragmentation; if all
        news items are of one category, there are no metrics of categories.
    """
    part = data.split(split)
    unit = None if vectors is None else centred(vectors)
    first, information, codes = first_shown(data), _information(data), category_codes(data)
    codes -= codes.min(initial=0)  # no negative number
    kinds = kinds_of(data) if kinds is None else kinds
    rows = np.arange(len(part.history)) if rows is None else rows
    users = np.asarray(part.user)[rows]
    others, several = draw_others(users, seed), len(np.unique(users)) > 1
    values = {name: np.empty((len(PER_IMPRESSION), len(rows)), np.float32) for name in tops}
    order = np.argsort(part.history[rows], kind="stable")  # a history is read once
    step = max(1, min(BLOCK, CELLS // (int(codes.max(initial=0)) + 1)))
    for begin, end in _blocks(_num_kinds(kinds, part.candidates)[rows[order]], step):
        places = order[begin:end]
        distinct, owner = np.unique(part.history[rows[places]], return_inverse=True)
        histories = part.histories.take(distinct)
        read = _category_shares(histories, codes)
        profiles = None if unit is None else _mean_vectors(histories, unit)
        time = part.time[rows[places]].astype(np.int64)[:, None]
        shown = part.candidates.take(rows[places])
        pools = [Pool.of(each, shown) for each in (kinds.tones, kinds.groups, kinds.voices)]
        for name, top in tops.items():
            news = top.news[places]
            cosines = to_history = None
            if unit is not None:
                listed = unit[news]
                cosines = listed @ listed.transpose(0, 2, 1)
                assert profiles is not None
                to_history = (listed @ profiles[owner][:, :, None])[:, :, 0]
            lists = Lists(
                news=news,
                categories=codes[news],
                read=read[owner[:, None], codes[news]],
                others=top.news[others[places]] * several,
                hours=np.where(first[news] < NEVER, time - first[news], 0) / 3600,
                information=None if information is None else information[news],
                cosines=cosines,
                to_history=to_history,
                clicked=None if top.clicked is None else top.clicked[places],
                tones=pools[0],
                groups=pools[1],
                voices=pools[2],
            )
            values[name][:, places] = measure_lists(lists)
    if len(pc.unique(data.news["category"])) < 2:
        for found in values.values():
            found[[name in OF_CATEGORIES for name in PER_IMPRESSION]] = np.nan
    return values


def _blocks(sizes: NDArray[np.integer], step: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of blocks of at most ``step`` impressions and about ``CELLS`` kinds.

    Args:
        sizes: Number of kinds among each impression's candidates ``[impressions]``.
        step: Most impressions.
    """
    before, begin = to_offsets(sizes), 0
    while begin < len(sizes):
        fit = int(np.searchsorted(before, before[begin] + CELLS, side="right")) - 1
        end = min(begin + step, max(fit, begin + 1))
        yield begin, end
        begin = end


def _num_kinds(kinds: Kinds, candidates: Ragged) -> NDArray[np.int64]:
    """Return how many kinds each impression's candidates have, repeats too ``[impressions]``."""
    found = [np.diff(each.indptr) for each in kinds[:3] if each is not None]
    sizes = np.zeros(candidates.num_rows, dtype=np.int64)
    if found:
        in_news = np.sum(found, axis=0)
        for begin in range(0, len(sizes), BLOCK):
            part = candidates.between(begin, begin + BLOCK)
            sizes[begin : begin + BLOCK] = np.diff(to_offsets(in_news[part.values])[part.offsets])
    return sizes


def shown_news(split: Split) -> NDArray[np.bool_]:
    """Return which news a split's impressions show, beyond-accuracy lists left out ``[news]``."""
    shown = np.zeros(split.num_news, dtype=bool)
    shown[split.candidates.values[~np.repeat(split.beyond_accuracy, split.candidates.lengths)]] = 1
    shown[:FIRST_NEWS] = False
    return shown


def _information(data: NewsData) -> NDArray[np.float64] | None:
    """Return the bits of a click on each news item, by train's clicks ``[news]``; None if none."""
    train = data.splits.get(data.train)
    if train is None or train.labels is None:
        return None
    clicked = train.candidates.values[np.flatnonzero(train.labels)]
    clicks = np.bincount(clicked, minlength=data.num_news)
    return np.log2(len(clicked) + len(data.news)) - np.log2(clicks + 1)


def draw_others(users: NDArray[np.integer], seed: int) -> NDArray[np.int64]:
    """Return for each impression some of other users, evenly drawn ``[impressions, OTHERS]``.

    If all impressions are of one user, each gets itself; ``measure`` has no fragmentation then.
    """
    order = np.argsort(users, kind="stable")
    _, start, number = np.unique(users[order], return_index=True, return_counts=True)
    start, number = np.repeat(start, number)[:, None], np.repeat(number, number)[:, None]
    drawn = np.random.default_rng(seed).random((len(order), OTHERS))
    drawn = (drawn * (len(order) - number)).astype(np.int64)
    drawn += number * (drawn >= start)  # skips the user's own impressions
    others = np.repeat(np.arange(len(users))[:, None], OTHERS, axis=1)
    if len(order) and number[0, 0] < len(order):
        others[order] = order[drawn]
    return others


def _category_shares(histories: Ragged, codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of each category in histories, NaN if empty ``[histories, categories]``."""
    width = int(codes.max(initial=0)) + 1
    cells = histories.owners() * width + codes[histories.values]
    counts = np.bincount(cells, minlength=histories.num_rows * width).reshape(-1, width)
    lengths = histories.lengths[:, None]
    empty = np.full(counts.shape, np.nan)
    return np.divide(counts, lengths, out=empty, where=lengths > 0)


def _mean_vectors(histories: Ragged, unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean vector of each history, NaN if it is empty ``[histories, dim]``."""
    ones = np.ones(len(histories.values), dtype=np.float32)
    shape = (histories.num_rows, len(unit))
    sums = csr_matrix((ones, histories.values, histories.offsets), shape=shape) @ unit
    lengths = histories.lengths[:, None]
    return np.divide(sums, lengths, out=np.full_like(sums, np.nan), where=lengths > 0)


def _of_length_one(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)


def list_distances(
    a: Sequence[EvaluatedRun], b: Sequence[EvaluatedRun]
) -> dict[str, float | None] | None:
    """Return how far apart the first news of runs are, 0 for equal lists to 1 for none in common.

    It is the distance of ``fragmentation``, which is rank-aware, of the lists of one impression,
    averaged over impressions and pairs of runs: ``between`` the sides, and among the runs of ``a``
    and of ``b``, None for one run. None if a run does not have its lists, or only empty ones.
    """
    tops_a, tops_b = ([run.top for run in side if run.top is not None] for side in (a, b))
    if len(tops_a) + len(tops_b) < len(a) + len(b):
        return None
    tops = [*tops_a, *tops_b]
    if not np.all([(top >= FIRST_NEWS).any(axis=1) for top in tops], axis=0).any():
        return None  # no impression has known news in all lists
    pairs = {
        "between": list(itertools.product(tops_a, tops_b)),
        "a": list(itertools.combinations(tops_a, 2)),
        "b": list(itertools.combinations(tops_b, 2)),
    }
    return {
        name: float(np.mean([_apart(*pair) for pair in found])) if found else None
        for name, found in pairs.items()
    }


def _apart(one: NDArray[np.integer], other: NDArray[np.integer]) -> float:
    """Return the mean distance of the lists of two runs, NaN left out."""
    distances = []
    for begin in range(0, len(one), BLOCK):
        news = one[begin : begin + BLOCK]
        none = np.zeros(0)  # for fields that fragmentation does not use
        lists = Lists(news, news, none, other[begin : begin + BLOCK, None], none)
        distances.append(fragmentation(lists, LONGEST))
    return float(np.nanmean(np.concatenate(distances)))
