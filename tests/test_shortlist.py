"""The search with a shortlist, against the search through all news."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.serving import Recommender
from newsrec.serving import shortlist as module
from newsrec.serving.search import search
from newsrec.serving.shortlist import Shortlist
from newsrec.serving.vectors import TYPES, pack

DIM = 20


def made_news(kind, number=3000, seed=0):
    """Vectors of very different lengths, some of them zero or equal."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((number, DIM)) * rng.exponential(size=(number, 1)) ** 3
    vectors[::50] = vectors[7]
    vectors[1::90] = 0
    vectors[2::80] = 1
    return pack(vectors.astype(np.float32), kind)


@pytest.fixture(scope="module", params=TYPES)
def world(request):
    news = made_news(request.param)
    return news, Shortlist(news, threads=1)


@settings(max_examples=200, deadline=None)
@given(
    user=st.lists(st.floats(-100, 100, width=32), min_size=DIM, max_size=DIM),
    k=st.integers(1, 200),
    share=st.sampled_from([0, 0.5, 0.999]),
    seed=st.integers(0, 9),
)
def test_a_shortlist_finds_what_a_search_through_all_news_finds(world, user, k, share, seed):
    news, shortlist = world
    rng = np.random.default_rng(seed)
    allowed = rng.random(len(news)) >= share
    excluded = rng.integers(0, len(news), 20).tolist()
    vector = np.array([user], np.float32)
    (expected,) = search(vector[None], news, k, [excluded], allowed)
    found = shortlist.search(vector, k, excluded, allowed)
    assert len(found.rows) == len(expected.rows)
    # Below its smallest normal number, float32 has no relative precision.
    off = 1e-6 * np.abs(vector).max() * 1e3 + np.finfo(np.float32).tiny
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=off)
    swapped = found.rows != expected.rows  # only news whose scores are equal up to rounding
    exact = np.asarray(news) @ vector[0]
    near = np.isclose(exact[found.rows], exact[expected.rows], rtol=1e-5, atol=off)
    assert near[swapped].all()


@pytest.mark.parametrize("user", [
    np.ones(DIM), -np.ones(DIM), np.eye(DIM)[3], np.zeros(DIM), np.full(DIM, 1e-20),
    np.where(np.arange(DIM) % 2, 127, -127), np.geomspace(1e-6, 1e6, DIM),
])  # fmt: skip
def test_no_score_is_further_off_than_its_error(world, user):
    news, shortlist = world
    vector = np.array([user], np.float32)
    exact = np.asarray(news, np.float64) @ vector[0].astype(np.float64)
    wrong = np.abs(shortlist.scores(vector) - exact)
    assert (wrong <= shortlist.errors(vector) + 1e-12).all()


def test_news_in_several_parts_are_one_list(monkeypatch):
    news = made_news("float32", 700)
    whole = Shortlist(news, threads=1)
    monkeypatch.setattr(module, "NEWS_AT_ONCE", 300)
    parts = Shortlist(news, threads=1)
    user = np.random.default_rng(0).standard_normal((1, DIM)).astype(np.float32)
    np.testing.assert_array_equal(parts.scores(user), whole.scores(user))


def test_a_recommender_with_a_shortlist_gives_the_same_answers(served, monkeypatch):
    plain = Recommender.load(served.export, threads=1)
    quick = Recommender.load(served.export, threads=1, shortlist=True)
    made = []
    monkeypatch.setattr(
        Shortlist, "of", lambda news, threads: made.append(Shortlist(news, threads)) or made[-1]
    )
    ids = plain.news["news_id"].to_pylist()
    category = plain.news["category"][0].as_py()
    for history in ([], ids[:4]):
        for options in ({}, {"exclude_history": False}, {"categories": [category]}):
            expected = plain.recommend(history, 7, **options)
            found = quick.recommend(history, 7, **options)
            assert found.news_ids == expected.news_ids
            np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)
    assert len(made) == 1
    quick.add_news(["X1"], ["Rain"], ["weather"], ["storms"], ["It rained."])
    assert "X1" in quick.recommend([], len(ids) + 1).news_ids
    assert len(made) == 2


def test_where_it_is_no_faster_or_not_possible_there_is_none(monkeypatch, caplog):
    news = made_news("float32", 300)
    assert Shortlist.of(news) is None  # too few
    monkeypatch.setattr(module, "FEWEST_NEWS", 1)
    times = iter([2, 2, 2, 1, 1, 1])
    monkeypatch.setattr(module, "_seconds", lambda call: next(times))
    assert Shortlist.of(news) is None
    monkeypatch.setattr(module, "_graph", lambda packed: b"no graph")
    assert Shortlist.of(news) is None
    assert "search goes without a shortlist" in caplog.text
