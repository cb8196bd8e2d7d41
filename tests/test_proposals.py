"""The index of a live recommender follows the changes of its news."""

import sys

import numpy as np
import pytest
from live_world import START, FakeEncoders, ids_of, item, wait_until, write_export

from newsrec.errors import MissingPackageError, UserError
from newsrec.serving.live import Rules
from newsrec.serving.matching import Matching
from newsrec.serving.proposals import Proposals

pytestmark = pytest.mark.usefixtures("fake_encoders")
MANY = 400


@pytest.fixture
def two(tmp_path, opened):
    """A recommender with an index, and one without, on one store."""
    pytest.importorskip("faiss")
    export = write_export(tmp_path / "export", [item(n) for n in range(MANY)])
    live = opened(export, index_above=MANY // 2)
    live.refresh()
    wait_until(lambda: not live._engines.engine.proposals.building)
    return live, opened(export)


def shared_share(live, plain, **options):
    mine, all_ = (
        {one.news_id for one in one.recommend(["N1", "N5"], k=100, **options).news}
        for one in (live, plain)
    )
    assert len(mine) == len(all_)
    return len(mine & all_) / len(all_)


def test_changes_are_found_and_what_is_gone_is_not(two):
    live, plain = two
    assert live._engines.engine.proposals._index is not None
    assert shared_share(live, plain) >= 0.97
    rng = np.random.default_rng(0)
    for turn in range(15):
        numbers = rng.choice(2 * MANY, 12, replace=False)
        live.upsert_news([item(int(n), f"turn {turn} {n}") for n in numbers])
        for n in rng.choice(2 * MANY, 6, replace=False):
            live.delete_news(f"N{n}")
        assert {one.news_id for one in live.recommend([], k=50).news} <= set(ids_of(plain))
    assert ids_of(live) == ids_of(plain)  # more than are proposed: all are scored
    assert shared_share(live, plain) >= 0.97
    exact = {one.news_id: one.score for one in plain.recommend(["N1"], k=1000).news}
    for one in live.recommend(["N1"], k=20).news:
        assert one.score == pytest.approx(exact[one.news_id], abs=1e-6)


def test_rules_hold_with_an_index(two):
    two[0].upsert_news([item(n, published=n % 50, category=f"c{n % 3}") for n in range(MANY)])
    for rules in (
        Rules(exclude=("N7", "N8"), per_category=20),
        Rules(categories=("c1", "c2"), near_duplicates=0.99),
        Rules(max_age=30, diversity=0.3),
        Rules(half_life=5),
        Rules(categories=("c0",), max_age=5),
    ):
        found = [one.recommend(["N1"], k=9, rules=rules, now=START) for one in two]
        pairs = zip(found[0].news, found[1].news, strict=True)
        assert sum(a.news_id == b.news_id for a, b in pairs) >= 8


def test_an_index_that_was_outgrown_is_built_anew(two):
    live, plain = two
    live.upsert_news([item(n) for n in range(MANY, 4 * MANY)])
    proposals = live._engines.engine.proposals
    wait_until(lambda: not proposals.building)
    assert proposals._index.built_of == 4 * MANY
    assert shared_share(live, plain) >= 0.97


@pytest.mark.parametrize("above", [-1, True, 2.5])
def test_a_number_that_cannot_be_is_named(above):
    with pytest.raises(UserError, match="it must be a number of news"):
        Proposals(above, Matching(None))


def test_what_cannot_have_an_index_says_so(tmp_path, opened, monkeypatch):
    with pytest.raises(UserError, match="Leave index_above out to score all news"):
        Proposals(5, Matching({"head": "late", "clicks": 3}))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingPackageError, match="faiss-cpu"):
        opened(write_export(tmp_path / "export"), index_above=5)
    assert FakeEncoders.encoded == 0
