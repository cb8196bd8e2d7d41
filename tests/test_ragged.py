import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.data.ragged import Ragged, to_offsets

rows_of_numbers = st.lists(st.lists(st.integers(-9, 9), max_size=6), max_size=8)


def ragged(rows):
    flat = np.array([value for row in rows for value in row], dtype=np.int32)
    return Ragged(flat, to_offsets(np.array([len(row) for row in rows], dtype=int)))


def as_lists(rows):
    return [
        rows.values[start:end].tolist()
        for start, end in zip(rows.offsets[:-1], rows.offsets[1:], strict=True)
    ]


def test_offsets_say_where_rows_begin_and_end():
    assert to_offsets(np.array([2, 0, 3])).tolist() == [0, 2, 2, 5]
    assert to_offsets(np.array([], dtype=int)).tolist() == [0]
    assert to_offsets(np.array([True, False, True])).tolist() == [0, 1, 1, 2]


def test_offsets_do_not_overflow_small_integers():
    lengths = np.full(3, 2**31 - 1, dtype=np.int32)
    assert to_offsets(lengths).tolist() == [0, 2**31 - 1, 2**32 - 2, 3 * (2**31 - 1)]


def test_take_keeps_the_newest_of_each_row():
    rows = ragged([[1, 2, 3], [], [4, 5]])
    taken = rows.take(np.array([2, 0, 0, 1]), last=2)
    assert as_lists(taken) == [[4, 5], [2, 3], [2, 3], []]


@given(rows_of_numbers, st.data())
@settings(max_examples=200, deadline=None)
def test_take_agrees_with_a_loop(rows, data):
    picked = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9) if rows else st.just([]))
    last = data.draw(st.none() | st.integers(0, 7))
    expected = [rows[i] if last is None else rows[i][max(len(rows[i]) - last, 0) :] for i in picked]
    taken = ragged(rows).take(np.array(picked, dtype=np.int32), last)
    assert as_lists(taken) == expected
    assert taken.values.dtype == np.int32
    assert taken.offsets.dtype == np.int64


@given(rows_of_numbers, st.data())
@settings(max_examples=200, deadline=None)
def test_select_agrees_with_a_loop(rows, data):
    keep = [data.draw(st.lists(st.booleans(), min_size=len(r), max_size=len(r))) for r in rows]
    expected = [
        [v for v, kept in zip(row, mask, strict=True) if kept]
        for row, mask in zip(rows, keep, strict=True)
    ]
    flat = np.array([kept for mask in keep for kept in mask], dtype=bool)
    assert as_lists(ragged(rows).select(flat)) == expected


@given(rows_of_numbers)
@settings(max_examples=200, deadline=None)
def test_pad_and_owners_agree_with_a_loop(rows):
    longest = max((len(row) for row in rows), default=0)
    padded = ragged(rows).pad()
    assert padded.shape == (len(rows), longest)
    assert padded.tolist() == [row + [0] * (longest - len(row)) for row in rows]
    assert ragged(rows).owners().tolist() == [i for i, row in enumerate(rows) for _ in row]
    assert ragged(rows).lengths.tolist() == [len(row) for row in rows]
    assert ragged(rows).num_rows == len(rows)


def test_values_may_be_vectors():
    rows = Ragged(np.arange(6.0).reshape(3, 2), np.array([0, 1, 3]))
    assert rows.pad().tolist() == [[[0, 1], [0, 0]], [[2, 3], [4, 5]]]
    assert rows.take(np.array([1]), last=1).values.tolist() == [[4, 5]]
    assert rows.select(np.array([True, False, True])).offsets.tolist() == [0, 1, 2]


def test_no_rows_stay_no_rows():
    nothing = ragged([])
    assert nothing.num_rows == 0
    assert nothing.pad().shape == (0, 0)
    assert nothing.take(np.array([], dtype=int)).num_rows == 0
    assert nothing.owners().tolist() == []


@given(rows_of_numbers, st.data())
@settings(max_examples=200, deadline=None)
def test_places_find_what_lies_beside_the_values(rows, data):
    picked = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9) if rows else st.just([]))
    last = data.draw(st.none() | st.integers(0, 7))
    whole, picked = ragged(rows), np.array(picked, dtype=np.int32)
    beside = np.arange(len(whole.values)) + 100
    places = whole.places(picked, last)
    expected = Ragged(beside, whole.offsets).take(picked, last)
    assert beside[places.values].tolist() == expected.values.tolist()
    assert places.offsets.tolist() == expected.offsets.tolist()


@given(rows_of_numbers, st.integers(0, 8), st.integers(0, 8))
@settings(max_examples=200, deadline=None)
def test_neighbouring_rows_agree_with_a_slice(rows, start, length):
    start = min(start, len(rows))
    whole = ragged(rows)
    part = whole.between(start, start + length)
    assert as_lists(part) == rows[start : start + length]
    assert part.values.base is not None  # a view
