"""Scores tables of users with an exported folder: Arrow in, Arrow out, without PyTorch.

    from newsrec.serving.batch import BatchScorer

    scorer = BatchScorer("exports/demo", k=100)
    scorer(pyarrow.table({"user_id": ["U1"], "history": [["N1", "N7"]]}))

A row of the answer is the same to the bit, whatever other rows the table has, so a table may be
divided in any way. For this, each user is encoded alone. Matrix products over many users only say
which news could be among the best; ``newsrec.serving.search.best_alone`` scores these.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as types
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS, UNKNOWN_NEWS
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.readers import parquet_checks as checks
from newsrec.data.readers.base import Rows
from newsrec.data.readers.parquet_columns import Lists, Lookup, as_bools, as_text, is_filled, shown
from newsrec.data.readers.parquet_table import Check, check_schema
from newsrec.errors import DataError, UserError
from newsrec.serving.folder import ExportFolder
from newsrec.serving.matching import Scores, Users, match_all
from newsrec.serving.search import SCORES_AT_ONCE, Best, best_alone, score_alone
from newsrec.serving.sessions import Encoders
from newsrec.serving.vectors import blocks
from newsrec.serving.vectors import part as rows_of

RESULTS = {
    "news": {"news_ids": pa.list_(pa.string()), "scores": pa.list_(pa.float32())},
    "ranks": {
        "news_ids": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
        "ranks": pa.list_(pa.int32()),
        "num_unknown_candidates": pa.int32(),
    },
    "vectors": {"user_vector": pa.list_(pa.float32())},
}
"""Kinds of result, and their columns besides ``user_id``, ``time`` and
``num_unknown_history``."""


def a_user(kind: pa.DataType) -> str | None:
    """Check a column of user ids; files without rows may have no type."""
    return None if types.is_null(kind) else checks.an_id(kind)


REQUIRED: dict[str, Check] = {"user_id": a_user, "history": checks.ids}
OPTIONAL: dict[str, Check] = {"time": checks.a_time}
MOST_USERS = 256
"""Most users whose scores are in memory at once."""
ROWS_AT_ONCE = 1 << 14
"""Users whose rows are scored, and added to the answer, at once."""


class BatchScorer:
    """Scores tables of users, each row independently of the others.

    Ray Data takes the class for ``map_batches``, with ``batch_format="pyarrow"``. A pickled scorer
    reads the folder again when it is loaded.

    Args:
        export: Folder that ``python -m newsrec export`` wrote.
        result: ``news`` finds the best news of the export, ``ranks`` ranks the candidates of each
            user, ``vectors`` returns the user vectors.
        k: Number of news to find; fewer are found if fewer are left after ``exclude_history``.
        exclude_history: Whether news of the history are left out.
        threads: Users encoded at once. OMP_NUM_THREADS sets the threads of numpy's products.

    Raises:
        UserError: If the folder cannot be used, or an argument is invalid.
    """

    def __init__(
        self,
        export: str | Path,
        result: str = "news",
        k: int = 100,
        *,
        exclude_history: bool = True,
        threads: int = 1,
    ) -> None:
        self._settings: dict[str, Any] = {
            "export": str(export),
            "result": result,
            "k": k,
            "exclude_history": exclude_history,
            "threads": threads,
        }
        if result not in RESULTS:
            raise UserError(f"result is {result!r}; it must be one of {', '.join(RESULTS)}.")
        if not isinstance(threads, int) or threads < 1:
            raise UserError(f"threads is {threads!r}; it must be 1 or more.")
        self.result, self.k, self.exclude_history = result, k, exclude_history
        self.folder = ExportFolder(export)
        news = self.folder.read_news()
        if not len(news.table):
            raise UserError(
                f"{export} holds no news, so histories cannot be read. Export the checkpoint again "
                "with its data (`export --data.root`)."
            )
        if result == "news" and (not isinstance(k, int) or not 1 <= k <= len(news.table)):
            raise UserError(
                f"k is {k!r}; it must be from 1 to the number of news, {len(news.table):,}."
            )
        self._encoders = Encoders(self.folder, 1)
        self._vectors = news.vectors
        self._real_vectors = rows_of(news.vectors, slice(FIRST_NEWS, None))
        self._ids = news.table["news_id"].combine_chunks()
        self._lookup = Lookup(self._ids)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._cold: Best | None = None
        real = self._real_vectors
        lengths = (np.linalg.norm(real[rows], axis=1).max() for rows in blocks(real))
        self._longest = float(max(lengths))

    def __reduce__(self) -> tuple[Any, ...]:
        return _made, (self._settings,)

    @property
    def schema(self) -> pa.Schema:
        """Columns of the answers; ``time`` follows ``user_id`` if the users have it."""
        columns = {"user_id": pa.string(), **RESULTS[self.result]}
        return pa.schema(columns | {"num_unknown_history": pa.int32()})

    def __call__(self, users: pa.Table) -> pa.Table:
        """Score users.

        Args:
            users: Table with ``user_id`` (text or whole numbers) and ``history`` (list of ids of
                clicked news, oldest first); with ``ranks`` also ``candidates`` (list of ids).
                ``time`` is passed on. Other columns are ignored. A ``user_id`` may occur several
                times.

        Returns:
            A row for each user, in their order. ``num_unknown_history`` counts the ids of the
            history that the export does not have, null ones included; they were left out.

        Raises:
            DataError: If a column is missing or has another type, or a row cannot be read.
        """
        check_schema("The table of users", users.schema, *columns_of(self.result))
        tables = []
        for start in range(0, max(len(users), 1), ROWS_AT_ONCE):
            part = users.slice(start, ROWS_AT_ONCE)
            rows = self.check(Rows(part, start + np.arange(len(part)), [], 0))
            if rows.num_bad:
                bad = rows.bad[0].in_words("row")
                raise DataError(f"The table of users, {bad}. Correct the row, or leave it out.")
            tables.append(self.score(rows.table))
        return pa.concat_tables(tables)

    def check(self, rows: Rows) -> Rows:
        """Return the rows that can be scored; the others are recorded as bad lines."""
        texts = as_text(rows.column("user_id"))
        told = shown(rows, "user_id")
        rows = rows.require(is_filled(texts), "user_id", "null, empty or not UTF-8", told)
        names = ["history", "candidates"] if self.result == "ranks" else ["history"]
        for name in names:
            good = as_bools(rows.column(name).is_valid())
            rows = rows.require(good, name, "null; write an empty list instead")
        if self.result == "ranks":
            lists = Lists.of(rows.column("candidates"))
            wrong = lists.rows_with(self._lookup.find(lists.values) == 0)
            told = shown(rows, "candidates")
            rows = rows.require(~wrong, "candidates", "a null or empty id", told)
        return rows

    def score(self, users: pa.Table) -> pa.Table:
        """Score users whose rows ``check`` found good; returns what a call of the scorer does."""
        rows = Rows(users, np.arange(len(users)), [], 0)
        lists = Lists.of(rows.column("history"))
        found = self._lookup.find(lists.values)
        known = Ragged(found, lists.offsets).select(found >= FIRST_NEWS)
        clicked = np.split(known.values, known.offsets[1:-1]) if len(users) else []
        answer = {"user_id": as_text(rows.column("user_id"))}
        if "time" in users.column_names:
            times = rows.column("time")
            answer["time"] = as_text(times) if checks.is_text(times.type) else times
        answer |= getattr(self, f"_find_{self.result}")(rows, clicked)
        answer["num_unknown_history"] = lists.lengths - known.lengths
        schema = self.schema
        if "time" in answer:
            schema = schema.insert(1, pa.field("time", answer["time"].type))
        arrays = [
            part if isinstance(part, pa.Array) else pa.array(part, schema.field(name).type)
            for name, part in answer.items()
        ]
        return pa.Table.from_arrays(arrays, schema=schema)

    def _find_news(self, rows: Rows, clicked: Sequence[NDArray[np.int32]]) -> dict[str, Any]:
        news = self._real_vectors
        at_once = max(1, min(MOST_USERS, len(clicked), SCORES_AT_ONCE // len(news)))
        block = np.empty((at_once, len(news)), np.float32)
        found: list[Best] = []
        for start in range(0, len(clicked), at_once):
            part = clicked[start : start + at_once]
            users = list(self._map(self._encode, part))
            scores = block[: len(part)]
            if users[0].vectors.shape[1] == 1:
                match_all(np.concatenate([user.vectors for user in users]), news, scores)
            else:
                list(self._map(lambda user, row: match_all(user, news, row[None]), users, scores))
            if self.exclude_history:
                for row, known in zip(scores, part, strict=True):
                    row[known - FIRST_NEWS] = -np.inf
            found += self._map(self._best, scores, users, part)
        offsets = to_offsets(np.array([len(best.rows) for best in found], np.int64))
        ids = self._ids.take(pa.array(_joined([best.rows for best in found], np.int64)))
        scored = _joined([best.scores for best in found], np.float32)
        return {"news_ids": _lists(offsets, ids), "scores": _lists(offsets, pa.array(scored))}

    def _best(self, scores: Scores, user: Users, known: NDArray[np.int32]) -> Best:
        """Return one user's best news; all users without a known click have the same."""
        if self._cold is not None and not len(known):
            return self._cold
        best = best_alone(scores, user, self._real_vectors, self.k, self._longest)
        if not len(known):
            self._cold = best
        return best

    def _find_ranks(self, rows: Rows, clicked: Sequence[NDArray[np.int32]]) -> dict[str, Any]:
        lists = Lists.of(rows.column("candidates"))
        found = self._lookup.find(lists.values)
        unknown = np.diff(to_offsets(found == UNKNOWN_NEWS)[lists.offsets])
        candidates = np.split(found, lists.offsets[1:-1]) if len(clicked) else []

        def rank(known: NDArray[np.int32], rows: NDArray[np.int32]) -> list[NDArray[Any]]:
            scores = score_alone(self._encode(known), self._vectors, rows)
            ranks = np.empty(len(rows), np.int32)
            ranks[np.argsort(-scores, kind="stable")] = np.arange(1, len(rows) + 1)
            return [scores, ranks]

        ranked = list(self._map(rank, clicked, candidates))
        return {
            "news_ids": _lists(lists.offsets, as_text(lists.values)),
            "scores": _lists(lists.offsets, pa.array(_joined([r[0] for r in ranked], np.float32))),
            "ranks": _lists(lists.offsets, pa.array(_joined([r[1] for r in ranked], np.int32))),
            "num_unknown_candidates": unknown,
        }

    def _find_vectors(self, rows: Rows, clicked: Sequence[NDArray[np.int32]]) -> dict[str, Any]:
        found = self._map(
            lambda known: self._encoders.user_vectors([known.tolist()], self._vectors)[0], clicked
        )
        offsets = np.arange(len(clicked) + 1) * self._encoders.dim
        return {"user_vector": _lists(offsets, pa.array(_joined(list(found), np.float32)))}

    def _encode(self, known: NDArray[np.int32]) -> Users:
        """Encode one user alone, because the last bits of a block of users depend on its shape."""
        return self._encoders.users([known.tolist()], self._vectors)

    def _map(self, work: Any, *lists: Iterable[Any]) -> Iterator[Any]:
        return self._pool.map(work, *lists) if self._pool else map(work, *lists)


def columns_of(result: str) -> tuple[dict[str, Check], dict[str, Check]]:
    """Return the columns that users must and may have for a result, and how to check each."""
    candidates: dict[str, Check] = {"candidates": checks.ids} if result == "ranks" else {}
    return {**REQUIRED, **candidates}, OPTIONAL


def _made(settings: dict[str, Any]) -> BatchScorer:
    return BatchScorer(**settings)


def _lists(offsets: NDArray[np.int64], values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def _joined(parts: Sequence[NDArray[Any]], kind: Any) -> NDArray[Any]:
    return np.concatenate([np.empty(0, kind), *parts])
