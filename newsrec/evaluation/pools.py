"""Distance of a list of news from its pool, the candidates that it was chosen from.

Each news item has shares of some kinds, which sum to 1: the bin of its sentiment, or the groups
that it mentions. The shares of a list are the mean of its news items' shares, with weight 1 / r at
rank r. The shares of a pool are the mean over the candidates, with equal weights. News without any
kind counts in neither.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import NewsData
from newsrec.data.ragged import Ragged
from newsrec.data.readers.annotations import ENTITIES, SENTIMENT
from newsrec.evaluation.voices import Voices

BINS = 5
"""Number of bins of a sentiment's strength, as in RADio's code."""
PERSONS = ("PER", "PERSON")
"""Types of entities that are persons, in capitals."""


class Kinds(NamedTuple):
    """Shares of kinds of each news item ``[news, kinds]``; None where no news has any."""

    tones: csr_matrix | None
    """Bin of the sentiment's strength."""
    groups: csr_matrix | None
    """Groups of the file of voices; without a file, persons by name."""
    voices: csr_matrix | None
    """Majority and minority."""
    found: int = 0
    """Number of names in the file of voices that occur in the news."""


class Pool(NamedTuple):
    """The candidates of some impressions."""

    kinds: csr_matrix
    """Shares of each news item ``[news, kinds]``."""
    shares: csr_matrix
    """Shares of each impression's candidates, which sum to 1, or are all 0
    ``[impressions, kinds]``."""
    entropy: NDArray[np.float64]
    """Entropy of these shares, in bits ``[impressions]``."""

    @classmethod
    def of(cls, kinds: csr_matrix | None, candidates: Ragged) -> "Pool | None":
        """Return the pool of the candidates of some impressions; None without kinds."""
        if kinds is None:
            return None
        shares = _mean_shares(candidates, kinds)
        return cls(kinds, shares, _entropy(shares))


def kinds_of(data: NewsData, voices: Voices | None = None) -> Kinds:
    """Return the kinds of all news of a data folder."""
    columns = data.news.column_names
    tones = _tones(data.news[SENTIMENT], data.num_news) if SENTIMENT in columns else None
    if ENTITIES not in columns:
        return Kinds(tones, None, None)
    lists = data.news[ENTITIES].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    rows = np.repeat(np.arange(len(lengths)) + FIRST_NEWS, lengths)
    names, types = lists.flatten().flatten()
    if voices is None:
        person = pc.is_in(pc.utf8_upper(types), pa.array(PERSONS))
        persons = pc.if_else(person, names, None).dictionary_encode().indices
        return Kinds(tones, shares_of(rows, persons, data.num_news), None)
    place = pc.index_in(names, value_set=voices.names)
    groups = voices.groups.take(place).dictionary_encode().indices
    minority = voices.minority.take(place).cast(pa.int32())
    grouped, voiced = (shares_of(rows, each, data.num_news) for each in (groups, minority))
    return Kinds(tones, grouped, voiced, len(pc.unique(place.drop_null())))


def distance_from_pool(pool: Pool | None, news: NDArray[np.integer]) -> NDArray[np.floating]:
    """Return the distance of each list from the pool of its candidates, 0 to 1.

    It is the square root of the Jensen-Shannon divergence (base 2) of their shares; NaN if the list
    or the pool has no kind.

    Args:
        pool: The candidates of each impression.
        news: Catalogue rows, the best first ``[impressions, k]``.
    """
    assert pool is not None
    number, k = news.shape
    weights = np.tile(1 / np.arange(1, k + 1), number)
    offsets = np.arange(0, number * k + 1, k)
    own = _mean_shares(Ragged(news.ravel(), offsets), pool.kinds, weights)
    # With H for entropy, the divergence of P and Q is H((P + Q) / 2) - (H(P) + H(Q)) / 2.
    between = _entropy((own + pool.shares) / 2)
    divergence = between - (_entropy(own) + pool.entropy) / 2
    known = (np.diff(own.indptr) > 0) & (np.diff(pool.shares.indptr) > 0)
    # A rounding error of 1e-15 would become a distance of 3e-8.
    divergence[divergence < 1e-13] = 0
    distance: NDArray[np.floating] = np.where(known, np.sqrt(divergence), np.nan)
    return distance


def _tones(sentiment: pa.ChunkedArray, num_news: int) -> csr_matrix | None:
    strength = np.abs(pc.fill_null(sentiment, np.nan).to_numpy().astype(np.float64))
    bins = np.minimum(np.nan_to_num(strength) * BINS, BINS - 1).astype(np.int32)
    codes = pa.array(bins, mask=np.isnan(strength))
    return shares_of(np.arange(len(strength)) + FIRST_NEWS, codes, num_news)


def shares_of(rows: NDArray[np.integer], kinds: pa.Array, num_news: int) -> csr_matrix | None:
    """Return the share of each kind in a news item's mentions; None if no mention has a kind.

    Args:
        rows: News item of each mention ``[mentions]``.
        kinds: Its kind, null for none ``[mentions]``.
        num_news: Number of news items.
    """
    known = np.flatnonzero(kinds.is_valid().to_numpy(zero_copy_only=False))
    if not len(known):
        return None
    kind = kinds.drop_null().to_numpy()
    shape = (num_news, int(kind.max()) + 1)
    counts = csr_matrix((np.ones(len(known)), (rows[known], kind)), shape=shape)
    return _scaled(counts)


def _mean_shares(
    lists: Ragged, kinds: csr_matrix, weights: NDArray[np.floating] | None = None
) -> csr_matrix:
    """Return the weighted mean of the shares of each list's news ``[lists, kinds]``."""
    weights = np.ones(len(lists.values)) if weights is None else weights
    shape = (lists.num_rows, kinds.shape[0])
    return _scaled(csr_matrix((weights, lists.values, lists.offsets), shape=shape) @ kinds)


def _scaled(sums: csr_matrix) -> csr_matrix:
    """Divide each row by its sum; a row of zeros stays zero."""
    totals = sums @ np.ones(sums.shape[1])
    sums.data /= np.repeat(totals, np.diff(sums.indptr))
    return sums


def _entropy(shares: csr_matrix) -> NDArray[np.float64]:
    """Return the entropy of each row, in bits ``[rows]``."""
    terms = csr_matrix((-shares.data * np.log2(shares.data), shares.indices, shares.indptr),
                       shape=shares.shape)  # fmt: skip
    bits: NDArray[np.float64] = terms @ np.ones(shares.shape[1])
    return bits
