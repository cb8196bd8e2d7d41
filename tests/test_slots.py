"""Vectors with free rows, against a dictionary, and with threads that read and write."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_world import item

from newsrec.serving.slots import FIRST_ROOM, Slots

DIM = 3


def vector(number):
    return np.full(DIM, number, np.float32)


def put(slots, *numbers, deleted=(), at=0):
    news = [(item(n, category=f"c{n % 2}"), f"hash {n}", vector(n + at)) for n in numbers]
    slots.put(news, [f"N{n}" for n in deleted])


def shown(view):
    """The first number of each news item's vector, by id."""
    rows = np.flatnonzero(view.alive)
    return {view.items[row].news_id: float(view.vectors[row, 0]) for row in rows}


SOME = st.lists(st.integers(0, 9), max_size=4)
CHANGES = st.tuples(SOME, SOME, st.integers(0, 5))


@settings(max_examples=200, deadline=None)
@given(st.lists(CHANGES, max_size=8), st.lists(st.booleans(), min_size=8, max_size=8))
def test_slots_hold_what_a_dictionary_holds_and_open_views_do_not_change(changes, looked):
    slots, model, opened = Slots(DIM), {}, []
    for number, (added, deleted, at) in enumerate(changes):
        if looked[number]:
            view = slots.view()
            opened.append((view, view.__enter__(), dict(model)))
        if looked[-number] and opened:
            opened.pop(0)[0].__exit__(None, None, None)
        put(slots, *added, deleted=deleted, at=at)
        for n in deleted:
            model.pop(f"N{n}", None)
        model |= {f"N{n}": float(n + at) for n in added}
        ids = [f"N{n}" for n in range(11)]
        with slots.view(ids, []) as now:
            assert shown(now) == model
            assert now.num_news == len(slots) == len(model)
            (rows, nothing) = now.found
            assert nothing == []
            for news_id, row in zip(ids, rows, strict=True):
                assert (row is None) == (news_id not in model)
                assert row is None or now.items[row].news_id == news_id
                assert (slots.text_hash(news_id) is None) == (news_id not in model)
            mean = np.mean(list(model.values())) if model else 0.0
            np.testing.assert_allclose(now.unknown, np.full(DIM, mean), atol=1e-6)
        for _, view, then in opened:
            assert shown(view) == then
    for context, _, _ in opened:
        context.__exit__(None, None, None)
    put(slots, deleted=range(10))
    assert slots.num_free == FIRST_ROOM


def test_rows_are_used_again_when_no_view_can_see_them():
    slots = Slots(DIM)
    put(slots, *range(FIRST_ROOM))
    for turn in range(5):
        put(slots, deleted=range(FIRST_ROOM))
        put(slots, *range(FIRST_ROOM), at=turn)
    assert slots.num_free == 0
    with slots.view() as view:
        put(slots, 0, at=50)  # the old row is still seen
        assert slots.num_free == FIRST_ROOM  # of twice as many rows
        assert shown(view)["N0"] == 4.0
    put(slots, 1, at=50)  # takes the row that the view left
    assert slots.num_free == FIRST_ROOM
    with slots.view() as view:
        assert len(view.vectors) == FIRST_ROOM + 1
        assert (shown(view)["N0"], shown(view)["N1"]) == (50.0, 51.0)


def test_an_array_that_is_full_doubles_and_adding_one_item_copies_no_vectors():
    slots = Slots(DIM)
    put(slots, *range(FIRST_ROOM))
    with slots.view() as view:
        before = view.vectors.base
        put(slots, FIRST_ROOM)
        with slots.view() as now:
            assert len(now.vectors.base) == 2 * len(before)
            again = now.vectors.base
        assert len(shown(view)) == FIRST_ROOM
    put(slots, *range(FIRST_ROOM + 1, FIRST_ROOM + 500))
    with slots.view() as now:
        assert now.vectors.base is again
        assert shown(now) == {f"N{n}": float(n) for n in range(FIRST_ROOM + 500)}


def test_categories_have_codes_and_none_has_minus_one():
    slots = Slots(DIM)
    news = [(item(n, category=name), "", vector(n)) for n, name in enumerate(["a", "", "b", "a"])]
    slots.put(news)
    with slots.view() as view:
        assert view.category.tolist() == [0, -1, 1, 0]
        assert np.isnan(view.published).all()
    slots.put([(item(0, category="b", published=1), "", vector(0))])
    with slots.view(["N0"]) as view:
        ((row,),) = view.found
        assert (view.category[row], slots.codes) == (1, {"": -1, "a": 0, "b": 1})
        assert view.published[row] == view.items[row].published.timestamp()


def test_a_thread_that_reads_sees_one_moment_while_others_write():
    """All news of a moment have the same vector; no view may mix two moments."""
    slots, stop, wrong = Slots(DIM), threading.Event(), []
    put(slots, *range(50))
    slots.put([(item(n), "", vector(0)) for n in range(50)])

    def read():
        while not stop.is_set():
            with slots.view([f"N{n}" for n in range(50)]) as view:
                rows = view.found[0]
                first = view.vectors[rows].copy()
                total = view.vectors[view.alive].sum()
                if len(np.unique(first)) != 1 or total != first.sum() or view.num_news != 50:
                    wrong.append(first)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for moment in range(300):
        news = [(item(n), "", vector(moment)) for n in range(50)]
        slots.put(news[moment % 50 :] + news[: moment % 50], ["N3", "N7"])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("number", [0, 7])
def test_an_empty_array_has_no_news(number):
    slots = Slots(DIM)
    slots.put([], [f"N{number}"])
    with slots.view([f"N{number}"]) as view:
        assert (len(view.vectors), view.num_news, view.found) == (0, 0, [[None]])
        assert not view.unknown.any()
