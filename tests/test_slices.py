import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import NewsData, Split, open_mind
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.evaluation import slices as module
from newsrec.evaluation.ages import NEVER, first_shown
from newsrec.evaluation.intervals import mean_interval
from newsrec.evaluation.slices import (
    SLICES,
    Slice,
    first_clicked,
    slice_impressions,
    summarize_slices,
)
from newsrec.metrics import METRICS, ImpressionMetrics

HOUR = 3600


def groups_of(sliced):
    """Return the group of each impression by name, None where it has none."""
    return [None if code < 0 else sliced.groups[code] for code in sliced.code]


def bin_of(value, names_and_least):
    return [name for name, least in names_and_least if value >= least][-1]


def by_hand(data, name):
    """Return the group of each impression in each slice, one impression after the other."""
    part, train = data.splits[name], data.splits["train"]
    known, train_users = set(), set(train.user.tolist())
    for row in range(len(train.history)):
        known |= set(train.candidates.values[slice(*train.candidates.offsets[row : row + 2])])
        history = slice(*train.histories.offsets[train.history[row] :][:2])
        known |= set(train.histories.values[history])
    known -= {0, 1}
    first = {}
    for split in data.splits.values():
        for row, time in enumerate(split.time):
            for item in split.candidates.values[slice(*split.candidates.offsets[row : row + 2])]:
                first[item] = min(first.get(item, time), time)
    categories = data.news["category"].to_pylist()

    rows = []
    for row in range(len(part.history)):
        shown = slice(*part.candidates.offsets[row : row + 2])
        news = part.candidates.values[shown].tolist()
        history = part.histories.values[slice(*part.histories.offsets[part.history[row] :][:2])]
        clicks = (
            []
            if part.labels is None
            else [s for s, label in zip(news, part.labels[shown], strict=True) if label]
        )
        click = clicks[0] if clicks else None
        new = sum(item not in known for item in news)
        group = {
            "history_length": bin_of(
                len(history), [("0", 0), ("1-5", 1), ("6-20", 6), ("21-50", 21), ("> 50", 51)]
            ),
            "candidates": bin_of(
                len(news),
                [("1", 0), ("2-10", 2), ("11-25", 11), ("26-50", 26), ("51-100", 51),
                 ("> 100", 101)],
            ),
            "day": str(part.time[row].astype("datetime64[D]")),
            "user": "in train" if part.user[row] in train_users else "new",
            "shown_new": "none new"
            if not new
            else "all new"
            if new == len(news)
            else "some new",
            "history_new": None
            if not len(history)
            else "some new"
            if any(item not in known for item in history)
            else "none new",
        }  # fmt: skip
        if part.labels is not None:
            real = click is not None and click >= FIRST_NEWS
            age = (part.time[row] - first[click]).astype(int) if real else None
            group |= {
                "clicked_new": None
                if click is None
                else "in train"
                if click in known
                else "new",
                "category": categories[click - FIRST_NEWS] or "(none)" if real else None,
                "news_age": bin_of(
                    age,
                    [("< 1 h", 0), ("1-6 h", HOUR), ("6-24 h", 6 * HOUR), ("> 24 h", 24 * HOUR)],
                )
                if real
                else None,
            }  # fmt: skip
        rows.append(group)
    return rows


def random_world(seed, num_users=6, num_news=30, with_labels=True):
    """Train and dev of random numbers, no files: long histories, unknown news items, days of times."""
    rng = np.random.default_rng(seed)
    histories = [
        rng.integers(FIRST_NEWS, num_news, n)
        for n in [0, *rng.choice([1, 5, 6, 20, 21, 50, 51], 7)]
    ]
    ragged = Ragged(
        np.concatenate(histories).astype(np.int32),
        to_offsets(np.array([len(h) for h in histories])),
    )
    splits, begin = {}, 0
    sizes = {"train": int(rng.integers(1, 12)), "dev": int(rng.integers(1, 20))}
    total = sum(sizes.values())
    lengths = rng.choice([1, 2, 10, 11, 25, 26, 50, 51, 100, 101], total)
    offsets = to_offsets(lengths)
    values = rng.integers(1, num_news, offsets[-1]).astype(np.int32)
    # Train knows few news items and users, so that others are new in dev.
    cut = offsets[sizes["train"]]
    values[:cut] = np.minimum(values[:cut], num_news // 2)
    labels = (rng.random(offsets[-1]) < 0.1).astype(np.int8)
    time = rng.integers(0, 3 * 24 * HOUR, total).astype("datetime64[s]")
    arrays = {"candidate_values": values, "candidate_offsets": offsets, "time": time}
    for name, size in sizes.items():
        rows = slice(begin, begin + size)
        shown = slice(offsets[begin], offsets[begin + size])
        splits[name] = Split(
            name=name,
            impression_id=np.arange(begin, begin + size),
            user=rng.integers(0, num_users // (2 if name == "train" else 1), size),
            time=time[rows],
            history=rng.integers(0, len(histories), size),
            histories=ragged,
            candidates=Ragged(values[shown], offsets[begin : begin + size + 1] - offsets[begin]),
            labels=labels[shown] if with_labels or name == "train" else None,
            counts={},
            fingerprint="",
            num_news=0,
        )
        begin += size
    categories = rng.choice(["news", "sports", "", "tv"], num_news - FIRST_NEWS).tolist()
    news = pa.table({"category": pa.array(categories, pa.string())})
    users = pa.array([f"U{i}" for i in range(num_users)])
    return NewsData(None, None, news, users, splits, {}, [], arrays)


def check(data, split):
    expected = by_hand(data, split)
    found = slice_impressions(data, split)
    assert [name for name in SLICES if name in expected[0]] == list(found)
    for name, sliced in found.items():
        assert sliced.code.dtype == np.int8
        assert groups_of(sliced) == [row[name] for row in expected], name
        assert len(set(sliced.groups)) == len(sliced.groups)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_groups_are_those_of_a_loop_over_the_impressions(mind_dir, split):
    check(open_mind(mind_dir), split)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), with_labels=st.booleans())
def test_groups_are_those_of_a_loop_on_random_data(seed, with_labels):
    data = random_world(seed, with_labels=with_labels)
    check(data, "dev")
    check(data, "train")


def test_a_split_without_labels_says_nothing_of_clicks(mind_dir):
    found = slice_impressions(open_mind(mind_dir), "test")
    assert not {"clicked_new", "category", "news_age"} & set(found)


def test_a_folder_without_train_says_nothing_of_what_is_new(mind_dir):
    import shutil

    shutil.rmtree(mind_dir / "train")
    found = slice_impressions(open_mind(mind_dir), "dev")
    assert set(found) == {"history_length", "candidates", "day", "category", "news_age"}


def test_the_rarest_categories_are_one_group(monkeypatch):
    monkeypatch.setattr(module, "MAX_CATEGORIES", 2)
    data = random_world(0)
    part = data.splits["dev"]
    clicked = first_clicked(part)
    names = data.news["category"].to_pylist()
    found = slice_impressions(data, "dev")["category"]
    assert found.groups[2:] == ("(others)",)
    for group, item in zip(groups_of(found), clicked, strict=True):
        if item >= FIRST_NEWS:
            name = names[item - FIRST_NEWS] or "(none)"
            assert group == (name if name in found.groups[:2] else "(others)")


def test_a_year_is_grouped_by_month():
    times = np.datetime64("2019-01-15T12:00:00") + np.arange(0, 365 * 24 * HOUR, 24 * HOUR)
    found = module._days(times)
    assert found.groups[0] == "2019-01"
    assert len(found.groups) == 13
    assert groups_of(found) == [str(t)[:7] for t in times]


def test_a_news_item_is_first_shown_in_whatever_split_comes_first(mind_dir):
    data = open_mind(mind_dir)
    first = first_shown(data)
    expected = {}
    for split in data.splits.values():
        for (begin, end), time in zip(
            itertools.pairwise(split.candidates.offsets), split.time, strict=True
        ):
            for item in split.candidates.values[begin:end]:
                expected[item] = min(expected.get(item, NEVER), time.astype(int))
    for item in range(data.num_news):
        known = item >= FIRST_NEWS and item in expected
        assert first[item] == (expected[item] if known else NEVER)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_group_has_the_mean_and_the_interval_of_its_impressions(seed):
    rng = np.random.default_rng(seed)
    number = int(rng.integers(1, 40))
    valid = rng.random(number) < 0.7
    values = np.where(valid, rng.random((4, number)), np.nan)
    metrics = ImpressionMetrics(values, valid, np.zeros(number, dtype=bool))
    users = rng.integers(0, 5, number)
    code = rng.integers(-1, 3, number).astype(np.int8)
    found = summarize_slices({"s": Slice(("a", "b", "c"), code)}, metrics, users)["s"]
    for i, group in enumerate("abc"):
        inside = code == i
        if not inside.any():
            assert group not in found
            continue
        assert found[group]["impressions"] == inside.sum()
        chosen = inside & valid
        assert found[group]["evaluated"] == chosen.sum()
        assert found[group]["users"] == len(set(users[chosen]))
        if not chosen.any():
            assert "auc" not in found[group]
            continue
        for name, row in zip(METRICS, values, strict=True):
            assert found[group][name] == pytest.approx(row[chosen].mean())
        interval = mean_interval(values[0, chosen], users[chosen])
        assert found[group]["intervals"]["auc"] == interval.tolist()


def test_users_in_bundles_give_the_interval_of_users_one_by_one(monkeypatch):
    rng = np.random.default_rng(0)
    users = rng.integers(0, 9000, 20_000)
    values = rng.normal(size=9000)[users] * 0.2 + rng.normal(size=len(users)) * 0.2
    metrics = ImpressionMetrics(
        np.tile(values, (4, 1)), np.ones(len(users), bool), np.zeros(len(users), bool)
    )
    sliced = {"s": Slice(("all",), np.zeros(len(users), np.int8))}
    bundled = summarize_slices(sliced, metrics, users)["s"]["all"]["intervals"]["auc"]
    monkeypatch.setattr(module, "CLUSTERS", 10_000)
    single = summarize_slices(sliced, metrics, users)["s"]["all"]["intervals"]["auc"]
    assert bundled != single
    width = single[1] - single[0]
    np.testing.assert_allclose(bundled, single, atol=0.1 * width)


def test_a_slice_divides_the_counts(mind_dir):
    data = open_mind(mind_dir)
    part = data.split("dev")
    rng = np.random.default_rng(0)
    from newsrec.metrics import impression_metrics

    metrics = impression_metrics(rng.random(len(part.labels)), part.labels, part.candidates.offsets)
    found = summarize_slices(slice_impressions(data, "dev"), metrics, part.user)
    for name in ("history_length", "user", "shown_new", "candidates", "day"):
        assert sum(g["impressions"] for g in found[name].values()) == len(part.history)
        assert sum(g["evaluated"] for g in found[name].values()) == metrics.valid.sum()
