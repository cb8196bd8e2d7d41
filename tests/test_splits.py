import numpy as np
import pytest
from conftest import news_row, write_mind
from hypothesis import given, settings
from hypothesis import strategies as st
from test_compile import contents

from newsrec.data.dataset import open_mind
from newsrec.data.splits import choose_splits, labelled_splits
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
