import numpy as np
import pytest
from conftest import news_row, write_mind
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compile import contents
from test_slices import random_world

from newsrec.data import splits
from newsrec.data.dataset import open_mind
from newsrec.data.splits import (
    choose_splits,
    cut_to_unseen,
    judged_news,
    labelled_splits,
    seen_news,
)
from newsrec.errors import UserError

NEWS = [news_row("N1", *"abcd"), news_row("N2", *"efgh")]


def rows(days, labels=True, start=1):
    """Return one impression for each day, in the order given."""
    shown = "N1-0 N2-1 N404-0" if labels else "N1 N2"
    return [
        [str(start + i), f"U{i % 2}", f"11/{day}/2019 9:05:58 AM", "N1" if i % 2 else "", shown]
        for i, day in enumerate(days)
    ]


DAYS = {"train": [14, 9, 12, 14, 10, 13, 11], "dev": [15, 15], "test": [16, 18]}


@pytest.fixture
def data(tmp_path):
    behaviors = {name: rows(days, name != "test") for name, days in DAYS.items()}
    return open_mind(write_mind(tmp_path, dict.fromkeys(DAYS, NEWS), behaviors))


def days_of(split):
    return [int(str(time)[8:10]) for time in split.time]


def test_the_last_day_of_train_is_kept_from_training(data):
    chosen = choose_splits(data, val="last_day")
    assert days_of(chosen.split("train")) == [9, 12, 10, 13, 11]
    assert days_of(chosen.split("last_day")) == [14, 14]
    assert chosen.split("train").window == "2019-11-09 to 2019-11-13"
    assert chosen.split("last_day").window == "2019-11-14"
    whole = contents(data)
    assert contents(chosen, "last_day") == [whole[0], whole[3]]
    assert contents(chosen) == [whole[i] for i in (1, 2, 4, 5, 6)]
    assert contents(data) == whole
    assert chosen.split("dev").fingerprint == data.split("dev").fingerprint
    prints = [chosen.split(n).fingerprint for n in ("train", "last_day")]
    assert len({*prints, data.split("train").fingerprint}) == 3


def test_rows_in_the_order_of_time_are_not_copied(tmp_path):
    days = {"train": [9, 9, 10, 12, 14, 14], "dev": [15, 15]}
    behaviors = {name: rows(some) for name, some in days.items()}
    data = open_mind(write_mind(tmp_path, dict.fromkeys(days, NEWS), behaviors))
    chosen, whole = choose_splits(data, val="last_day"), contents(data)
    assert (contents(chosen), contents(chosen, "last_day")) == (whole[:4], whole[4:])
    for split in (*data.splits.values(), *chosen.splits.values()):
        assert np.shares_memory(split.candidates.values, data.arrays["candidate_values"])
        assert np.shares_memory(split.labels, data.arrays["labels"])
        assert np.shares_memory(split.time, data.arrays["time"])
    for opened in (data, chosen):  # offsets from 0 are not copied either
        train = opened.split("train").candidates
        assert np.shares_memory(train.offsets, data.arrays["candidate_offsets"])


@pytest.mark.parametrize(
    ("val", "stale", "kept"),
    [
        ("dev", 0, [14, 9, 12, 14, 10, 13, 11]),
        ("dev", 1, [14, 9, 12, 14, 10, 13, 11]),
        ("dev", 2, [9, 12, 10, 13, 11]),
        ("dev", 4, [9, 10, 11]),
        ("last_day", 0, [9, 12, 10, 13, 11]),
        ("last_day", 1, [9, 12, 10, 13, 11]),
        ("last_day", 3, [9, 10, 11]),
    ],
)
def test_training_ends_some_days_before_the_day_judged(data, val, stale, kept):
    chosen = choose_splits(data, val=val, stale=stale)
    assert days_of(chosen.split("train")) == kept
    assert days_of(chosen.split(val)) == ([15, 15] if val == "dev" else [14, 14])


@pytest.mark.parametrize(
    ("days", "stale", "train", "val"),
    [
        (2, 0, [9, 12, 10, 11], [14, 14, 13]),
        (2, 3, [9, 10], [14, 14, 13]),
        (5, 1, [9], [14, 12, 14, 10, 13, 11]),
    ],
)
def test_the_last_days_may_be_several(data, days, stale, train, val):
    chosen = choose_splits(data, val="last_day", stale=stale, days=days)
    assert days_of(chosen.split("train")) == train
    assert days_of(chosen.split("last_day")) == val
    one = choose_splits(data, val="last_day", stale=stale)
    assert one.split("last_day").fingerprint != chosen.split("last_day").fingerprint


def test_days_without_impressions_count(tmp_path):
    data = open_mind(write_mind(tmp_path, {"train": NEWS}, {"train": rows([9, 13, 14])}))
    chosen = choose_splits(data, val="last_day", days=3)
    assert days_of(chosen.split("train")) == [9]
    with pytest.raises(UserError, match=r"data.val_days 6: train has .* 2019-11-09 to 2019-11-14"):
        choose_splits(data, val="last_day", days=6)


def seen_by_loop(split):
    seen = set()
    for row in range(len(split.history)):
        seen |= set(split.candidates.values[slice(*split.candidates.offsets[row:][:2])].tolist())
        history = slice(*split.histories.offsets[split.history[row] :][:2])
        seen |= set(split.histories.values[history].tolist())
    return seen - {0, 1}


def cut_by_loop(split, seen):
    """Return row, place, candidate and label of what is left of each impression."""
    found = []
    for row in range(len(split.history)):
        places = range(*split.candidates.offsets[row:][:2].tolist())
        left = [
            (row, place, int(split.candidates.values[place]), int(split.labels[place]))
            for place in places
            if split.candidates.values[place] > 1 and split.candidates.values[place] not in seen
        ]
        if len({label for *_, label in left}) == 2:
            found += left
    return found


def test_what_train_has_seen_is_read_in_blocks(monkeypatch):
    data = random_world(1)
    train = data.split("train")
    monkeypatch.setattr(splits, "BLOCK", 3)
    assert set(np.flatnonzero(seen_news(train, data.num_news))) == seen_by_loop(train)


@given(st.integers(0, 2**32))
@settings(max_examples=200, deadline=None)
def test_what_is_left_of_unseen_news_is_that_of_a_loop(seed):
    data = random_world(seed)
    train, part = data.split("train"), data.split("dev")
    seen = seen_news(train, data.num_news)
    assert set(np.flatnonzero(seen)) == seen_by_loop(train)
    # Histories of that world hold most news: candidates alone leave more to look at.
    for known in (seen, np.isin(np.arange(data.num_news), train.candidates.values)):
        found = cut_to_unseen(part, known)
        expected = cut_by_loop(part, set(np.flatnonzero(known)))
        cut, rows = found.split, sorted({row for row, *_ in expected})
        assert found.places.tolist() == [place for _, place, *_ in expected]
        assert cut.candidates.values.tolist() == [news for *_, news, _ in expected]
        assert cut.labels.tolist() == [label for *_, label in expected]
        assert cut.impression_id.tolist() == part.impression_id[rows].tolist()
        assert cut.history.tolist() == part.history[rows].tolist()
        sizes = [sum(row == each for each, *_ in expected) for row in rows]
        assert cut.candidates.lengths.tolist() == sizes
        assert sum(found.left_out.values()) == len(part.history) - len(rows)
        assert (cut.name, cut.fingerprint) == (part.name, part.fingerprint)
        assert cut.counts["candidates"] == len(expected)


def test_of_seen_news_nothing_is_left():
    data = random_world(0)
    found = cut_to_unseen(data.split("train"), seen_news(data.split("train"), data.num_news))
    assert len(found.split.history) == len(found.places) == found.split.counts["clicks"] == 0
    with pytest.raises(UserError, match=r"data.val_news new leaves nothing of train"):
        judged_news(data, "train", "new")


def test_which_candidates_are_judged_does_not_depend_on_labels():
    """Were impressions chosen by an unseen click, to rank new news above old would look good."""
    part = random_world(3).split("dev")
    seen = np.arange(30) < 15
    kept = cut_to_unseen(part, seen)
    other = part._replace(labels=1 - part.labels)
    assert cut_to_unseen(other, seen).places.tolist() == kept.places.tolist()
    assert len(kept.places)


def test_all_news_judge_unless_asked_otherwise(data):
    chosen = choose_splits(data)
    assert judged_news(chosen, "dev", "all") is None
    assert judged_news(chosen, "none", "all") is None
    with pytest.raises(UserError, match=r"data.val_news new says .* data.val is none"):
        judged_news(chosen, "none", "new")
    with pytest.raises(UserError, match=r"no impression has both .* that train has not seen"):
        judged_news(chosen, "dev", "new")


def test_train_and_dev_together_are_their_rows_in_order_and_not_copied(data):
    chosen = choose_splits(data, "train+dev", "none")
    joined = chosen.split("train+dev")
    assert contents(chosen, "train+dev") == contents(data) + contents(data, "dev")
    assert chosen.train == "train+dev"
    assert np.shares_memory(joined.candidates.values, data.split("dev").candidates.values)
    assert joined.counts["impressions"] == 9
    assert joined.counts["clicks"] == 9
    assert joined.counts["unknown_candidates"] == 9
    assert days_of(choose_splits(data, "train+dev", "last_day").split("last_day")) == [15, 15]


def test_splits_that_are_counted_together_share_no_impression(data):
    def names(*options):
        return [split.name for split in labelled_splits(choose_splits(data, *options))]

    assert names("train", "dev") == ["train", "dev"]
    assert names("train", "last_day") == ["train", "dev", "last_day"]
    assert names("train+dev", "none") == ["train+dev"]
    assert names("train+dev", "last_day") == ["last_day", "train+dev"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("train", "train"), "data.val is train, which data.train train trains on"),
        (("train+dev", "dev"), "data.val is dev, which data.train train[+]dev trains on"),
        (("dev", "last_day"), "dev has impressions of 2019-11-15 alone"),
        (("train", "dev", 7), "data.stale 7 leaves nothing of train .* 2019-11-09 to 2019-11-14"),
        (("train", "dev", -1), "data.stale is -1"),
        (("train", "none", 1), "data.stale 1 counts from .* none"),
        (("train", "dev", 0, 2), "data.val_days 2 are those of data.val last_day; .* is dev"),
        (("train", "none", 0, 3), "data.val_days 3 are those of data.val last_day; .* is none"),
        (("train", "last_day", 0, 0), "data.val_days is 0"),
        (("train", "last_day", 0, 6), "data.val_days 6: train has impressions of 2019-11-09 to"),
        (("train", "week"), "has no split 'week'"),
        (("train+week", "none"), "has no split 'week'"),
        (("dev+train", "none"), "join splits in their order: train[+]dev"),
        (("train+test", "none"), "test has no labels to train on"),
        (("dev+test", "none"), "test has no labels to train on"),
    ],
)
def test_what_cannot_be_is_named(data, options, message):
    with pytest.raises(UserError, match=message):
        choose_splits(data, *options)


@pytest.mark.slow
@given(st.lists(st.integers(9, 14), min_size=2, max_size=12), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_no_impression_is_lost_or_in_two_splits(tmp_path_factory, days, stale):
    root = tmp_path_factory.mktemp("mind")
    write_mind(root, {"train": NEWS}, {"train": rows(days)})
    data = open_mind(root)
    kept = [day for day in days if day < max(days) and day <= max(days) - stale]
    if not kept:
        with pytest.raises(UserError, match="nothing"):
            choose_splits(data, val="last_day", stale=stale)
        return
    chosen = choose_splits(data, val="last_day", stale=stale)
    everything = contents(data)
    assert contents(chosen) == [row for row in everything if row[2].day in kept]
    assert contents(chosen, "last_day") == [row for row in everything if row[2].day == max(days)]
