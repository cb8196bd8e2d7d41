"""Turns lines of MIND's ``behaviors.tsv`` into arrays, one block at a time."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from newsrec.data import FIRST_NEWS, UNKNOWN_NEWS
from newsrec.data.ragged import Ragged
from newsrec.data.readers.base import Impressions, Rows

TIME_FORMAT = "%m/%d/%Y %I:%M:%S %p"
TIME = r"^\d{1,2}/(?P<day>\d{1,2})/[12]\d{3} \d{1,2}:[0-5]\d:[0-5]\d [AP]M$"
NO_IDS = ("", "-0", "-1")  # no array: making one imports pandas


class Parser:
    """Turns lines of ``behaviors.tsv`` into arrays; ``ids`` are the news ids of the real news."""

    def __init__(self, ids: pa.Array, labelled: bool) -> None:
        self.ids = ids
        self.labelled = labelled
        # All ids with -0, then with -1, then without label: one lookup gives news and label.
        self.words = pa.concat_arrays(
            [pc.binary_join_element_wise(ids, end, "") for end in ("-0", "-1")] + [ids]
        )

    def parse(self, rows: Rows) -> Impressions:
        """Return the rows that can be read as arrays; bad lines are listed in ``rows``."""
        good = pc.match_substring_regex(rows.column("impression_id"), r"^[0-9]{1,18}$")
        rows = rows.require(good, "impression_id", "not a whole number")
        rows = rows.require(pc.not_equal(rows.column("user_id"), ""), "user_id", "empty")
        rows = rows.require(
            is_time(rows.column("time")), "time", "not a time like 11/11/2019 9:05:58 AM"
        )
        rows, candidates, labels = self._candidates(rows)
        histories, unknown = self._histories(rows.column("history"))
        return Impressions(
            rows,
            pc.cast(rows.column("impression_id"), pa.int64()).to_numpy(),
            times(rows.column("time")).to_numpy().astype("datetime64[s]"),
            rows.column("user_id").dictionary_encode(),
            histories,
            unknown,
            candidates,
            labels,
        )

    def _candidates(self, rows: Rows) -> tuple[Rows, Ragged, NDArray[np.int8] | None]:
        lists = pc.split_pattern(rows.column("candidates"), " ")
        words, offsets = lists.flatten(), _offsets(lists)
        found = pc.index_in(words, value_set=self.words)
        missing = np.flatnonzero(_true(found.is_null()))
        label, news = np.divmod(found.fill_null(0).to_numpy(), np.int32(max(len(self.ids), 1)))
        news += FIRST_NEWS
        label = label.astype(np.int8)
        strange = words.take(pa.array(missing))
        label[missing] = np.select(
            [_true(pc.ends_with(strange, "-0")), _true(pc.ends_with(strange, "-1"))], [0, 1], 2
        )
        news[missing] = UNKNOWN_NEWS

        bare = label == 2
        known = pc.index_in(pc.replace_substring_regex(strange, "-[^-]*$", ""), self.ids)
        other = _true(known.is_valid()) & bare[missing]
        for problem, wrong in (
            ("an empty candidate id", missing[_true(pc.is_in(strange, pa.array(NO_IDS)))]),
            ("a label other than 0 and 1", missing[other]),
            (
                "no label (-0 or -1), while most lines have"
                if self.labelled
                else "a label, while most lines have none",
                np.flatnonzero(bare == self.labelled),
            ),
        ):
            if len(wrong):  # parse the remaining rows again
                return self._candidates(_leave_out(rows, words, offsets, wrong, problem))
        return rows, Ragged(news, offsets), label if self.labelled else None

    def _histories(self, column: pa.Array) -> tuple[Ragged, int]:
        lists = pc.split_pattern(column, " ")
        words = lists.flatten()
        found = pc.index_in(words, value_set=self.ids)
        known = _true(found.is_valid())
        unknown = int((~known).sum()) - int(pc.sum(pc.equal(words, "")).as_py() or 0)
        news = found.fill_null(0).to_numpy() + np.int32(FIRST_NEWS)
        return Ragged(news, _offsets(lists)).select(known), unknown


def _leave_out(
    rows: Rows,
    words: pa.Array,
    offsets: NDArray[np.int64],
    wrong: NDArray[np.integer],
    problem: str,
) -> Rows:
    """Leave out the rows that contain the words at ``wrong``; list the first such word of each."""
    owner, first = np.unique(np.searchsorted(offsets, wrong, side="right") - 1, return_index=True)
    shown = dict(zip(owner.tolist(), wrong[first].tolist(), strict=True))
    good = np.ones(rows.num_rows, dtype=bool)
    good[owner] = False
    return rows.require(good, "candidates", problem, lambda row: words[shown[row]].as_py())


def times(texts: pa.Array) -> pa.Array:
    """Return times written as MIND does, in seconds; null where that fails."""
    return pc.strptime(texts, format=TIME_FORMAT, unit="s", error_is_null=True)


def is_time(texts: pa.Array) -> pa.Array:
    """Return whether each text is a time as MIND writes it."""
    # strptime alone also accepts the year 19 and missing spaces, and turns 02/30 into 2 March.
    day = pc.struct_field(pc.extract_regex(texts, TIME), "day")
    return pc.fill_null(pc.equal(pc.cast(day, pa.int64()), pc.day(times(texts))), False)


def _true(values: pa.BooleanArray) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = values.to_numpy(zero_copy_only=False)
    return found


def _offsets(lists: pa.ListArray) -> NDArray[np.int64]:
    offsets: NDArray[np.int64] = lists.offsets.to_numpy().astype(np.int64)
    offsets -= offsets[0]
    return offsets
