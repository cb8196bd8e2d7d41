"""The live recommender, against a dictionary and against the export that it serves."""

import os
import shutil
from datetime import datetime, timedelta

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from live_world import (
    MAX_HISTORY,
    START,
    FakeEncoders,
    click,
    ids_of,
    item,
    texts_of,
    vectors_of,
    write_export,
)

from newsrec.errors import UserError
from newsrec.serving import Recommender
from newsrec.serving import engine as engine_module
from newsrec.serving.database import Database
from newsrec.serving.live import Click, LiveRecommender, NewsItem, Rules
from newsrec.serving.sessions import Encoders

pytestmark = pytest.mark.usefixtures("fake_encoders")


@pytest.fixture
def export(tmp_path):
    return write_export(tmp_path / "export", [item(n) for n in range(3)])


def expected_scores(model, news, history):
    """Score of each news item for a history, by hand."""
    items = list(news.values())
    vectors = dict(zip(news, vectors_of(model, texts_of(items)), strict=True))
    known = [vectors[news_id] for news_id in history if news_id in news][-MAX_HISTORY:]
    user = np.mean(known, axis=0) if known else np.ones(4) / 8
    return {news_id: float(vector @ user) for news_id, vector in vectors.items()}


# a dictionary as the oracle

EXAMPLES = int(os.environ.get("NEWSREC_EXAMPLES", "20"))

NUMBERS = st.integers(0, 5)
STEPS = st.one_of(
    st.tuples(
        st.just("upsert"), st.lists(st.tuples(NUMBERS, st.integers(0, 2)), max_size=3,
                                    unique_by=lambda pair: pair[0])
    ),
    st.tuples(st.just("delete"), NUMBERS),
    st.tuples(
        st.just("click"), st.lists(st.tuples(st.integers(0, 2), NUMBERS, st.integers(0, 3)),
                                   max_size=3)
    ),
    st.tuples(st.just("forget"), st.integers(0, 2)),
    st.tuples(st.just("open"), st.none()),
)  # fmt: skip


@pytest.fixture(scope="module")
def two_news(tmp_path_factory):
    root = tmp_path_factory.mktemp("property")
    return write_export(root / "export", [item(n) for n in range(2)]), root / "store"


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.tuples(STEPS, st.booleans()), max_size=8))
def test_two_recommenders_on_one_store_hold_what_a_dictionary_holds(two_news, steps):
    first, (export, store) = [item(n) for n in range(2)], two_news
    news, clicks = {one.news_id: one for one in first}, {}
    with pytest.MonkeyPatch.context() as patch:
        connect = Database._connect

        def unsafe(self):  # thousands of transactions need not survive a power cut
            db = connect(self)
            db.execute("PRAGMA synchronous=OFF")
            return db

        patch.setattr(Database, "_connect", unsafe)
        lives = [LiveRecommender.open(export, store) for _ in range(2)]
        for (name, value), second in steps:
            live = lives[second]
            if name == "upsert":
                items = [item(n, f"title {n} {text}", published=text or None) for n, text in value]
                known = [news.get(one.news_id) for one in items]
                equal = sum(
                    old is not None and old[:3] == new[:3] and old.published == new.published
                    for old, new in zip(known, items, strict=True)
                )
                added = known.count(None)
                assert live.upsert_news(items) == (added, len(items) - added - equal, equal)
                news |= {one.news_id: one for one in items}
            elif name == "delete":
                assert live.delete_news(f"N{value}") == (f"N{value}" in news)
                news.pop(f"N{value}", None)
            elif name == "click":
                made = [click(*one) for one in value]
                before = {pair for pairs in clicks.values() for pair in pairs}
                new = {(c.user_id, c.time, c.news_id) for c in made} - before
                assert live.add_clicks(made) == len(new)
                for one in new:
                    clicks.setdefault(one[0], set()).add(one)
            elif name == "forget":
                assert live.delete_user(f"U{value}") == (f"U{value}" in clicks)
                clicks.pop(f"U{value}", None)
            else:
                live.close()
                lives[second] = LiveRecommender.open(export, store)
        for live in lives:
            check_against(live, news, clicks)
            live.close()
    shutil.rmtree(store)


def check_against(live, news, clicks):
    stats = live.stats()
    assert (stats.users, stats.clicks) == (len(clicks), sum(map(len, clicks.values())))
    for user in range(3):
        ordered = sorted(clicks.get(f"U{user}", ()))
        found = live.user(f"U{user}")
        expected = [(news_id, moment) for _, moment, news_id in ordered]
        assert (found.clicks if found else []) == expected
        history = [news_id for news_id, _ in expected]
        answer = live.recommend(user_id=f"U{user}", k=100, rules=Rules(exclude_history=False))
        scores = expected_scores("first", news, history)
        assert {one.news_id for one in answer.news} == set(scores)
        ranked = [one.score for one in answer.news]
        assert ranked == sorted(ranked, reverse=True)
        for one in answer.news:
            assert one.score == pytest.approx(scores[one.news_id], abs=1e-5)
            assert (one.title, one.published) == news[one.news_id][1:6:4]
        assert answer.history == [i for i in history if i in news][-MAX_HISTORY:]
        assert answer.unknown_history == list(dict.fromkeys(i for i in history if i not in news))
    assert live.stats().news == len(news)
    everything = live.find_news("title", 100)
    assert sorted(one.news_id for one in everything) == sorted(news)
    assert all(live.news_item(news_id)[:4] == one[:4] for news_id, one in news.items())


# the real export


def test_a_new_store_answers_as_the_export_does(served, tmp_path, monkeypatch, opened):
    monkeypatch.setattr(engine_module, "Encoders", Encoders)
    before = {path.name: path.stat().st_mtime_ns for path in served.export.iterdir()}
    live, plain = (
        opened(served.export, tmp_path / "store", threads=1),
        Recommender.load(served.export),
    )
    ids = plain.news["news_id"].to_pylist()
    for history in (ids[:3], ids[5:6], [], ["no such id", *ids[2:9]]):
        found, expected = live.recommend(history, k=6), plain.recommend(history, 6)
        assert [one.news_id for one in found.news] == expected.news_ids
        np.testing.assert_allclose([one.score for one in found.news], expected.scores, rtol=1e-5)
        assert found.unknown_history == expected.unknown_history
        ranked, ranking = (
            live.rank([*ids[4:8], "none"], history),
            plain.rank(history, [*ids[4:8], "none"]),
        )
        assert [one.news_id for one in ranked.news] == ranking.ranked_ids
        np.testing.assert_allclose(
            [one.score for one in ranked.news], ranking.ranked_scores, rtol=1e-5
        )
        assert ranked.unknown_candidates == ["none"]
    titles = ["Storm closes another port", "", "A title that nobody has written before"]
    new = [NewsItem(f"X{n}", title, "weather", "storms") for n, title in enumerate(titles)]
    plain.add_news([one.news_id for one in new], titles, ["weather"] * 3, ["storms"] * 3)
    assert live.upsert_news(new) == (3, 0, 0)
    found, expected = live.recommend(["X0", ids[0]], k=20), plain.recommend(["X0", ids[0]], 18)
    np.testing.assert_allclose([one.score for one in found.news], expected.scores, rtol=1e-4)
    placed = live.place_headline(new[0]._replace(news_id=""), ids[:2], 2)
    assert placed.near[0].news_id == "X0"
    assert placed.near[0].cosine == pytest.approx(1, abs=1e-5)
    rank = [one.news_id for one in live.recommend(ids[:2], k=20).news]
    assert (placed.rank, placed.of) == (rank.index("X0") + 1, 18)
    for place in (0, 7, 17):  # by its own vector, whatever the title
        placed = live.place_headline(
            item(0, title="another")._replace(news_id=rank[place]), ids[:2]
        )
        assert (placed.rank, placed.of, placed.near[0].news_id) == (place + 1, 17, rank[place])
    explained = live.recommend(ids[:3], k=6, rules=Rules(half_life=1), explain=True).news
    for one, why in zip(
        explained, plain.explain(ids[:3], [one.news_id for one in explained]), strict=True
    ):
        assert [news_id for news_id, _ in one.explanation.clicks] == ids[:3]
        np.testing.assert_allclose(
            [value for _, value in one.explanation.clicks], [value for _, value in why.clicks],
            atol=1e-3,
        )  # fmt: skip
    assert before == {path.name: path.stat().st_mtime_ns for path in served.export.iterdir()}


# rules and arguments


def test_a_window_counts_from_now_and_age_lowers_scores(export, opened):
    live, now = opened(export), START + timedelta(hours=10)
    live.upsert_news([item(n, published=n) for n in range(3, 10)])
    rules = Rules(max_age=4, categories=("news",), exclude=("N8",))
    answer = live.recommend(k=100, rules=rules, now=now)
    assert sorted(one.news_id for one in answer.news) == ["N6", "N7", "N9"]
    assert {one.news_id: one.age_hours for one in answer.news} == {"N6": 4, "N7": 3, "N9": 1}
    aged = live.recommend(k=100, rules=Rules(half_life=2), now=now).news
    fresh = {one.news_id: one.score for one in live.recommend(k=100).news}
    for one in aged:
        hours = 0 if one.age_hours is None else one.age_hours
        assert one.score == pytest.approx(fresh[one.news_id] - np.log(2) * hours / 2, abs=1e-5)


def test_an_explanation_adds_up_to_the_score(export, opened):
    live = opened(export)
    live.upsert_news([item(n, published=n) for n in range(3, 8)])
    history = ["N1", "none", "N3", "N4", "N0"]
    rules, now = Rules(half_life=3, exclude_history=False), START + timedelta(hours=20)
    answers = [
        live.recommend(history, k=9, rules=rules, explain=True, now=now),
        live.rank(["N2", "none", "N5"], history, explain=True),
    ]
    for one in (one for answer in answers for one in answer.news):
        why = one.explanation
        assert [news_id for news_id, _ in why.clicks] == ["N3", "N4", "N0"] == answers[0].history
        total = sum(value for _, value in why.clicks) + why.rest + why.age
        assert total == pytest.approx(one.score, abs=1e-5)
        assert (why.age < 0) == (one.age_hours is not None and one in answers[0].news)
    assert live.recommend(history, k=1).news[0].explanation is None
    assert live.recommend([], k=2, explain=True).news[0].explanation.clicks == []


def test_clicked_news_and_their_repeats_are_left_out(export, opened):
    live = opened(export)
    live.upsert_news([item(7, title="title 1"), item(8, title="another")])
    assert ids_of(live, history=["N1"]) == ["N0", "N2", "N7", "N8"]
    assert ids_of(live, history=["N1"], rules=Rules(skip_repeats=0.999)) == ["N0", "N2", "N8"]
    live.add_clicks([click(1, 2)])
    assert ids_of(live, user_id="U1") == ["N0", "N1", "N7", "N8"]
    assert len(live.recommend(["N1"], k=2).news) == 2


def test_an_empty_catalogue_answers_with_nothing(tmp_path, opened):
    live = opened(write_export(tmp_path / "empty"))
    assert live.recommend(["N1"], k=5).news == []
    assert live.rank(["N1", "N2"], []).unknown_candidates == ["N1", "N2"]
    placed = live.place_headline(item(1), [])
    assert (placed.rank, placed.of, placed.near) == (1, 0, [])
    assert live.users() == live.find_news("x") == []
    assert live.user("U1") is live.news_item("N1") is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda live: live.recommend(k=0), "k is 0; it must be a number, 1 or more"),
        (lambda live: live.recommend(k=True), "k is True"),
        (lambda live: live.recommend("N1"), "history is a str; it must be a list"),
        (lambda live: live.recommend([1]), r"history\[0\] is 1"),
        (lambda live: live.recommend([], "U1"), "Both history and user_id were given"),
        (lambda live: live.recommend(user_id=""), "user_id is empty"),
        (lambda live: live.recommend(user_id=3), "user_id is 3, a int"),
        (lambda live: live.recommend(now=datetime(2024, 1, 1)), "now is 2024-01-01T00:00:00,"),
        (lambda live: live.recommend(rules=Rules(exclude=("N1", 2))), r"exclude\[1\] is 2"),
        (lambda live: live.recommend(rules=Rules(categories=("newz",))), "'newz'. There is news"),
        (lambda live: live.rank(["N1", "N1"]), "candidates holds 'N1' twice"),
        (lambda live: live.upsert_news(item(1)), r"news\[0\] is 'N1'; it must be a NewsItem"),
        (lambda live: live.upsert_news("N1"), "news is a str; it must be a list"),
        (lambda live: live.upsert_news([item(1, "x" * 10**7)]), "10,000,000 characters"),
        (lambda live: live.upsert_news([item(1, "a\0b")]), r"news\[0\].title holds a null"),
        (lambda live: live.upsert_news([item(1, "\ud800")]), "half a character"),
        (lambda live: live.upsert_news([NewsItem("", "x")]), r"news\[0\].news_id is empty"),
        (lambda live: live.upsert_news([NewsItem("a", None)]), r"title is None, a NoneType"),
        (lambda live: live.upsert_news([NewsItem("a", "b", published=START.replace(tzinfo=None))]),
         r"published is 2024-02-29T12:00:00, which has no zone. Add one: 2024-02-29T12:00:00Z"),
        (lambda live: live.upsert_news([NewsItem("a", "b", published="noon")]), "be a datetime"),
        (lambda live: live.upsert_news([item(1), item(1, "y")]), "'N1' twice, with different"),
        (lambda live: live.add_clicks([Click("U", "N" * 300, START)]), "300 char.*; at most 256"),
        (lambda live: live.add_clicks([Click("U", "N", START.replace(tzinfo=None))]), "no zone"),
        (lambda live: live.delete_news("a\0"), "news_id holds a null"),
        (lambda live: live.find_news("x" * 20_000), "text has 20,000 characters"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_field_and_changes_nothing(shared, call, words):
    with pytest.raises(UserError, match=words):
        call(shared)
    assert (ids_of(shared), shared.stats().clicks) == (["N0", "N1", "N2"], 0)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A recommender that tests leave as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_module, "Encoders", FakeEncoders)
        export = write_export(tmp_path_factory.mktemp("shared") / "x", [item(n) for n in range(3)])
        live = LiveRecommender.open(export)
        yield live
        live.close()


def test_ids_and_titles_may_have_any_other_characters(export, opened):
    live = opened(export)
    odd = [
        "O'Neill",
        '"',
        "a; DROP TABLE news; --",
        "%",
        "\t",
        "日本",
        "🗞️",
        " ",
        "a" * 256,
        "\\",
        "N0 ",
    ]
    news = [NewsItem(text, f"{text} straße", text) for text in odd]
    assert live.upsert_news(news) == (len(odd), 0, 0)
    assert live.add_clicks([Click(text, text, START) for text in odd]) == len(odd)
    for text in odd:
        assert live.news_item(text).title == f"{text} straße"
        assert live.recommend(user_id=text, k=1).history == [text]
        assert text in [one.news_id for one in live.find_news(text, 100)]
    assert {one.news_id for one in live.find_news("STRASSE", 100)} == set(odd)
    assert all(live.delete_user(text) and live.delete_news(text) for text in odd)
    assert ids_of(live) == ["N0", "N1", "N2"]


def test_a_search_finds_words_newest_first(export, opened):
    live = opened(export)
    titles = ["Storm at sea", "After the storm", "sea level rises", "Stormy weather at sea"]
    hours = [5, 1, 9, None]
    live.upsert_news(
        [item(f"X{n}", t, published=h) for n, (t, h) in enumerate(zip(titles, hours, strict=True))]
    )
    found = [one.news_id for one in live.find_news("SEA storm")]
    assert found == ["NX0", "NX3"]  # without a time last
    assert [one.news_id for one in live.find_news("", 2)] == ["NX2", "NX0"]


# what is encoded


def test_only_a_text_that_the_model_reads_is_encoded_again(tmp_path, opened):
    live = opened(write_export(tmp_path / "export", [item(0)], fields=("title", "category")))
    assert FakeEncoders.encoded == 0  # the export's vectors are taken over
    assert live.upsert_news([item(0), item(1), item(2, title="title 1")]) == (2, 0, 1)
    assert FakeEncoders.encoded == 2
    assert live.upsert_news([item(1, published=3), item(2, subcategory="x")]) == (0, 2, 1 - 1)
    assert FakeEncoders.encoded == 4 - 1  # N2 has another title
    assert live.news_item("N1").published == START + timedelta(hours=3)
    assert live.upsert_news([item(1, category="other")]) == (0, 1, 0)
    assert live.recommend(k=9, rules=Rules(categories=("other",))).news[0].news_id == "N1"


def test_an_abstract_that_an_export_lacks_is_not_taken_for_an_empty_one(tmp_path, opened):
    news = [item(n, abstract=f"abstract {n}") for n in range(2)]
    live = opened(write_export(tmp_path / "export", news, abstracts=True))
    assert live.news_item("N0").abstract is None
    assert live.upsert_news(news[:1]) == (0, 1, 0)  # its vector was made from this abstract
    assert FakeEncoders.encoded == 0
    assert live.news_item("N0").abstract == "abstract 0"
    assert live.upsert_news([item(1, abstract="")]) == (0, 1, 0)
    assert FakeEncoders.encoded == 1
