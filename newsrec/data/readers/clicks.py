"""Makes impressions from a log of clicks: who clicked what, and when.

Such a log does not tell what users were shown and did not click. So each moment at which a user
clicked becomes an impression: its candidates are the clicked news and news that is drawn at random
from what others clicked in the hours before. News is therefore drawn as often as it was popular
then, and popularity alone cannot tell clicked from drawn news. The history is what the user clicked
before that moment, in this split and the splits before it.

Draws depend on the seed, the position of the impression and the position of the draw alone.
"""

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS, UNKNOWN_NEWS
from newsrec.data.mixing import mix
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.data.readers.base import LISTED, BadLine, Impressions, Rows
from newsrec.data.readers.parquet_columns import (
    NO_TIME,
    Lookup,
    as_seconds,
    as_text,
    is_filled,
    shown,
)
from newsrec.data.readers.parquet_table import ParquetTable
from newsrec.data.readers.source import SourceFile
from newsrec.errors import DataError

BLOCK = 1 << 14
"""Impressions made at a time."""
FEWEST_CLICKS = 1000
"""Draw from at least this many clicks, also where the hours before have fewer."""
ROUNDS = 5
"""How often more news is drawn for impressions that still have too few."""
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Sampling(NamedTuple):
    """How impressions are made from clicks; ``ROOT/sampling.json`` may set other values."""

    negatives: int = 20
    """News drawn for each impression."""
    hours: int = 24
    """News is drawn from the clicks of this many hours before an impression."""
    history: int = 100
    """Clicks kept of a history, the last ones."""
    seed: int = 0


MOST = Sampling(negatives=1000, hours=24 * 365, history=10_000, seed=2**62)


def read_sampling(files: Sequence[SourceFile]) -> Sampling:
    """Return the sampling that a file sets; the default values if there is no file.

    Raises:
        DataError: If the file is not JSON, or has an unknown name or a wrong value.
    """
    if not files:
        return Sampling()
    path = files[0].path
    names = ", ".join(Sampling._fields)
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(given, dict)
    except (ValueError, AssertionError, RecursionError):
        raise DataError(f'{path} is not JSON such as {{"negatives": 20}}. Correct it.') from None
    for name, value in given.items():
        if name not in Sampling._fields:
            raise DataError(f"{path} sets {name!r}. Choose from {names}.")
        least, most = int(name != "seed"), getattr(MOST, name)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise DataError(
                f"{path}: {name} is {value!r}; it must be a whole number from {least} to {most:,}."
            )
    return Sampling(**given)


class _Clicks(NamedTuple):
    """Rows of a log of clicks."""

    user: pa.Array
    """User ids ``[clicks]``."""
    time: NDArray[np.int64]
    """Seconds since 1970 ``[clicks]``."""
    news: NDArray[np.int32]
    """Catalogue rows ``[clicks]``."""
    rows: Rows
    """The bad rows."""


class _Log(NamedTuple):
    """Clicks of a split and of the splits before it, with users as numbers."""

    user: NDArray[np.int64]
    time: NDArray[np.int64]
    news: NDArray[np.int32]

    def take(self, rows: NDArray[np.int64] | slice) -> "_Log":
        """Return some clicks in the given order."""
        return _Log(self.user[rows], self.time[rows], self.news[rows])


class SplitClicks(NamedTuple):
    """All that the impressions of a split are made of."""

    users: pa.Array
    """Ids of all users."""
    bad: Rows
    """The split's bad rows."""
    moments: "_Moments"

    @classmethod
    def of(cls, own: ParquetTable, earlier: Sequence[ParquetTable], ids: pa.Array) -> "SplitClicks":
        """Read the clicks of a split.

        Args:
            own: The split's clicks.
            earlier: Clicks of the splits before it; their bad rows are left out, since they were
                reported with their own split.
            ids: News ids of the real news.
        """
        parts = [_read(table, ids) for table in (own, *earlier)]
        users = pa.chunked_array([part.user for part in parts]).combine_chunks().dictionary_encode()
        log = _Log(
            users.indices.to_numpy().astype(np.int64),
            np.concatenate([part.time for part in parts]),
            np.concatenate([part.news for part in parts]),
        )
        moments = _Moments.of(log, len(parts[0].time))
        return cls(users.dictionary, parts[0].rows, moments)

    def impressions(
        self, sampling: Sampling, number: int = 0, parts: int = 1
    ) -> Iterator[Impressions]:
        """Yield all impressions in order of time, or those of part ``number`` of ``parts``."""
        blocks = max(-(-self.moments.num // BLOCK), 1)
        for block in range(blocks * number // parts, blocks * (number + 1) // parts):
            some = slice(block * BLOCK, min((block + 1) * BLOCK, self.moments.num))
            bad = self.bad if block == 0 else self.bad._replace(bad=[], num_bad=0)  # told once
            yield _block(self.users, bad, self.moments, some, sampling)


def _read(table: ParquetTable, ids: pa.Array) -> _Clicks:
    lookup = Lookup(ids)

    def parse(rows: Rows) -> _Clicks:
        for name in ("user_id", "news_id"):
            good = is_filled(as_text(rows.column(name)))
            rows = rows.require(good, name, "null, empty or not UTF-8", shown(rows, name))
        _, good = as_seconds(rows.column("time"))
        rows = rows.require(good, "time", NO_TIME, shown(rows, "time"))
        seconds = as_seconds(rows.column("time"))[0].astype(np.int64)
        user = as_text(rows.column("user_id"))
        return _Clicks(user, seconds, lookup.find(rows.column("news_id")), rows)

    parts = list(table.map(parse))
    bad: list[BadLine] = [line for part in parts for line in part.rows.bad]
    bad = sorted(bad, key=lambda line: line.line)[:LISTED]
    return _Clicks(
        pa.chunked_array([part.user for part in parts], pa.string()).combine_chunks(),
        np.concatenate([part.time for part in parts]),
        np.concatenate([part.news for part in parts]),
        Rows(pa.table({}), np.zeros(0, np.int64), bad, sum(part.rows.num_bad for part in parts)),
    )


class _Moments(NamedTuple):
    """The impressions to make: the moments at which a user clicked, in order of time."""

    num: int
    user: NDArray[np.int64]
    time: NDArray[np.int64]
    clicked: Ragged
    """Distinct news clicked at each moment."""
    history: _Log
    """All clicks, by user and then by time."""
    before: NDArray[np.int64]
    """Where in ``history`` each moment is."""
    first: NDArray[np.int64]
    """Where in ``history`` the clicks of each moment's user begin."""
    pool: _Log
    """Clicks of known news, by time."""
    pairs: NDArray[np.int64]
    """Number of each distinct pair of a user and a news item that the user clicked, sorted."""
    num_news: int

    @classmethod
    def of(cls, log: _Log, num_own: int) -> "_Moments":
        """Find the moments of the first ``num_own`` clicks of a log."""
        num_news = int(log.news.max(initial=0)) + 1
        order = np.lexsort((np.arange(len(log.time)), log.time, log.user))
        history = log.take(order)
        start = int(log.time.min(initial=0))
        span = int(log.time.max(initial=0)) - start + 1
        place = history.user * span + (history.time - start)

        own = log.take(slice(num_own))
        order = np.lexsort((np.arange(num_own), own.user, own.time))
        own = own.take(order)
        new = np.ones(num_own, dtype=bool)
        new[1:] = (np.diff(own.time) != 0) | (np.diff(own.user) != 0)
        owner = np.cumsum(new) - 1
        _, kept = np.unique(owner * num_news + own.news, return_index=True)
        kept.sort()
        lengths = np.bincount(owner[kept], minlength=int(new.sum()))
        user, time = own.user[new], own.time[new]

        known = np.flatnonzero(log.news >= FIRST_NEWS)
        order = known[np.argsort(log.time[known], kind="stable")]
        return cls(
            len(user),
            user,
            time,
            Ragged(own.news[kept], to_offsets(lengths)),
            history,
            np.searchsorted(place, user * span + (time - start)),
            np.searchsorted(place, user * span),
            log.take(order),
            np.unique(log.user * num_news + log.news),
            num_news,
        )


def _block(
    users: pa.Array, bad: Rows, moments: _Moments, some: slice, sampling: Sampling
) -> Impressions:
    """Make some impressions."""
    number = np.arange(some.start, some.stop)
    ends = moments.before[some]
    lengths = np.minimum(ends - moments.first[some], sampling.history)
    offsets = to_offsets(lengths)
    places = np.repeat(ends - lengths - offsets[:-1], lengths) + np.arange(offsets[-1])
    history = Ragged(moments.history.news[places], offsets)
    known = history.values >= FIRST_NEWS
    clicked = moments.clicked.between(some.start, some.stop)
    owner, drawn = _draw(moments, number, sampling)
    owner = np.concatenate([clicked.owners(), owner])
    news = np.concatenate([clicked.values, drawn])
    label = np.repeat(np.array([1, 0], np.int8), [len(clicked.values), len(drawn)])
    order = np.lexsort((_random(sampling.seed + 1, number[owner], news), owner))
    counts = np.bincount(owner, minlength=len(number))
    return Impressions(
        bad._replace(lines=number),
        number + 1,
        moments.time[some].astype("datetime64[s]"),
        users.take(pa.array(moments.user[some])).dictionary_encode(),
        history.select(known),
        int((history.values == UNKNOWN_NEWS).sum()),
        Ragged(news[order], to_offsets(counts)),
        label[order],
        more={"sampled_candidates": len(drawn)} if len(drawn) else {},
    )


def _draw(
    moments: _Moments, number: NDArray[np.int64], sampling: Sampling
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Draw distinct news that the user never clicked, from what others clicked shortly before.

    Returns:
        The position in ``number`` of each drawn news item's impression, and the news.
    """
    time, pool = moments.time[number], moments.pool
    num_clicks = len(pool.time)
    end = np.searchsorted(pool.time, time)
    begin = np.searchsorted(pool.time, time - sampling.hours * 3600)
    begin = np.maximum(np.minimum(begin, end - FEWEST_CLICKS), 0)
    end = np.maximum(end, min(FEWEST_CLICKS, num_clicks))  # at the beginning of the log
    owner = np.zeros(0, np.int64)
    news = np.zeros(0, np.int32)
    missing = np.flatnonzero(end > begin)
    tries = 2 * sampling.negatives
    for turn in range(ROUNDS):
        if not len(missing):
            break
        who = np.repeat(missing, tries)
        draw = np.tile(np.arange(turn * tries, (turn + 1) * tries), len(missing))
        width = (end - begin)[who]
        chance = _random(sampling.seed, number[who], draw) % width.astype(np.uint64)
        found = pool.news[begin[who] + chance.astype(np.int64)]
        pair = moments.user[number[who]] * moments.num_news + found
        place = np.searchsorted(moments.pairs, pair)
        place[place == len(moments.pairs)] = 0
        other = moments.pairs[place] != pair
        owner, news = np.append(owner, who[other]), np.append(news, found[other])
        _, first = np.unique(owner * moments.num_news + news, return_index=True)
        first.sort()  # in the order of the draws
        owner, news = owner[first], news[first]
        order = np.argsort(owner, kind="stable")
        owner, news = owner[order], news[order]
        counts = np.bincount(owner, minlength=len(number))
        rank = np.arange(len(owner)) - np.repeat(to_offsets(counts)[:-1], counts)
        kept = rank < sampling.negatives
        owner, news = owner[kept], news[kept]
        missing = missing[counts[missing] < sampling.negatives]
    return owner, news


def _random(
    seed: int, first: NDArray[np.integer], second: NDArray[np.integer]
) -> NDArray[np.uint64]:
    """Return numbers that look random but depend only on the seed and two numbers."""
    state = mix(np.full(1, seed, np.uint64) + GOLDEN)
    state = mix(state + first.astype(np.uint64) * GOLDEN)
    return mix(state + second.astype(np.uint64) * GOLDEN)
