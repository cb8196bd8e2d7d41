"""What a news item is about: vectors of its words, by latent semantic analysis.

The same analysis reads invented and real texts, so tastes always follow something that a text
encoder can see: words that news items share, and their subcategory.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from scipy.sparse.linalg import svds

from newsrec.errors import UserError
from newsrec.simulation.texts import Texts

DIM = 16
"""Size of a content vector."""
MOST_NEWS = 0.1
"""A word in a larger share of the news, such as "the", tells nothing."""
SUBCATEGORY_WEIGHT = 5.0
CATEGORY_WEIGHT = 5.0
"""How often a subcategory and a category count as a word of their news."""
TITLE_WEIGHT = 5.0
"""How often a word of the title counts, compared with a word of the abstract."""
DIGITS = 4
"""Decimals kept of a vector: the order of sums differs between machines."""


class Contents(NamedTuple):
    """Unit vectors of what each news item is about."""

    full: NDArray[np.float32]
    """From the title, the abstract, the category and the subcategory ``[news, dim]``."""
    no_abstract: NDArray[np.float32]
    """The same without the abstract ``[news, dim]``."""
    title: NDArray[np.float32]
    """From the title alone ``[news, dim]``."""


def read_contents(texts: Texts, abstracts: bool) -> Contents:
    """Return the content vectors of all news.

    Args:
        texts: The texts.
        abstracts: Whether abstracts say something; if not, ``full`` does not depend on them.

    Raises:
        UserError: If the texts have too few words in common.
    """
    titles = [words(title) for title in texts.title]
    more = [words(abstract) if abstracts else [] for abstract in texts.abstract]
    subcategories = [[f"[{name}]"] if name else [] for name in texts.subcategory]
    categories = [[f"[{name}]"] if name else [] for name in texts.category]
    parts = titles, more, subcategories, categories
    lists = [[word for part in of_news for word in part] for of_news in zip(*parts, strict=True)]
    in_news: dict[str, int] = {}
    for found in lists:
        for word in dict.fromkeys(found):
            in_news[word] = in_news.get(word, 0) + 1
    limit = max(MOST_NEWS * len(lists), 2)
    known = [w for w, count in in_news.items() if count >= 2 and (count <= limit or w[0] == "[")]
    column = {word: place for place, word in enumerate(known)}
    if len(known) <= DIM or len(lists) <= DIM:
        raise UserError(
            f"The titles have {len(known)} words that at least two news items share, too few to "
            "tell what they are about. Name another file as --titles."
        )
    rarity = np.log(len(lists) / np.array([in_news[word] for word in known]))
    counts = [_count(part, column) for part in parts]
    in_title, in_abstract, in_subcategory, in_category = counts
    weighted = TITLE_WEIGHT * in_title
    weighted = weighted + SUBCATEGORY_WEIGHT * in_subcategory + CATEGORY_WEIGHT * in_category
    of_all = _scale_rows(weighted + in_abstract, rarity)
    others = [_scale_rows(part, rarity) for part in (weighted, in_title)]
    start = np.random.Generator(np.random.PCG64(0)).normal(size=min(of_all.shape))
    _, _, axes = svds(of_all, k=DIM, v0=start)
    # Both signs of an axis solve the problem, and machines find different ones. The sum of cubes
    # chooses one.
    axes *= -np.sign((axes**3).sum(axis=1, keepdims=True))
    mean = np.asarray((of_all @ axes.T).mean(axis=0))
    return Contents(*(_unit(part @ axes.T - mean) for part in (of_all, *others)))


def words(text: str) -> list[str]:
    """Return the words of a text in lower case."""
    return re.findall(r"[^\W\d_]{2,}", text.lower())


def _count(lists: Sequence[Sequence[str]], column: dict[str, int]) -> sparse.csr_array:
    """Return how often each news item has each word ``[news, words]``."""
    places = [(row, column[w]) for row, found in enumerate(lists) for w in found if w in column]
    rows, columns = np.array(places, dtype=np.int64).reshape(-1, 2).T
    shape = (len(lists), len(column))
    return sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()


def _scale_rows(counts: sparse.csr_array, rarity: NDArray[np.float64]) -> sparse.csr_array:
    """Return logarithmic counts times rarity, each row of length 1 (or 0 if it has no word)."""
    weights = counts.copy()
    weights.data = np.log1p(weights.data)
    weights = weights @ sparse.diags_array(rarity)
    norms = np.sqrt(np.asarray(weights.multiply(weights).sum(axis=1)).ravel())
    return (sparse.diags_array(1 / np.maximum(norms, 1e-12)) @ weights).tocsr()


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.round(vectors / np.maximum(norms, 1e-12), DIGITS).astype(np.float32)
