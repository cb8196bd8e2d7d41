from collections import Counter
from datetime import datetime, timedelta

import numpy as np
import pytest

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import open_mind
from newsrec.errors import UserError
from newsrec.evaluation import baselines
from newsrec.evaluation.ages import age_scores
from newsrec.evaluation.baselines import (
    BASELINES,
    category_scores,
    clicks_of,
    cosine_scores,
    describe_baselines,
    popularity_scores,
    random_scores,
    recent_scores,
    score_baseline,
    tfidf_scores,
)

START = datetime(2019, 11, 9, 0, 0, 0)
HISTORY_SCORERS = ("category", "tfidf", "cosine")

WORDS = ["Stocks", "stocks", "rise", "on", "a", "Monday;", "Über-coach's", "3rd", "u,", "x_y!"]


def write_split(root, name, news, impressions):
    """Write news items ``(id, category, subcategory, title)`` and impressions
    ``(user, seconds, history, candidates)``, both space-separated texts as MIND has them."""
    folder = root / name
    folder.mkdir(parents=True)
    lines = [f"{i}\t{c}\t{s}\t{title}\t\thttps://x\t[]\t[]\n" for i, c, s, title in news]
    (folder / "news.tsv").write_text("".join(lines), encoding="utf-8")
    lines = []
    for number, (user, seconds, history, candidates) in enumerate(impressions, start=1):
        time = (START + timedelta(seconds=seconds)).strftime("%m/%d/%Y %I:%M:%S %p")
        lines.append(f"{number}\t{user}\t{time}\t{history}\t{candidates}\n")
    (folder / "behaviors.tsv").write_text("".join(lines))


NEWS = [
    ("N1", "sports", "golf", "Golfer wins again"),
    ("N2", "sports", "tennis", "Tennis star wins"),
    ("N3", "news", "golf", "Mayor plays golf"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A random MIND with every oddity: empty histories and titles, repeats, unknown ids."""
    root = tmp_path_factory.mktemp("mind")
    rng = np.random.default_rng(1)
    news = []
    for i in range(40):
        title = " ".join(rng.choice(WORDS, size=rng.integers(0, 7)))
        category = rng.choice(["news", "sports", "food"])
        news.append((f"N{i}", category, rng.choice(["a", "b"]), title))
    for number, split in enumerate(("train", "dev", "test")):
        impressions = []
        histories = {
            user: " ".join(rng.choice([f"N{i}" for i in (*range(40), 99)], rng.integers(0, 9)))
            for user in range(12)
        }
        histories[0] = ""
        for _ in range(60):
            user = int(rng.integers(12))
            # Few distinct times, so that many impressions share a second.
            seconds = int((number * 3 + rng.integers(0, 12)) * 6 * 3600)
            shown = rng.choice([f"N{i}" for i in (*range(40), 98)], rng.integers(2, 9), False)
            ends = ["" if split == "test" else f"-{rng.integers(2)}" for _ in shown]
            candidates = " ".join(a + b for a, b in zip(shown, ends, strict=True))
            impressions.append((f"U{user}", seconds, histories[user], candidates))
        write_split(root, split, news, impressions)
    return open_mind(root)


@pytest.fixture(scope="module")
def vectors(world):
    rng = np.random.default_rng(2)
    return (rng.normal(size=(world.num_news, 6)) + 1).astype(np.float32)


def rows(split):
    """Yield each impression as plain lists: time, history, candidates, labels."""
    for i in range(len(split.time)):
        part = slice(*split.candidates.offsets[i : i + 2])
        history = slice(*split.histories.offsets[split.history[i] :][:2])
        labels = None if split.labels is None else split.labels[part].tolist()
        yield (
            split.time[i].astype(int),
            split.histories.values[history].tolist(),
            split.candidates.values[part].tolist(),
            labels,
        )


def by_hand(split, score):
    """Score every candidate by ``score(time, history, candidate)``, 0 where it is unknown."""
    return np.array(
        [
            score(time, history, candidate) if candidate >= FIRST_NEWS else 0.0
            for time, history, candidates, _ in rows(split)
            for candidate in candidates
        ]
    )


def clicks(split):
    for time, _, candidates, labels in rows(split):
        yield from ((time, c) for c, label in zip(candidates, labels, strict=True) if label)


def cosine(a, b):
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / lengths if lengths > 0 else 0.0


@pytest.fixture(params=["one block", "many blocks"])
def block_size(request, monkeypatch):
    if request.param == "many blocks":
        monkeypatch.setattr(baselines, "BLOCK_NEWS", 10)
        monkeypatch.setattr(baselines, "VECTOR_CELLS", 60)
        monkeypatch.setattr(baselines, "PROFILE_CELLS", 40)


def test_popularity_counts_the_clicks_of_train(world):
    count = Counter(item for _, item in clicks(world.splits["train"]))
    for split in ("train", "dev", "test"):
        expected = by_hand(world.splits[split], lambda _, __, candidate: count[candidate])
        np.testing.assert_array_equal(popularity_scores(world, split), expected)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_recent_counts_the_clicks_of_the_day_before_the_impression(world, split):
    events = [*clicks(world.splits["train"]), *clicks(world.splits["dev"])]

    def score(time, _, candidate):
        return sum(c == candidate and time - 24 * 3600 < t < time for t, c in events)

    scores = recent_scores(world, split)
    np.testing.assert_array_equal(scores, by_hand(world.splits[split], score))
    assert scores.max() > 1


def test_recent_never_sees_a_click_of_the_same_second_or_a_later_one(tmp_path):
    before = [("U1", 0, "", "N1-1 N2-0"), ("U2", 10, "", "N1-0 N2-1"), ("U3", 10, "", "N1-1 N2-0")]
    after = [*before, ("U4", 11, "", "N1-0 N2-1"), ("U5", 86_400, "", "N1-0 N2-1")]
    write_split(tmp_path / "a", "train", NEWS, before)
    write_split(tmp_path / "b", "train", NEWS, after)
    early = recent_scores(open_mind(tmp_path / "a"), "train")
    late = recent_scores(open_mind(tmp_path / "b"), "train")
    assert early.tolist() == [0, 0, 1, 0, 1, 0]
    # The second 86,400 is exactly a day after the first click, which has just left the window.
    assert late.tolist() == [*early, 2, 1, 1, 2]


def test_recent_scores_an_unlabelled_split_from_train_and_dev_alone(tmp_path):
    write_split(tmp_path, "train", NEWS, [("U1", 0, "", "N1-1 N2-0")])
    write_split(tmp_path, "dev", NEWS, [("U1", 60, "", "N1-1 N2-0")])
    write_split(tmp_path, "test", NEWS, [("U1", 120, "", "N2 N1"), ("U2", 180, "", "N1 N3")])
    assert recent_scores(open_mind(tmp_path), "test").tolist() == [0, 2, 2, 0]


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_age_puts_first_what_was_first_shown_last(world, split):
    shown = [(t, c) for s in world.splits.values() for t, cs in shown_in(s) for c in cs]

    def score(time, _, candidate):
        first = min(t for t, c in shown if c == candidate and t <= time)
        return 1 / (1 + (time - first) / 3600)

    scores = age_scores(world, split)
    np.testing.assert_allclose(scores, by_hand(world.splits[split], score), rtol=1e-6)
    assert scores.max() == 1 or split == "test"  # where no news item is seen for the first time
    assert len(set(scores.tolist())) > 5


def shown_in(split):
    for time, _, candidates, _ in rows(split):
        yield time, candidates


def test_age_reads_no_label_and_nothing_shown_later(tmp_path):
    before = [
        ("U1", 0, "", "N1-1 N2-0"),
        ("U2", 3600, "", "N1-0 N2-1"),
        ("U3", 7200, "", "N1-1 N3-0"),
    ]
    after = [*before, ("U4", 7201, "", "N3-0 N2-1")]
    flipped = str.maketrans({"0": "1", "1": "0"})
    clicked = [
        (u, t, h, " ".join(c[:3] + c[3:].translate(flipped) for c in shown.split()))
        for u, t, h, shown in before
    ]
    for name, impressions in (("a", before), ("b", after), ("c", clicked)):
        write_split(tmp_path / name, "train", NEWS, impressions)
    early, late, other = (
        age_scores(open_mind(tmp_path / name), "train").tolist() for name in "abc"
    )
    assert early == pytest.approx([1, 1, 1 / 2, 1 / 2, 1 / 3, 1])
    assert late[:6] == other == early


def test_what_is_counted_for_an_unlabelled_split_are_the_clicks_of_train_and_dev(world):
    assert [split.name for split in clicks_of("recent", world)] == ["train", "dev"]
    assert [split.name for split in clicks_of("popularity", world)] == ["train"]
    assert clicks_of("tfidf", world) == []


def test_category_adds_the_shares_of_category_and_subcategory(world, block_size):
    categories, subcategories = (
        ["", "", *world.news[name].to_pylist()] for name in ("category", "subcategory")
    )
    kinds = list(zip(categories, subcategories, strict=True))

    def score(_, history, candidate):
        same = [kinds[h][0] == kinds[candidate][0] for h in history]
        both = [kinds[h] == kinds[candidate] for h in history]
        return (sum(same) + sum(both)) / len(history) if history else 0

    for split in ("train", "dev", "test"):
        expected = by_hand(world.splits[split], score)
        np.testing.assert_allclose(category_scores(world, split), expected, atol=1e-6)


def test_category_counts_a_subcategory_within_its_category(tmp_path):
    write_split(tmp_path, "dev", NEWS, [("U1", 0, "N1", "N1-1 N2-0 N3-0")])
    assert category_scores(open_mind(tmp_path), "dev").tolist() == [2, 1, 0]


def test_tfidf_agrees_with_scikit_learn(world, block_size):
    from sklearn.feature_extraction.text import TfidfVectorizer

    matrix = TfidfVectorizer().fit_transform(world.news["title"].to_pylist()).toarray()

    def score(_, history, candidate):
        if not history:
            return 0
        profile = matrix[np.array(history) - FIRST_NEWS].mean(axis=0)
        return cosine(profile, matrix[candidate - FIRST_NEWS])

    for split in ("train", "dev", "test"):
        expected = by_hand(world.splits[split], score)
        np.testing.assert_allclose(tfidf_scores(world, split), expected, atol=1e-6)
        assert expected.max() > 0.5


def test_cosine_agrees_with_a_loop_over_centred_vectors(world, vectors, block_size):
    news = vectors[FIRST_NEWS:].astype(np.float64)
    news /= np.linalg.norm(news, axis=1, keepdims=True)
    news -= news.mean(axis=0)

    def score(_, history, candidate):
        if not history:
            return 0
        user = news[np.array(history) - FIRST_NEWS].mean(axis=0)
        return user @ news[candidate - FIRST_NEWS]

    for split in ("train", "dev", "test"):
        expected = by_hand(world.splits[split], score)
        np.testing.assert_allclose(cosine_scores(world, split, vectors), expected, atol=1e-6)


def test_cosine_ignores_the_vectors_of_padding_and_of_the_unknown_news_item(world, vectors):
    changed = vectors.copy()
    changed[:FIRST_NEWS] = np.nan
    expected = cosine_scores(world, "dev", vectors)
    np.testing.assert_array_equal(cosine_scores(world, "dev", changed), expected)


def test_random_depends_on_the_seed_alone(world):
    first = random_scores(world, "dev", seed=3)
    np.testing.assert_array_equal(first, score_baseline("random", world, "dev", seed=3))
    assert (first != random_scores(world, "dev", seed=4)).mean() > 0.9


@pytest.mark.parametrize("name", BASELINES)
def test_scores_are_finite_and_in_the_order_of_the_file(name, world, vectors):
    for split in world.splits.values():
        scores = score_baseline(name, world, split.name, news_vectors=vectors)
        assert scores.dtype == np.float32
        assert scores.shape == split.candidates.values.shape
        assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", HISTORY_SCORERS)
def test_an_empty_history_gives_zeros(name, world, vectors):
    dev = world.splits["dev"]
    empty = np.repeat(dev.histories.lengths[dev.history] == 0, dev.candidates.lengths)
    scores = score_baseline(name, world, "dev", news_vectors=vectors)
    assert empty.any()
    assert not scores[empty].any()
    assert scores[~empty].any()


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "random"])
def test_an_unknown_candidate_scores_zero(name, world, vectors):
    unknown = world.splits["dev"].candidates.values < FIRST_NEWS
    assert unknown.any()
    assert not score_baseline(name, world, "dev", news_vectors=vectors)[unknown].any()


@pytest.mark.parametrize("name", BASELINES)
def test_a_world_without_histories_words_or_known_candidates_is_scored(name, tmp_path):
    write_split(tmp_path, "train", [("N1", "", "", "")], [("U1", 0, "N7", "N8-1 N9-0")])
    data = open_mind(tmp_path)
    vectors = np.zeros((data.num_news, 4), dtype=np.float32)
    scores = score_baseline(name, data, "train", news_vectors=vectors)
    assert np.isfinite(scores).all()


def test_an_unknown_baseline_names_the_known_ones(world):
    with pytest.raises(UserError, match=r"'knn'.*random, popularity, recent, age, category, tfidf"):
        score_baseline("knn", world, "dev")


def test_clicks_that_are_missing_are_reported(tmp_path):
    write_split(tmp_path, "test", NEWS, [("U1", 0, "N1", "N1 N2")])
    data = open_mind(tmp_path)
    with pytest.raises(UserError, match="no split 'train'"):
        score_baseline("popularity", data, "test")
    with pytest.raises(UserError, match="no split with labels"):
        score_baseline("recent", data, "test")
    write_split(tmp_path, "train", NEWS, [("U1", 0, "N1", "N1 N2")])
    with pytest.raises(UserError, match="train has no labels"):
        score_baseline("popularity", open_mind(tmp_path), "test")


def test_news_item_vectors_must_match_the_catalogue(world, vectors):
    with pytest.raises(ValueError, match="needs news_vectors"):
        score_baseline("cosine", world, "dev")
    with pytest.raises(ValueError, match=f"has {world.num_news} rows"):
        cosine_scores(world, "dev", vectors[:-1])


def test_every_baseline_says_in_one_line_what_it_is():
    assert tuple(describe_baselines()) == BASELINES
    assert all(line.endswith(".") for line in describe_baselines().values())
