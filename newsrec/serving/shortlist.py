"""Searches for one user in a fraction of the time, with the same result.

An int8 copy of the vectors gives every score up to a known error. News that could be among the best
are then scored exactly; all others are certainly not among them. onnxruntime multiplies int8 in its
operator MatMulNBits, which has a fast form on most processors; ``Shortlist.of`` measures that.
"""

import logging
import threading
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from newsrec.serving.catalogue import Catalogue
from newsrec.serving.search import Best, top_k
from newsrec.serving.vectors import MOST, Packed, Vectors, blocks, pack, products

log = logging.getLogger(__name__)

FEWEST_NEWS = 20_000
"""With fewer, a plain search takes less than two milliseconds."""
FEW_USERS = 2
"""With more users at a time, a plain search is as fast."""
NEWS_AT_ONCE = 2**20
"""News of one operator, since a graph has at most 2 GiB."""
ROUNDING = 1e-5
"""Relative error of sums in float32."""


class Shortlist:
    """An int8 copy of news vectors, in which the best news for one user is found quickly.

    Args:
        news: News vectors ``[news, dim]``.
        threads: Threads that onnxruntime uses; None lets onnxruntime decide.
    """

    def __init__(self, news: Vectors, threads: int | None = None) -> None:
        import onnxruntime

        self.news = news
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._sessions = []
        self._lengths = np.empty(len(news), np.float32)
        self._errors = np.empty(len(news), np.float32)
        for start in range(0, len(news), NEWS_AT_ONCE):
            stop = min(start + NEWS_AT_ONCE, len(news))
            self._sessions.append(
                onnxruntime.InferenceSession(
                    _graph(self._rounded(start, stop)), options, providers=["CPUExecutionProvider"]
                )
            )

    @classmethod
    def of(cls, news: Vectors, threads: int | None = None) -> "Shortlist | None":
        """Return a shortlist of news, or None where a plain search is as fast."""
        if len(news) < FEWEST_NEWS:
            return None
        try:
            made = cls(news, threads)
            user = np.ones((1, news.shape[1]), np.float32)
            searches = (lambda: made.scores(user), lambda: products(user, news))
            taken = [min(_seconds(search) for _ in range(3)) for search in searches]
        except Exception as error:  # an older onnxruntime does not have the operator
            log.warning("search goes without a shortlist: %s", str(error).splitlines()[0])
            return None
        if taken[0] > taken[1]:
            log.info("search goes without a shortlist, which is slower on this processor")
            return None
        return made

    def _rounded(self, start: int, stop: int) -> Packed:
        packed = pack(self.news[start:stop], "int8")
        assert isinstance(packed, Packed)
        assert packed.scales is not None
        for rows in blocks(packed):
            exact = self.news[start + rows.start : start + rows.stop]
            at = slice(start + rows.start, start + rows.stop)
            self._lengths[at] = np.linalg.norm(exact, axis=1)
            self._errors[at] = np.linalg.norm(exact - packed[rows], axis=1)
        return packed

    def scores(self, user: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the approximate scores of all news for a user ``[1, dim]``, as ``[news]``."""
        parts = [session.run(None, {"user": user})[0][0] for session in self._sessions]
        found: NDArray[np.float32] = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return found

    def errors(self, user: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return how far each approximate score may be from the exact one ``[news]``.

        With the user ``u`` rounded by ``d`` and a news vector ``v`` by ``e``, the score is wrong by
        ``d (v - e) + u e``, at most ``|d| (|v| + |e|) + |u| |e|``. A number of the user is rounded
        by at most half of a 127th of the largest.
        """
        length = float(np.linalg.norm(user))
        rounded = float(np.abs(user).max()) / MOST / 2 * np.sqrt(user.shape[1])
        rounded = min(rounded, length) + ROUNDING * length
        return (self._errors * np.float32(length + rounded)) + self._lengths * np.float32(rounded)

    def search(
        self,
        user: NDArray[np.float32],
        k: int,
        excluded: NDArray[np.integer] | list[int],
        allowed: NDArray[np.bool_] | None = None,
    ) -> Best:
        """Return the best news by exact scores, as ``newsrec.serving.search.search`` does.

        Args:
            user: User vector ``[1, dim]``.
            k: Number of news to find.
            excluded: Rows that must not be found.
            allowed: False for news that must not be found ``[news]``.
        """
        scores, errors = self.scores(user), self.errors(user)
        scores[excluded] = -np.inf
        if allowed is not None:
            scores[~allowed] = -np.inf
        least = scores - errors
        certain = top_k(least, min(k, len(least)))
        if len(certain) < k:  # all that may be found
            rows = np.flatnonzero(scores > -np.inf)
        else:
            rows = np.flatnonzero(scores + errors >= least[certain[-1]])
        exact = self.news[rows] @ user[0]
        best = top_k(exact, min(k, len(exact))) if len(exact) else rows
        return Best(rows[best], exact[best])


class Shortlists:
    """The shortlist of a recommender's present vectors, made when it is first needed.

    Args:
        threads: As in ``Shortlist``.
        wanted: Whether there should be a shortlist.
    """

    def __init__(self, threads: int | None, wanted: bool) -> None:
        self.threads, self.wanted = threads, wanted
        self._making = threading.Lock()
        self._made: tuple[Catalogue, Shortlist | None] | None = None

    def of(self, catalogue: Catalogue) -> Shortlist | None:
        """Return the shortlist of real news; None if none is wanted or would be faster."""
        if not self.wanted:
            return None
        with self._making:
            if self._made is None or self._made[0] is not catalogue:
                self._made = catalogue, Shortlist.of(catalogue.real_vectors, self.threads)
            return self._made[1]


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _graph(packed: Packed) -> bytes:
    """Return an ONNX model that multiplies a vector ``user`` with int8 vectors.

    It is written as protocol buffers by hand, since serving does not need the package onnx. The
    numbers are the fields' numbers in onnx.proto.
    """
    assert packed.scales is not None
    news, dim = packed.shape
    block = max(32, 1 << (dim - 1).bit_length())  # one scale for each news item
    codes = np.full((news, block), 128, np.uint8)
    codes[:, :dim] = (packed.values.view(np.uint8)) ^ 0x80  # adds 128
    attributes = {"K": dim, "N": news, "bits": 8, "block_size": block, "accuracy_level": 4}
    node = b"".join(_bytes(1, given) for given in (b"user", b"codes", b"scales"))
    node += _bytes(2, b"scores") + _bytes(4, b"MatMulNBits") + _bytes(7, b"com.microsoft")
    for key, value in attributes.items():
        node += _bytes(5, _bytes(1, key.encode()) + _number(3, value) + _number(20, 2))
    constants: list[tuple[bytes, int, NDArray[Any]]] = [
        (b"codes", 2, codes.reshape(news, 1, block)),
        (b"scales", 1, packed.scales),
    ]
    parts = [_bytes(1, node), _bytes(2, b"shortlist")]
    for name, kind, array in constants:
        sizes = b"".join(_number(1, size) for size in array.shape)
        tensor = sizes + _number(2, kind) + _bytes(8, name)
        parts.append(_bytes(5, tensor + _bytes(9, array.tobytes())))
    for field, name, width in ((11, b"user", dim), (12, b"scores", news)):
        axes = b"".join(_bytes(1, _number(1, size)) for size in (1, width))
        shape = _bytes(1, _number(1, 1) + _bytes(2, axes))
        parts.append(_bytes(field, _bytes(1, name) + _bytes(2, shape)))
    graph = b"".join(parts)
    versions = [_bytes(1, b"") + _number(2, 20), _bytes(1, b"com.microsoft") + _number(2, 1)]
    return _number(1, 10) + _bytes(7, graph) + b"".join(_bytes(8, each) for each in versions)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
