import argparse
import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from newsrec.commands.simulate import add_arguments, run
from newsrec.data.dataset import open_mind
from newsrec.data.ragged import Ragged, to_offsets
from newsrec.errors import UserError
from newsrec.evaluation.baselines import score_baseline
from newsrec.metrics import mind_metrics
from newsrec.simulation.headlines import compose
from newsrec.simulation.impressions import _draw_lists, click
from newsrec.simulation.presets import PRESETS
from newsrec.simulation.simulate import simulate, simulate_splits
from newsrec.simulation.vocabulary import STYLES, TOPICS
from newsrec.simulation.world import SimulatedNews, append_clicks, make_news

DEMO = Path(__file__).parents[1] / "data" / "demo"
FILES = sorted(f"{s}/{n}.tsv" for s in ("train", "dev", "test") for n in ("news", "behaviors"))
BENCHMARK = runpy.run_path(str(Path(__file__).parent / "benchmarks" / "simulate.py"))
ASKED, EVERYWHERE = BENCHMARK["ASKED"], BENCHMARK["EVERYWHERE"]
"""Statistics of MINDsmall and MINDlarge, counted in their files."""
LITTLE = replace(
    PRESETS["small"],
    impressions=(3000, 1500),
    users=(1000, 1000),
    early_news=1000,
    daily_news=(350,) * 8,
    length_scale=0.5,
)
"""Like small in all but size; a day has as many news items as lists of 142 need."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A demo world with seed 0."""
    root = tmp_path_factory.mktemp("simulate") / "world"
    simulate(root, "demo", seed=0)
    return root


@pytest.fixture(scope="module")
def medium(tmp_path_factory):
    """A medium world with seed 0."""
    root = tmp_path_factory.mktemp("simulate") / "medium"
    simulate(root, "medium", seed=0)
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
    for name in (*FILES, "world.json", "README.md"):
        assert demo[name] == fresh[name], name


def test_the_demo_is_small_enough_to_commit(world):
    assert sorted(contents(world)) == sorted([*FILES, "world.json", "README.md"])
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


def test_an_impression_shows_no_news_item_twice(data):
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


def test_most_users_and_most_shown_news_of_dev_and_test_are_new(world):
    def shown(split):
        behaviors = rows(world / split / "behaviors.tsv")
        words = " ".join(row[4] for row in behaviors).split()
        return {row[1] for row in behaviors}, {word.split("-")[0] for word in words}

    old_users, old_news = shown("train")
    for split, least in (("dev", 0.4), ("test", 0.8)):
        users, news = shown(split)
        assert 0.8 < len(users - old_users) / len(users) < 1
        assert least < len(news - old_news) / len(news) < 1


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
        assert all(len(set(phrases)) >= 4 for phrases in topic[2:]), topic.subcategory
    assert len({(t.category, t.subcategory) for t in TOPICS}) == len(TOPICS)
    assert min(s.appeal for s in STYLES) < -0.5 < 0.5 < max(s.appeal for s in STYLES)


@pytest.mark.parametrize("name", ["demo", "committed", "medium"])
def test_similarity_is_far_below_the_ceiling(world, medium, name):
    root = {"demo": world, "committed": DEMO, "medium": medium}[name]
    data = open_mind(root)
    dev = data.split("dev")
    reached = json.loads((root / "world.json").read_text())["ceiling"]
    assert 0.75 < reached["dev"]["auc"] < 0.82
    assert 0.75 < reached["test"]["auc"] < 0.82
    assert list(reached["dev"]) == ["auc", "mrr", "ndcg@5", "ndcg@10"]
    for name, least, most in (
        ("category", 0.58, 0.66),
        ("tfidf", 0.58, 0.66),
        ("recent", 0.5, 0.69),  # medium has enough clicks to show what is liked today
        ("popularity", 0.48, 0.60),
    ):
        assert least < auc(score_baseline(name, data, "dev"), dev) < most, name


def test_medium_has_the_sizes_that_a_comparison_needs(medium):
    splits = json.loads((medium / "world.json").read_text())["splits"]
    assert [split["impressions"] for split in splits.values()] == [8000, 10_000, 2000]
    listed = {row[0] for split in splits for row in rows(medium / split / "news.tsv")}
    assert len(listed) == pytest.approx(3000, rel=0.02)


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

    monkeypatch.setattr("newsrec.simulation.files._write_behaviors", fail)
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


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.slow), 4])
def part(request):
    """1 for all of small; 4 for a quarter of it, whose figures may be 4 times as far off."""
    return request.param


@pytest.fixture(scope="module")
def small(part):
    """The news items and splits of small or a quarter of it with seed 0, never written."""
    whole, rng = PRESETS["small"], np.random.default_rng(0)
    names = ("impressions", "users", "daily_news")
    sizes = {name: tuple(number // part for number in getattr(whole, name)) for name in names}
    preset = replace(whole, early_news=whole.early_news // part, **sizes)
    news = make_news(rng, preset)
    return news, {split.name: split for split in simulate_splits(rng, preset, news)}


def test_small_has_minds_counts_and_like_mindsmall_no_test_split(small, part):
    _, splits = small
    assert list(splits) == ["train", "dev"]
    for name, split in splits.items():
        asked = ASKED["small"][name]
        assert len(split.shown.user) == asked["impressions"] // part
        assert len(split.user_numbers) == asked["users"] // part
        assert len(split.named) == pytest.approx(asked["news"] / part, rel=0.05)
    shared = np.intersect1d(splits["train"].user_numbers, splits["dev"].user_numbers)
    assert len(shared) == pytest.approx(5943 / part, abs=part - 1)


def test_histories_of_small_have_minds_lengths(small, part):
    for name, split in small[1].items():
        lengths = split.histories.lengths[split.user]
        assert lengths.mean() == pytest.approx(32, rel=0.05)
        middle, high, highest = np.quantile(lengths, [0.5, 0.9, 0.99])
        assert middle == pytest.approx(18, rel=0.05)
        assert high == pytest.approx(76, rel=0.05)
        assert highest == pytest.approx(201, rel=0.05 * part)
        assert 400 < lengths.max() <= 425
        assert (lengths <= 5).mean() == pytest.approx(0.18, abs=0.01 * part)
        assert (lengths > 50).mean() == pytest.approx(0.19, abs=0.01)
        assert (lengths == 0).mean() == pytest.approx(ASKED["small"][name]["empty"], abs=0.01)
        pairs = np.sort(split.histories.owners() * 2**32 + split.histories.values)
        repeats = np.unique(pairs[1:][pairs[1:] == pairs[:-1]] >> 32)
        assert np.isin(split.user, repeats).mean() == pytest.approx(0.21, abs=0.015 * part)


def test_candidates_and_clicks_of_small_are_as_many_as_in_mind(small):
    for split in small[1].values():
        lengths = split.shown.candidates.lengths
        assert lengths.mean() == pytest.approx(37.4, rel=0.05)
        least, middle, high = np.quantile(lengths, [0.05, 0.5, 0.9])
        assert (least, lengths.min(), lengths.max()) == (2, 2, 283)
        assert middle == pytest.approx(24, rel=0.05)
        assert high == pytest.approx(93, rel=0.05)
        starts = split.shown.candidates.offsets[:-1]
        clicks = np.add.reduceat(split.shown.labels, starts, dtype=np.int64)
        assert clicks.min() == 1
        assert (clicks < lengths).all()
        assert clicks.mean() == pytest.approx(1.52, rel=0.05)
        for number, share in enumerate((0.725, 0.165, 0.059, 0.024), start=1):
            assert (clicks == number).mean() == pytest.approx(share, abs=0.01)
        assert (clicks > 4).mean() == pytest.approx(0.028, abs=0.01)


def test_a_list_of_small_shows_no_news_item_twice_and_only_fresh_ones(small):
    news, splits = small
    for split in splits.values():
        item, owner = split.shown.candidates.values, split.shown.candidates.owners()
        pairs = np.sort(owner * len(news.number) + item)
        assert (pairs[1:] != pairs[:-1]).all()
        day = split.shown.day[owner]
        assert ((news.birth[item] <= day) & (day < news.death[item])).all()


def test_news_of_small_are_new_popular_and_short_lived_as_in_mind(small, part):
    """Shares of new news items and lifetimes are defined in the benchmark's ``statistics``."""
    news, splits = small
    train, dev = splits["train"], splits["dev"]
    new_users = ~np.isin(dev.user_numbers, train.user_numbers)
    assert new_users.mean() == pytest.approx(0.89, abs=0.01)
    shown = np.intersect1d(dev.shown.candidates.values, dev.named)
    new_news = ~np.isin(shown, train.named)
    assert new_news.mean() == pytest.approx(0.71, abs=0.01 * part)

    slots = np.sort(np.bincount(train.shown.candidates.values))[::-1]
    slots = slots[slots > 0]
    for parts, share in ((100, 0.16), (10, 0.66)):
        assert slots[: len(slots) // parts].sum() / slots.sum() == pytest.approx(
            share, abs=0.02 * part
        )

    first, last = np.full(len(news.number), np.inf), np.full(len(news.number), -np.inf)
    for split in splits.values():
        day = split.shown.day[split.shown.candidates.owners()]
        np.minimum.at(first, split.shown.candidates.values, day)
        np.maximum.at(last, split.shown.candidates.values, day)
    life = (last - first)[np.isfinite(first)]
    assert (life < 2).mean() == pytest.approx(0.845, abs=0.01 * part)


def test_a_few_candidates_of_small_are_in_the_history_already(small, part):
    for split in small[1].values():
        rows = np.arange(18_000)
        shown, read = split.shown.candidates.take(rows), split.histories.take(split.user[rows])
        keys = [part.owners() * 2**32 + part.values for part in (shown, read)]
        assert 0.0005 < np.isin(*keys).mean() < 0.005 * part  # MIND: .0025


def test_the_ceiling_of_small_is_that_of_the_demo_and_a_constant_scorer_gets_half(small):
    dev = small[1]["dev"].shown
    offsets = dev.candidates.offsets
    assert 0.75 < mind_metrics(dev.utility, dev.labels, offsets)["auc"] < 0.82
    constant = np.zeros(len(dev.labels), dtype=np.float32)
    assert mind_metrics(constant, dev.labels, offsets)["auc"] == pytest.approx(0.5, abs=0.005)


def test_days_of_small_are_in_no_order(small):
    for (first, end), split in zip(((0, 6), (6, 7)), small[1].values(), strict=True):
        assert first <= split.shown.day.min()
        assert split.shown.day.max() < end
        rises = np.diff(split.shown.day) > 0
        assert rises.mean() == pytest.approx(0.5, abs=0.01)


def news_that_live(birth, death, exposure):
    nothing = np.zeros(len(birth), dtype=np.int64)
    birth, death, exposure = (np.array(a, dtype=float) for a in (birth, death, exposure))
    return SimulatedNews(nothing, nothing, exposure, exposure, birth, death, nothing == 0, nothing)


def test_lists_are_drawn_by_exposure_without_replacement():
    # The second place goes to a news item that the first left: P(1 in the list) = sum over firsts.
    exposure = np.array([4, 1, 1, 1, 1]) / 8
    news = news_that_live([0] * 5, [2] * 5, exposure)
    size = 40_000
    lists = _draw_lists(
        np.random.default_rng(0),
        news,
        np.linspace(0, 1, size),
        np.repeat(np.arange(size), 2),
        np.arange(size + 1) * 2,
    ).reshape(size, 2)
    assert (lists[:, 0] != lists[:, 1]).all()
    first = exposure[0] + 4 * (1 / 8) * exposure[0] / (1 - 1 / 8)
    assert (lists == 0).any(axis=1).mean() == pytest.approx(first, abs=0.01)
    # In random order: the exposed news item stands as often first as last.
    assert (lists[:, 0] == 0).mean() == pytest.approx(first / 2, abs=0.01)


def test_a_news_item_is_not_shown_before_its_birth_or_after_its_death():
    news = news_that_live([0, 0, 0.5, 0, 0], [2, 2, 2, 0.5, 2], [1, 1, 9, 9, 1])
    day = np.linspace(0.01, 1, 5000)
    lists = _draw_lists(
        np.random.default_rng(0), news, day, np.repeat(np.arange(5000), 2), np.arange(5001) * 2
    ).reshape(5000, 2)
    assert day[(lists == 2).any(axis=1)].min() >= 0.5
    assert day[(lists == 3).any(axis=1)].max() < 0.5


def test_clicks_follow_the_utilities_and_gumbel_noise():
    # Of two news items, one is clicked with odds of exp(difference of utilities).
    size = 40_000
    owner, offsets = np.repeat(np.arange(size), 2), np.arange(size + 1) * 2
    utility = np.tile(np.log(np.array([3, 1], dtype=np.float32)), size)
    many = np.full(size, 5)  # cut, so that one is left
    label = click(np.random.default_rng(0), utility, many, owner, offsets).reshape(size, 2)
    assert (label.sum(axis=1) == 1).all()
    assert label[:, 0].mean() == pytest.approx(0.75, abs=0.01)


def test_grown_histories_keep_their_length_where_they_follow_mind():
    rng = np.random.default_rng(0)
    histories = Ragged(np.array([1, 2, 3, 4, 5], dtype=np.int32), to_offsets(np.array([3, 2, 0])))
    clicks = [
        np.array(c) for c in ([0, 0, 1, 1, 1, 2], [7, 6, 10, 11, 12, 9], [2.0, 1, 3, 4, 5, 1])
    ]

    def grown(sizes):
        result = append_clicks(rng, sizes, histories, *clicks)
        return [result.take(np.array([row])).values.tolist() for row in range(3)]

    assert grown(PRESETS["demo"]) == [[1, 2, 3, 6, 7], [4, 5, 10, 11, 12], [9]]
    # The oldest fall off; who had read nothing now has one news item.
    assert grown(PRESETS["small"]) == [[3, 6, 7], [11, 12], [9]]


def test_titles_and_abstracts_are_as_long_and_as_different_as_minds():
    rng = np.random.default_rng(0)
    news = make_news(rng, replace(PRESETS["small"], early_news=8000))
    news = SimulatedNews(*(column[:12_000] for column in news))
    fields = [line.split("\t") for line in compose(rng, PRESETS["small"], news)]
    titles, abstracts = [f[3] for f in fields], [f[4] for f in fields]
    assert np.mean([len(t.split()) for t in titles]) == pytest.approx(11, rel=0.05)
    assert np.mean([len(a.split()) for a in abstracts if a]) == pytest.approx(43, rel=0.05)
    assert abstracts.count("") / len(fields) == pytest.approx(0.05, abs=0.01)
    assert len(set(titles)) / len(fields) == pytest.approx(98_388 / 101_527, abs=0.01)
    assert 0 < sum(title.startswith('"') for title in titles) < 40  # MIND: 3 of 2,000
    for category, share in (("news", 0.3), ("sports", 0.3), ("finance", 0.06), ("weather", 0.04)):
        assert sum(f[1] == category for f in fields) / len(fields) == pytest.approx(share, abs=0.01)


def test_a_world_like_mind_has_the_same_bytes_for_a_seed_however_it_is_written(
    monkeypatch, tmp_path
):
    monkeypatch.setitem(PRESETS, "little", LITTLE)
    done = []
    simulate(tmp_path / "one", "little", 3, done.append)
    monkeypatch.setattr("newsrec.simulation.files.WRITE_BLOCK", 100)
    simulate(tmp_path / "two", "little", 3)
    simulate(tmp_path / "other", "little", 4)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    names = {"train/news.tsv", "train/behaviors.tsv", "dev/news.tsv", "dev/behaviors.tsv"}
    assert set(contents(tmp_path / "one")) == {*names, "world.json", "README.md"}
    other = contents(tmp_path / "other")
    assert all(other[name] != contents(tmp_path / "one")[name] for name in names)
    assert sum(done) == 2 * (3000 + 1500)  # simulated, and written


def test_a_world_like_mind_can_be_opened_and_says_what_it_holds(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(PRESETS, "little", LITTLE)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    run(parser.parse_args(["--output", str(tmp_path / "little"), "--preset", "little"]))
    printed, progress = capsys.readouterr()
    assert "train 3000 impressions  1000 users" in printed
    assert "(the true utilities): dev 0." in printed
    assert progress == ""  # only a terminal gets a bar
    data = open_mind(tmp_path / "little")
    assert [len(split.impression_id) for split in data.splits.values()] == [3000, 1500]
    test_an_impression_shows_no_news_item_twice(data)


@pytest.mark.slow
def test_the_files_of_small_have_minds_statistics(tmp_path):
    """Read line by line, without our user; the numbers asked for are MIND's own."""
    simulate(tmp_path / "small", "small", seed=1)
    reached = BENCHMARK["statistics"](tmp_path / "small", ["train", "dev"])
    shares = dict.fromkeys(("empty", "new_users", "new_news", "abstracts_missing"), 0.01)
    shares |= dict.fromkeys(("titles_distinct", "titles_quoted", "candidates_in_history"), 0.01)
    shares |= dict.fromkeys(("clicks_1_2_3_4_more", "history_up_to_5", "history_over_50"), 0.01)
    shares["history_with_repeats"] = 0.015
    shares["slots_of_top_1_and_10_percent"] = 0.07  # fewer news items share dev's day; train: .02
    for split in ("train", "dev"):
        asked = {**EVERYWHERE, **ASKED["small"][split]}
        assert asked.keys() <= reached[split].keys()
        for name, value in asked.items():
            within = {"abs": shares[name]} if name in shares else {"rel": 0.05}
            assert reached[split][name] == pytest.approx(value, **within), (split, name)
        assert reached[split]["clicks_none_or_all"] == 0
    assert reached["all"]["life_under_2_days"] == pytest.approx(0.845, abs=0.01)
    size = sum(path.stat().st_size for path in (tmp_path / "small").rglob("*.tsv"))
    assert size > 140_000_000
