"""An index over many news vectors: proposes news that is then scored exactly; needs faiss-cpu.

News vectors are divided into lists around centres (an inverted file with vectors in float16), and a
search reads only the lists whose centres have the largest products with the query. How many lists
that takes is measured when the index is built: as many as find ``RECALL`` of the exact best.
"""

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsrec.errors import MissingPackageError
from newsrec.serving.matching import Matching

RECALL, BEST, SURE = 0.99, 100, 0.9
"""Share of the ``BEST`` highest products that a search must find, for this share of queries."""
QUERIES, CLICKS, AT_ONCE = 64, 50, 8
"""Queries by which this is measured, each the sum of up to ``CLICKS`` random news vectors, and how
many are compared with all news at once."""
LISTS, TRAINED_ON, PASSES = 2.0, 40, 8
"""Number of lists, as a multiple of the root of the number of news. The centres are learned from
this many news items for each list, in this many passes."""
SPARE = 8
"""``1 / SPARE`` more news than asked for is found, because float16 is not exact."""
OUTGROWN = 2
"""With this many times the news that it was built of, an index should be built anew."""


def refusal(matching: Matching) -> str | None:
    """Return why no index can be used with a model; None if one can."""
    if matching.head == "late":
        return (
            "Scores of a model with matching late add the products with the most similar clicks, "
            "and no product with one vector finds the highest of these sums."
        )
    return None


class Index:
    """Finds the rows of the news vectors that have the largest products with others.

    Threads may share an index.

    Args:
        rows: Number of each news item, 0 or more ``[news]``.
        vectors: News vectors, of at least one news item ``[news, dim]``.
        queries: Vectors like those that will be searched for, by which the number of lists is
            chosen, such as user vectors; None makes some ``[queries, dim]``.

    Raises:
        MissingPackageError: If the package faiss-cpu is not installed.
    """

    def __init__(
        self,
        rows: NDArray[np.integer],
        vectors: NDArray[np.float32],
        queries: NDArray[np.float32] | None = None,
    ) -> None:
        self._faiss = _faiss()
        self._lock = threading.Lock()
        self._held = np.zeros(1, np.bool_)
        rng = np.random.default_rng(0)
        number, dim = vectors.shape
        lists = max(1, min(number, round(LISTS * math.sqrt(number))))
        some = np.sort(rng.choice(number, min(number, TRAINED_ON * lists), replace=False))
        self._centres = self._faiss.IndexFlatIP(dim)
        self._lists = self._faiss.IndexIVFScalarQuantizer(
            *(self._centres, dim, lists, self._faiss.ScalarQuantizer.QT_fp16),
            *(self._faiss.METRIC_INNER_PRODUCT, False),
        )
        self._lists.cp.niter = PASSES
        self._lists.cp.min_points_per_centroid = 1  # which would only warn
        self._lists.train(np.ascontiguousarray(vectors[some], dtype=np.float32))
        self._lists.set_direct_map_type(self._faiss.DirectMap.Hashtable)  # finds rows to delete
        self.add(rows, vectors)
        self.built_of = number
        if queries is None:
            drawn = rng.integers(0, number, (QUERIES, CLICKS))
            real = np.arange(CLICKS) < rng.integers(1, CLICKS + 1, (QUERIES, 1))
            queries = np.einsum("qc,qcd->qd", real.astype(np.float32), vectors[drawn])
        self.probed, self.recall = self._measure(rows, vectors, np.asarray(queries, np.float32))

    def __len__(self) -> int:
        return int(self._lists.ntotal)

    @property
    def lists(self) -> int:
        """Number of lists; a search reads ``probed`` of them."""
        return int(self._lists.nlist)

    @property
    def outgrown(self) -> bool:
        """Whether so much news was added that the index should be built anew."""
        return bool(len(self) > OUTGROWN * self.built_of)

    def add(self, rows: NDArray[np.integer], vectors: NDArray[np.float32]) -> None:
        """Add news; a row that is there is replaced.

        Args:
            rows: Number of each news item, each once ``[news]``.
            vectors: News vectors ``[news, dim]``.
        """
        numbers = np.ascontiguousarray(rows, dtype=np.int64)
        values = np.ascontiguousarray(vectors, dtype=np.float32)
        with self._lock:
            last = int(numbers.max(initial=-1))
            if last >= len(self._held):
                self._held = np.append(self._held, np.zeros(last + 1, np.bool_))
            self._remove(numbers)
            self._lists.add_with_ids(values, numbers)
            self._held[numbers] = True

    def remove(self, rows: NDArray[np.integer]) -> None:
        """Remove news; rows that are not there are ignored ``[news]``."""
        with self._lock:
            self._remove(np.asarray(rows, dtype=np.int64))

    def search(
        self, vectors: NDArray[np.float32], k: int, allowed: NDArray[np.bool_] | None = None
    ) -> NDArray[np.int64]:
        """Return rows that probably hold the ``k`` largest products with each vector, in order.

        The union of these for all vectors of a user also holds the highest of their maximum.

        Args:
            vectors: User vectors ``[vectors, dim]``.
            k: Number of news to find for each vector.
            allowed: False for rows that must not be found ``[rows]``; None allows all. If few are
                allowed, an exact search of these is as fast and finds all.
        """
        selector = None
        if allowed is not None:
            selector = self._faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        found = self._find(np.ascontiguousarray(vectors, dtype=np.float32), k, selector)
        return np.unique(found[found >= 0])

    def _find(
        self, vectors: NDArray[np.float32], k: int, selector: Any = None
    ) -> NDArray[np.int64]:
        """Return the rows that are found for each vector, -1 where there are no more."""
        how: dict[str, Any] = {} if selector is None else {"sel": selector}
        with self._lock:
            fetched = max(1, min(k + max(1, k // SPARE), len(self)))
            settings = self._faiss.SearchParametersIVF(nprobe=self.probed, **how)
            found: NDArray[np.int64] = self._lists.search(vectors, fetched, params=settings)[1]
        return found

    def _remove(self, numbers: NDArray[np.int64]) -> None:
        there = numbers[numbers < len(self._held)]
        there = there[self._held[there]]
        if len(there):
            self._lists.remove_ids(self._faiss.IDSelectorArray(there))
            self._held[there] = False

    def _measure(
        self,
        rows: NDArray[np.integer],
        vectors: NDArray[np.float32],
        queries: NDArray[np.float32],
    ) -> tuple[int, float]:
        """Return how many lists to read, and the mean share of the best that is then found."""
        best = min(BEST, len(rows))
        expected: list[NDArray[np.integer]] = []
        for start in range(0, len(queries), AT_ONCE):
            products = queries[start : start + AT_ONCE] @ vectors.T
            expected += [rows[np.argpartition(-row, best - 1)[:best]] for row in products]
        self.probed = min(4, self.lists)
        while True:
            pairs = zip(self._find(queries, best), expected, strict=True)
            recalls = [float(np.isin(true, found).mean()) for found, true in pairs]
            if np.quantile(recalls, 1 - SURE) >= RECALL or self.probed == self.lists:
                return self.probed, float(np.mean(recalls))
            self.probed = min(math.ceil(1.25 * self.probed), self.lists)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise MissingPackageError(
            "An index over the news needs the package faiss-cpu: run `pip install faiss-cpu`, or "
            "leave --index_above out to score all news."
        ) from error
    return faiss
