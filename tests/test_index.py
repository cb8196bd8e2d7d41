"""The index over news vectors, against the product with all of them."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.errors import MissingPackageError
from newsrec.serving.index import RECALL, Index, refusal
from newsrec.serving.matching import Matching, Users, match_all

pytest.importorskip("faiss")


def world(number, dim=24, seed=0):
    """News vectors as models make them: around centres, longer in some directions than others."""
    rng = np.random.default_rng(seed)
    size = 1 / np.sqrt(1 + np.arange(dim))
    centres = rng.normal(size=(30, dim)) * size
    vectors = centres[rng.integers(0, 30, number)] + 0.5 * rng.normal(size=(number, dim)) * size
    return (vectors + 0.3 * size).astype(np.float32)


@pytest.fixture(scope="module")
def large():
    vectors = world(6000)
    return vectors, Index(np.arange(6000) + 2, vectors)


def best(vectors, query, k):
    return 2 + np.argsort(-(vectors @ query), kind="stable")[:k]


def test_a_search_reads_some_lists_and_finds_nearly_all_of_the_best(large):
    vectors, index = large
    assert index.recall >= RECALL
    assert index.probed < index.lists / 2
    assert (len(index), index.outgrown) == (6000, False)
    rng = np.random.default_rng(5)
    shares = []
    for _ in range(100):
        query = vectors[rng.integers(0, 6000, rng.integers(1, 20))].mean(axis=0)
        found = index.search(query[None], 100)
        shares.append(np.isin(best(vectors, query, 100), found).mean())
        assert len(found) <= 113
    assert np.mean(shares) >= 0.99


def test_only_allowed_news_is_found(large):
    vectors, index = large
    allowed = np.zeros(6002, np.bool_)
    allowed[2::2] = True
    query = vectors[:5].mean(axis=0)
    found = index.search(query[None], 50, allowed)
    assert (found % 2 == 0).all()
    true = [row for row in best(vectors, query, 6000) if allowed[row]][:50]
    assert np.isin(true, found).mean() >= 0.95


def test_the_news_of_several_interests_are_found_together(large):
    vectors, index = large
    interests = vectors[[10, 2000, 4000]]
    found = index.search(interests, 40)
    scores = match_all(Users(interests[None]), vectors)[0]
    assert np.isin(2 + np.argsort(-scores)[:40], found).mean() >= 0.95


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), number=st.integers(1, 40))
def test_what_was_added_is_found_and_what_was_removed_is_not(seed, number):
    rng = np.random.default_rng(seed)
    rows = rng.choice(100, number, replace=False)
    held = dict(zip(rows.tolist(), world(number, seed=seed), strict=True))
    index = Index(rows, (vectors := np.array(list(held.values()))), queries=vectors[:1])
    for _ in range(6):
        some = rng.choice(100, rng.integers(1, 9), replace=False)
        if rng.random() < 0.5:
            vectors = world(len(some), seed=int(rng.integers(99)))
            index.add(some, vectors)
            held |= dict(zip(some.tolist(), vectors, strict=True))
        else:
            index.remove(some)
            held = {row: vector for row, vector in held.items() if row not in some}
    index.probed = index.lists
    assert len(index) == len(held)
    assert index.outgrown == (len(held) > 2 * number)
    query = rng.normal(size=24).astype(np.float32)
    assert sorted(index.search(query[None], 100).tolist()) == sorted(held)
    if held:  # float16 may exchange near equals, and more than asked for is found
        highest = max(held, key=lambda row: held[row] @ query)
        assert highest in index.search(query[None], 8)


def test_queries_can_be_given(large):
    vectors, _ = large
    rows = np.arange(len(vectors))
    easy = Index(rows, vectors, queries=vectors[:50])
    hard = Index(rows, vectors, queries=np.random.default_rng(0).normal(size=(50, 24)))
    assert easy.probed < hard.probed


def test_models_whose_scores_no_product_finds_are_refused():
    assert refusal(Matching(None)) is None
    assert refusal(Matching({"head": "interests", "interests": 2, "combine": "max"})) is None
    assert "most similar clicks" in refusal(Matching({"head": "late", "clicks": 5}))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingPackageError, match="pip install faiss-cpu"):
        Index(np.arange(2), np.ones((2, 4), np.float32))
