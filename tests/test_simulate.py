import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from newsrec.data.mind import open_mind
from newsrec.data.ragged import to_offsets
from newsrec.data.simulate import PRESETS, add_arguments, run, simulate
from newsrec.data.vocabulary import STYLES, TOPICS
from newsrec.errors import UserError
from newsrec.evaluation.baselines import score_baseline
from newsrec.metrics import mind_metrics

DEMO = Path(__file__).parents[1] / "data" / "demo"
FILES = sorted(f"{s}/{n}.tsv" for s in ("train", "dev", "test") for n in ("news", "behaviors"))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A demo world with seed 0."""
    root = tmp_path_factory.mktemp("simulate") / "world"
    simulate(root, "demo", seed=0)
    return root


@pytest.fixture(scope="module")
def data(world):
    return open_mind(world)


def contents(root):
    paths = [p for p in root.rglob("*") if p.is_file() and ".newsrec" not in p.parts]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in paths}


def rows(path):
    return [line.split("\t") for line in path.read_text().splitlines()]


def auc(scores, split):
    return mind_metrics(scores, split.labels, split.candidates.offsets)["auc"]


def test_same_seed_gives_the_same_bytes_and_another_seed_others(world, tmp_path):
    simulate(tmp_path / "again", seed=0)
    simulate(tmp_path / "other", seed=1)
    assert contents(tmp_path / "again") == contents(world)
    other = contents(tmp_path / "other")
    assert all(other[name] != contents(world)[name] for name in FILES)


def test_the_committed_demo_is_what_simulate_writes_with_its_seed(world):
    demo, fresh = contents(DEMO), contents(world)
    assert json.loads(demo["world.json"])["seed"] == 0
    for name in (*FILES, "world.json"):
        assert demo[name] == fresh[name], name


def test_the_demo_is_small_enough_to_commit(world):
    assert sorted(contents(world)) == sorted([*FILES, "world.json"])
    assert sum(map(len, contents(world).values())) < 3_000_000


def test_sizes_and_lengths_are_half_of_minds(data):
    splits = data.splits
    assert [len(s.impression_id) for s in splits.values()] == [2000, 500, 500]
    assert 900 < len(data.news) < 1100
    train = splits["train"]
    histories = train.histories.lengths[train.history]
    assert 12 < histories.mean() < 20
    assert 7 <= np.median(histories) <= 11
    candidates = train.candidates.lengths
    assert 16 < candidates.mean() < 21
    assert candidates.min() == 2
    assert 10 <= np.median(candidates) <= 14
    assert 40 < np.quantile(candidates, 0.9) < 52


def test_train_dev_and_test_are_minds_days(data):
    for name, first, last in (("train", 9, 14), ("dev", 15, 15), ("test", 16, 22)):
        days = np.unique(data.split(name).time.astype("datetime64[D]"))
        assert days[0] == np.datetime64(f"2019-11-{first:02}")
        assert days[-1] == np.datetime64(f"2019-11-{last:02}")


def test_times_and_ids_are_written_as_in_mind(world):
    for split in ("train", "dev", "test"):
        behaviors = rows(world / split / "behaviors.tsv")
        assert [row[0] for row in behaviors] == [str(i + 1) for i in range(len(behaviors))]
        for _, user, time, history, candidates in behaviors:
            assert re.fullmatch(r"U[1-9]\d*", user)
            assert re.fullmatch(r"11/[1-9]\d?/2019 (1[0-2]|[1-9]):\d\d:\d\d [AP]M", time)
            assert re.fullmatch(r"(N\d+( N\d+)*)?", history)
            assert re.fullmatch(r"N\d+(-[01])?( N\d+(-[01])?)+", candidates)


def test_an_impression_shows_no_story_twice(data):
    for split in data.splits.values():
        known = split.candidates.values > 1
        pairs = np.stack([split.candidates.owners(), split.candidates.values], axis=1)[known]
        assert len(np.unique(pairs, axis=0)) == len(pairs)


def test_every_impression_has_a_click_and_a_skip_and_clicks_are_as_many_as_in_mind(data):
    for name in ("train", "dev"):
        split = data.split(name)
        clicks = np.add.reduceat(split.labels, split.candidates.offsets[:-1], dtype=np.int64)
        assert clicks.min() == 1
        assert (clicks < split.candidates.lengths).all()
        assert 1.4 < clicks.mean() < 1.6


def test_the_test_split_has_no_labels(world, data):
    assert data.split("test").labels is None
    assert not any("-" in row[4] for row in rows(world / "test" / "behaviors.tsv"))


def test_a_user_has_one_history_in_a_split(world):
    for split in ("train", "dev", "test"):
        pairs = {(row[1], row[3]) for row in rows(world / split / "behaviors.tsv")}
        assert len(pairs) == len({user for user, _ in pairs})


def test_histories_are_oldest_first_and_grow_by_what_was_clicked(world):
    train = rows(world / "train" / "behaviors.tsv")
    before = {row[1]: row[3] for row in train}
    clicked = {}
    for _, user, _, _, candidates in train:
        clicked.setdefault(user, set()).update(re.findall(r"(N\d+)-1", candidates))
    after = {row[1]: row[3] for row in rows(world / "dev" / "behaviors.tsv") if row[1] in before}
    assert len(after) == 41  # 12 % of dev's 340 users
    for user, history in after.items():
        assert history.startswith(before[user])
        assert set(history[len(before[user]) :].split()) == clicked[user]


def test_most_users_and_most_shown_stories_of_dev_and_test_are_new(world):
    def shown(split):
        behaviors = rows(world / split / "behaviors.tsv")
        words = " ".join(row[4] for row in behaviors).split()
        return {row[1] for row in behaviors}, {word.split("-")[0] for word in words}

    old_users, old_stories = shown("train")
    for split, least in (("dev", 0.4), ("test", 0.8)):
        users, stories = shown(split)
        assert 0.8 < len(users - old_users) / len(users) < 1
        assert least < len(stories - old_stories) / len(stories) < 1


def test_the_awkward_rows_of_mind_exist(world, data):
    counts = [split.counts for split in data.splits.values()]
    assert 0.01 < counts[0]["empty_histories"] / 2000 < 0.05
    assert all(0 < c["unknown_history_news"] / c["history_news"] < 0.02 for c in counts)
    assert all(0 < c["unknown_candidates"] / c["candidates"] < 0.01 for c in counts)
    titles = data.news["title"].to_pylist()
    assert 0.03 < data.news["abstract"].to_pylist().count("") / len(titles) < 0.07
    assert 3 <= sum(title.startswith('"') for title in titles) <= 30
    assert 0 < len(titles) - len(set(titles)) < 0.05 * len(titles)
    for split in ("train", "dev", "test"):
        assert all(len(row) == 8 for row in rows(world / split / "news.tsv"))


def test_titles_read_like_headlines(data):
    titles = data.news["title"].to_pylist()
    words = [len(title.split()) for title in titles]
    assert 8 < np.mean(words) < 12
    assert max(words) <= 20
    assert all(re.fullmatch(r'"?[A-Z0-9][^{}\t/]*', title) for title in titles)


def test_every_topic_and_style_is_complete():
    for topic in TOPICS:
        assert all(len(set(text.split(" / "))) >= 4 for text in topic[2:]), topic.subcategory
    assert len({(t.category, t.subcategory) for t in TOPICS}) == len(TOPICS)
    assert min(s.appeal for s in STYLES) < -0.5 < 0.5 < max(s.appeal for s in STYLES)


@pytest.mark.parametrize("committed", [False, True])
def test_similarity_is_far_below_the_ceiling(world, committed):
    root = DEMO if committed else world
    data = open_mind(root)
    dev = data.split("dev")
    reached = json.loads((root / "world.json").read_text())["ceiling"]
    assert 0.75 < reached["dev"]["auc"] < 0.82
    assert 0.75 < reached["test"]["auc"] < 0.82
    assert list(reached["dev"]) == ["auc", "mrr", "ndcg@5", "ndcg@10"]
    for name, least, most in (
        ("category", 0.58, 0.66),
        ("tfidf", 0.58, 0.66),
        ("recent", 0.5, 0.66),
        ("popularity", 0.48, 0.60),
    ):
        assert least < auc(score_baseline(name, data, "dev"), dev) < most, name


def test_reading_titles_beats_the_best_baseline_on_dev(data):
    # Which words draw clicks, and how much the similarities count: all that a line can learn.
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2)
    vectors = words.fit_transform(["", "", *data.news["title"].to_pylist()])

    def features(split):
        similar = [score_baseline(name, data, split) for name in ("category", "tfidf")]
        of_candidates = vectors[np.asarray(data.split(split).candidates.values)]
        return sparse.hstack([of_candidates, np.stack(similar, axis=1)]).tocsr()

    line = LogisticRegression(C=0.3, max_iter=300)
    line.fit(features("train"), np.asarray(data.split("train").labels))
    dev = data.split("dev")
    best = max(
        auc(score_baseline(name, data, "dev"), dev)
        for name in ("category", "tfidf", "recent", "popularity")
    )
    assert auc(line.decision_function(features("dev")), dev) > best + 0.05


def test_candidates_are_shuffled_so_that_a_constant_scorer_gets_half(monkeypatch, tmp_path):
    many = replace(PRESETS["demo"], impressions=(200, 10_000, 50), users=(200, 3000, 50))
    monkeypatch.setitem(PRESETS, "many", many)
    simulate(tmp_path / "many", "many")
    dev = open_mind(tmp_path / "many").split("dev")
    assert auc(np.zeros(len(dev.labels)), dev) == pytest.approx(0.5, abs=0.01)
    # Beyond one block of impressions, too, all are written, and with their own clicks.
    clicks = np.add.reduceat(dev.labels, dev.candidates.offsets[:-1], dtype=np.int64)
    assert (len(clicks), clicks.min()) == (10_000, 1)
    np.testing.assert_array_equal(to_offsets(dev.candidates.lengths), dev.candidates.offsets)


def test_an_unknown_preset_is_refused_and_named(tmp_path):
    with pytest.raises(UserError, match=r"'huge'.*demo"):
        simulate(tmp_path / "world", "huge")
    assert not (tmp_path / "world").exists()


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(UserError, match="-1"):
        simulate(tmp_path / "world", seed=-1)


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match=f"{re.escape(str(tmp_path))} is not empty.*--output"):
        simulate(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_leaves_nothing_behind(monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("newsrec.data.simulate._write_behaviors", fail)
    with pytest.raises(OSError, match="disk full"):
        simulate(tmp_path / "world")
    assert not list(tmp_path.iterdir())


def test_the_command_prints_the_ceiling_and_the_next_command(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    root = tmp_path / "empty"
    root.mkdir()  # an empty folder is as good as none
    run(parser.parse_args(["--output", str(root)]))
    printed = capsys.readouterr().out
    ceiling = json.loads((root / "world.json").read_text())["ceiling"]
    assert f"dev {ceiling['dev']['auc']:.4f}" in printed
    assert f"python -m newsrec fit --config configs/demo.yaml --data.root {root}" in printed
