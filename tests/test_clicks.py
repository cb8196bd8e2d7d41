"""A log of clicks becomes impressions whose skipped news were drawn, and every report says so."""

import json
import random
import re
from collections import Counter
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_parquet import contents

from newsrec.__main__ import main
from newsrec.data.dataset import open_mind
from newsrec.data.readers import clicks as module
from newsrec.data.splits import choose_splits
from newsrec.errors import UserError

START = datetime(2019, 11, 9)
HOURS = 24


def news_table(num_news):
    ids = [f"N{i}" for i in range(num_news)]
    return pa.table({"news_id": ids, "title": [f"Title {i}" for i in ids]})


def write(root, splits, num_news=40, **sampling):
    """Write rows of user, hours since the start and news for each split."""
    for split, rows in splits.items():
        (root / split).mkdir(parents=True, exist_ok=True)
        pq.write_table(news_table(num_news), root / split / "news.parquet")
        users, hours, news = zip(*rows, strict=True)
        table = pa.table(
            {
                "user_id": [f"U{user}" for user in users],
                "time": [START + timedelta(hours=hour) for hour in hours],
                "news_id": [f"N{n}" for n in news],
            }
        )
        pq.write_table(table, root / split / "clicks.parquet")
    if sampling:
        (root / "sampling.json").write_text(json.dumps(sampling), encoding="utf-8")
    return root


def log(rng, clicks, first_hour, days=3, users=12, num_news=40):
    """Return clicks of which some are at the same moment, some repeat and some are unknown."""
    rows = []
    for _ in range(clicks):
        row = [rng.randrange(users), first_hour + rng.randrange(24 * days), rng.randrange(num_news)]
        rows.append(tuple(row))
        if rng.random() < 0.2:
            rows.append((row[0], row[1], rng.randrange(num_news + 3)))  # over 40: unknown news
        if rng.random() < 0.05:
            rows.append(tuple(row))
    return rows


def splits_of(seed):
    rng = random.Random(seed)
    return {"train": log(rng, 150, 0), "dev": log(rng, 60, 60), "test": log(rng, 30, 120)}


def assert_agrees_with_a_loop(root, splits, monkeypatch, fewest, negatives=5, history=4):
    """Check every impression against what a loop over clicks says of it."""
    monkeypatch.setattr(module, "FEWEST_CLICKS", fewest)
    write(root, splits, negatives=negatives, history=history)
    data = open_mind(root)
    log = []
    for name, rows in splits.items():
        log = log + rows
        known = sorted((c for c in log if c[2] < 40), key=lambda c: c[1])
        found = contents(data, name)
        moments = sorted({(hour, user) for user, hour, _ in rows})
        assert [row[0] for row in found] == list(range(1, len(moments) + 1))
        assert sorted((time, user) for _, user, time, *_ in found) == sorted(
            (START + timedelta(hours=hour), f"U{user}") for hour, user in moments
        )
        assert [row[2] for row in found] == sorted(row[2] for row in found)
        for _, user_id, time, clicked, candidates, labels in found:
            user, hour = int(user_id[1:]), (time - START) / timedelta(hours=1)
            before = sorted((c for c in log if c[0] == user and c[1] < hour), key=lambda c: c[1])
            expected = [f"N{c[2]}" for c in before[-history:] if c[2] < 40]
            if len({c[1] for c in before}) == len(before):  # else their order is that of the files
                assert clicked == expected
            assert Counter(clicked) <= Counter(f"N{c[2]}" for c in before)
            own = {f"N{c[2]}" if c[2] < 40 else "?" for c in rows if c[:2] == (user, hour)}
            drawn = [c for c, label in zip(candidates, labels, strict=True) if not label]
            assert {c for c, label in zip(candidates, labels, strict=True) if label} == own
            end = sum(c[1] < hour for c in known)
            begin = min(sum(c[1] < hour - HOURS for c in known), max(end - fewest, 0))
            pool = {f"N{c[2]}" for c in known[begin : max(end, min(fewest, len(known)))]}
            pool -= {f"N{c[2]}" for c in log if c[0] == user}
            assert set(drawn) <= pool
            assert len(set(drawn)) == len(drawn) <= negatives
            assert len(drawn) == min(negatives, len(pool)) or len(pool) < 4 * negatives
        assert data.split(name).counts["sampled_candidates"] == sum(
            row[5].count(0) for row in found
        )
    return data


@pytest.mark.parametrize("fewest", [1, 20, 1000])
def test_every_impression_is_as_a_loop_over_clicks_says(tmp_path, monkeypatch, fewest):
    assert_agrees_with_a_loop(tmp_path, splits_of(fewest), monkeypatch, fewest)


def test_small_blocks_change_nothing(tmp_path, monkeypatch):
    whole = open_mind(write(tmp_path / "whole", splits_of(0)))
    monkeypatch.setattr(module, "BLOCK", 7)
    parts = open_mind(write(tmp_path / "parts", splits_of(0)))
    for name in ("train", "dev", "test"):
        assert contents(parts, name) == contents(whole, name)


@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_any_log_can_be_read(tmp_path_factory, seed, clicks, negatives):
    rng = random.Random(seed)
    rows = log(rng, clicks, 0, users=rng.randrange(1, 5), num_news=rng.randrange(1, 20))
    root = write(tmp_path_factory.mktemp("log"), {"train": rows}, negatives=negatives)
    found = contents(open_mind(root))
    assert len(found) == len({row[:2] for row in rows})
    assert all(1 in row[5] for row in found)


def test_draws_depend_on_the_seed_alone_and_not_on_later_clicks(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "FEWEST_CLICKS", 20)
    splits = splits_of(1)
    first = open_mind(write(tmp_path / "a", splits))
    again = open_mind(write(tmp_path / "b", splits))
    other = open_mind(write(tmp_path / "c", splits, seed=1))
    later = {**splits, "train": [*splits["train"], (99, 500, 3), (98, 501, 4)]}
    more = open_mind(write(tmp_path / "d", later))
    assert contents(again) == contents(first) != contents(other)
    assert contents(more)[: len(contents(first))] == contents(first)
    fingerprints = [data.split("train").fingerprint for data in (first, again, other)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_dev_and_test_play_no_part_in_train(tmp_path):
    splits = splits_of(2)
    whole = open_mind(write(tmp_path / "a", splits))
    alone = open_mind(write(tmp_path / "b", {"train": splits["train"]}))
    assert contents(alone) == contents(whole)
    assert alone.split("train").fingerprint == whole.split("train").fingerprint


def test_news_is_drawn_as_often_as_it_is_clicked_and_its_place_tells_nothing(tmp_path):
    rng = random.Random(0)
    weights = [2**-i for i in range(6)]
    rows = [(i, i / 100, rng.choices(range(6), weights)[0]) for i in range(3000)]
    found = contents(open_mind(write(tmp_path, {"train": rows}, negatives=1)))
    for clicked in range(2):
        drawn = Counter(
            shown[labels.index(0)]
            for *_, shown, labels in found
            if 0 in labels and shown[labels.index(1)] == f"N{clicked}"
        )
        rest = [w for i, w in enumerate(weights) if i != clicked]
        expected = {f"N{i}": w / sum(rest) for i, w in enumerate(weights) if i != clicked}
        total = drawn.total()
        for news, share in expected.items():
            assert abs(drawn[news] / total - share) < 5 * np.sqrt(share / total)
    places = [labels.index(1) for *_, labels in found if 0 in labels]
    assert abs(np.mean(places) - 0.5) < 0.05


def test_a_bad_row_stops_or_is_left_out(tmp_path):
    splits = splits_of(3)
    root = write(tmp_path, splits)
    path = root / "dev" / "clicks.parquet"
    table = pq.read_table(path)
    times = [None if i == 7 else t for i, t in enumerate(table["time"].to_pylist())]
    pq.write_table(table.set_column(1, "time", pa.array(times)), path)
    with pytest.raises(
        UserError, match=r"clicks\.parquet, row 7, column time: not a time such as .*: 'None'"
    ):
        open_mind(root)
    data = open_mind(root, "drop")
    assert data.split("dev").counts["dropped_lines"] == 1
    assert data.split("test").counts["dropped_lines"] == 0
    del splits["dev"][7]
    expected = open_mind(write(tmp_path / "expected", splits))
    for name in splits:
        assert contents(data, name) == contents(expected, name)


@pytest.mark.parametrize("column", ["user_id", "news_id", "time"])
def test_a_log_without_a_column_is_named(tmp_path, column):
    root = write(tmp_path, splits_of(3))
    path = root / "train" / "clicks.parquet"
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(UserError, match=rf"clicks\.parquet has no column {column}"):
        open_mind(root)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON such as"),
        ("[1]", "is not JSON such as"),
        ('{"negative": 4}', "sets 'negative'. Choose from negatives, hours, history, seed"),
        ('{"negatives": 0}', "negatives is 0; it must be a whole number from 1 to 1,000"),
        ('{"hours": "a"}', "hours is 'a'; it must be a whole number"),
        ('{"seed": true}', "seed is True; it must be a whole number from 0"),
        ('{"history": 1e3}', "history is 1000.0; it must be a whole number"),
    ],
)
def test_a_wrong_sampling_is_named(tmp_path, text, said):
    root = write(tmp_path, splits_of(3))
    (root / "sampling.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(said)):
        open_mind(root)


def test_clicks_and_impressions_are_not_mixed_up(tmp_path):
    root = write(tmp_path, splits_of(3))
    impressions = {"user_id": ["U1"], "time": [START], "history": [["N1"]], "candidates": [["N2"]]}
    path = root / "train" / "impressions.parquet"
    pq.write_table(pa.table(impressions), path)
    with pytest.raises(UserError, match=r"has impressions\.parquet and clicks\.parquet. Keep"):
        open_mind(root)
    (root / "train" / "clicks.parquet").unlink()
    with pytest.raises(UserError, match=r"dev/clicks\.parquet: histories are made from the clicks"):
        open_mind(root)
    write(root, {"train": splits_of(3)["train"]})
    path.rename(root / "test" / "impressions.parquet")
    (root / "test" / "clicks.parquet").unlink()
    data = open_mind(root)  # what users were shown in test, after training on clicks
    assert data.split("test").labels is None
    assert "sampled_candidates" not in data.split("test").counts


def test_splits_made_of_these_still_say_what_was_drawn(tmp_path):
    data = open_mind(write(tmp_path, splits_of(4)))
    parts = choose_splits(data, val="last_day")
    for name in ("train", "last_day"):
        counts = parts.split(name).counts
        assert counts["sampled_candidates"] == int((parts.split(name).labels == 0).sum()) > 0
    joined = choose_splits(data, train="train+dev", val="none").split("train+dev")
    assert joined.counts["sampled_candidates"] == sum(
        data.split(name).counts["sampled_candidates"] for name in ("train", "dev")
    )


def test_every_report_says_that_news_were_drawn(tmp_path, capsys):
    root = write(tmp_path / "data", splits_of(5))
    number = open_mind(root).split("dev").counts["sampled_candidates"]
    said = f"The {number:,} skipped news of dev were drawn from what others clicked shortly before"
    main(["prepare", "--data.root", str(root)])
    assert said in " ".join(capsys.readouterr().out.split())
    outputs = [tmp_path / name for name in ("popularity", "recent")]
    for output in outputs:
        options = ["--scorer", output.name, "--data.root", str(root), "--split", "dev"]
        main(["evaluate", *options, "--output", str(output), "--baselines", "false"])
        assert said in " ".join(capsys.readouterr().out.split())
        metrics = json.loads((output / "metrics.json").read_text())
        assert metrics["sampled_candidates"] == number
        assert said in " ".join((output / "report.html").read_text().split())
    main(["compare", *map(str, outputs)])
    assert said in " ".join(capsys.readouterr().out.split())
    submission = outputs[0] / "prediction.zip"
    main(["check-submission", str(submission), "--data.root", str(root), "--split", "dev"])
    assert said in " ".join(capsys.readouterr().out.split())


def test_prepare_says_what_repeated_clicks_do_to_drawn_news(tmp_path, capsys):
    rng = np.random.default_rng(0)
    users, news, hours = rng.integers(0, 3, 90), rng.integers(0, 20, 90), np.arange(90)
    clicks = pd.DataFrame({"user_id": users, "time": 1_573_000_000 + hours * 3600, "news_id": news})
    folder = tmp_path / "train"
    folder.mkdir()
    pd.DataFrame({"news_id": range(40), "title": "a title"}).to_parquet(folder / "news.parquet")
    for log, warned in ((clicks, True), (clicks.drop_duplicates(["user_id", "news_id"]), False)):
        log.to_parquet(folder / "clicks.parquet")
        main(["prepare", f"--data.root={tmp_path}"])
        said = " ".join(capsys.readouterr().out.split())
        assert ("Keep each user's first click on a news item" in said) == warned
        assert "made after the impression" not in said
