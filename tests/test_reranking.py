"""Age, window, categories, near-duplicates and diversity, each against a plain loop."""

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.__main__ import main
from newsrec.data import FIRST_NEWS
from newsrec.errors import UserError
from newsrec.reranking import age_term, in_window, pick
from newsrec.serving import Recommender
from newsrec.serving import rules as module
from newsrec.serving.rules import Rules, choose

CORNERS = np.array([[1, 0, 0, 0], [0, 2, 0, 0], [-1, 0, 0, 0], [1, 1, 1, 1], [-1, 1, 1, -1],
                    [0, 0, 0, 0]], np.float32)  # fmt: skip
"""Vectors whose cosines are exact in float32: 0, 1/2, 1 or against them; zeros are like nothing."""


def cosine(a, b):
    lengths = math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def plainly(scores, vectors, categories, ages, rules, k, allowed):
    """The slow form: score all news anew before each pick."""
    lowered, chosen = {}, []
    for row, score in enumerate(scores):
        age = ages[row]
        fresh = rules.max_age is None or age <= rules.max_age
        if allowed[row] and fresh and score > -math.inf:
            old = rules.half_life is not None and age > 0
            term = math.log(2) * age / rules.half_life if old else 0.0
            lowered[row] = np.float32(float(score) - term)
    while len(chosen) < k:
        best, worth_of_best = None, -math.inf
        for row in sorted(lowered, key=lambda row: -lowered[row]):
            if row in chosen:
                continue
            same = sum(categories[row] == categories[other] for other in chosen)
            if rules.per_category and categories[row] >= 0 and same >= rules.per_category:
                continue
            near = [cosine(vectors[row], vectors[other]) for other in chosen]
            if rules.near_duplicates and any(c >= rules.near_duplicates - 1e-6 for c in near):
                continue
            worth = (1 - rules.diversity) * float(lowered[row])
            worth -= rules.diversity * max(near, default=0.0)
            if worth > worth_of_best:
                best, worth_of_best = row, worth
        if best is None:
            break
        chosen.append(best)
    return chosen, [lowered[row] for row in chosen]


RULES = st.builds(
    Rules,
    max_age=st.none() | st.sampled_from([1.0, 4.0]),
    half_life=st.none() | st.sampled_from([1.0, 24.0]),
    per_category=st.none() | st.integers(1, 3),
    near_duplicates=st.none() | st.sampled_from([0.5, 1.0]),
    diversity=st.sampled_from([0.0, 0.25, 0.75, 1.0]),
)


@settings(max_examples=200, deadline=None)
@given(rules=RULES, seed=st.integers(0, 2**32 - 1), number=st.integers(1, 30))
def test_the_shortlist_gives_what_a_loop_over_all_news_gives(rules, seed, number):
    rng = np.random.default_rng(seed)
    scores = rng.choice(np.float32([-math.inf, -2, 0, 0.25, 0.5, 1, 8]), number)
    vectors = CORNERS[rng.integers(0, len(CORNERS), number)]
    categories = rng.integers(-1, 3, number)
    ages = rng.choice([math.nan, -1, 0, 1, 2.5, 4, 48], number)
    allowed = rng.random(number) < 0.8
    k = int(rng.integers(1, 1 + min(number, 10)))
    with pytest.MonkeyPatch.context() as patch:  # a shortlist that often has to grow
        patch.setattr(module, "SHORTLIST", rng.choice([1, 5, 64]))
        patch.setattr(module, "SHORTLIST_PER_RESULT", 1)
        patch.setattr(module, "GROWTH", 2)
        rows, found = choose(scores, vectors, categories, ages, rules, k, allowed)
    expected, lowered = plainly(scores, vectors, categories, ages, rules, k, allowed)
    assert rows.tolist() == expected
    np.testing.assert_allclose(found, lowered, rtol=1e-6)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    number=st.integers(2, 300),
    spread=st.sampled_from([0.1, 1.0, 10.0]),
    rules=RULES,
    calibration=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_the_shortlist_gives_what_picking_from_all_news_gives(
    seed, number, spread, rules, calibration
):
    rules = replace(rules, calibration=calibration)
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(number, 8)).astype(np.float32)
    scores = (spread * vectors @ rng.normal(size=8)).astype(np.float32)
    categories, ages = rng.integers(-1, 4, number), rng.exponential(8, number)
    k = int(rng.integers(1, min(number, 30)))
    read = rng.integers(-1, 6, rng.integers(0, 5))  # categories of no news, and no clicks, too
    found = choose(scores, vectors, categories, ages, rules, k, read=read)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHORTLIST", number)
        whole = choose(scores, vectors, categories, ages, rules, k, read=read)
    np.testing.assert_array_equal(found.rows, whole.rows)


@settings(max_examples=200, deadline=None)
@given(
    ages=st.lists(st.sampled_from([math.nan, -3.0, 0.0, 0.5, 24.0, 1e6]), max_size=8),
    half_life=st.floats(0.01, 1e4),
    max_age=st.floats(0.1, 1e6),
)
def test_age_halves_the_odds_and_ends_the_window(ages, half_life, max_age):
    term, within = age_term(np.array(ages), half_life), in_window(np.array(ages), max_age)
    for age, one, kept in zip(ages, term, within, strict=True):
        assert one == pytest.approx(-math.log(2) * age / half_life if age > 0 else 0.0)
        assert math.copysign(1, one) == 1 or one < 0  # no -0 in an answer
        assert kept == (not math.isnan(age) and age <= max_age)
    assert math.exp(age_term(np.array([half_life]), half_life)[0]) == pytest.approx(0.5)


def test_picking_by_hand():
    scores = np.array([3.0, 2.9, 2.0, 1.0])
    vectors = np.array([[1, 0], [2, 0], [0, 1], [-1, 0]], np.float32)
    assert pick(scores, 9) == [0, 1, 2, 3]
    assert pick(scores, 9, vectors=vectors, near_duplicates=1) == [0, 2, 3]
    assert pick(scores, 2, categories=np.array([5, 5, 5, 7]), per_category=1) == [0, 3]
    assert pick(scores, 9, categories=np.array([-1, -1, 5, 5]), per_category=1) == [0, 1, 2]
    # 1.45 - .5, 1 - 0, .5 + .5: the third and fourth are equal, and the third comes first
    assert pick(scores, 2, vectors=vectors, diversity=0.5) == [0, 2]
    assert pick(scores, 4, vectors=vectors, diversity=1) == [0, 3, 2, 1]
    # news below 2.5 that are not here could be better than the third
    assert pick(scores[:2], 2, left_out=2.5) == [0, 1]
    assert pick(scores[:2], 2, vectors=vectors[:2], near_duplicates=1, left_out=2.5) == [0]
    assert pick(scores[:2], 2, vectors=vectors[:2], diversity=0.5, left_out=2.5) == [0]
    assert pick(np.array([]), 3) == pick(np.array([-np.inf, -np.inf]), 3) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_age": 0}, "max_age is 0; it is a number of hours"),
        ({"half_life": math.inf}, "half_life is inf; it is a number of hours"),
        ({"half_life": "1"}, "half_life is '1'; it is a number of hours"),
        ({"per_category": 0}, "per_category is 0; it is a number of news"),
        ({"per_category": 1.5}, "per_category is 1.5; it is a number of news"),
        ({"per_category": True}, "per_category is True; it is a number of news"),
        ({"near_duplicates": 1.5}, "near_duplicates is 1.5; it is a cosine"),
        ({"skip_repeats": 0}, "skip_repeats is 0; it is a cosine"),
        ({"diversity": 1.1}, "diversity is 1.1; it is a number from 0 to 1"),
        ({"calibration": -0.1}, "calibration is -0.1; it is a number from 0 to 1"),
        ({"diversity": math.nan}, "diversity is nan; it is a number from 0 to 1"),
    ],
)
def test_rules_without_a_meaning_are_refused(values, said):
    with pytest.raises(UserError, match=said):
        Rules(**values)


def test_a_recommender_applies_the_rules_to_each_user(served):
    recommender = Recommender.load(served.export, threads=1)
    ids, vectors = recommender.news["news_id"].to_pylist(), recommender.news_vectors[FIRST_NEWS:]
    names = recommender.news["category"].to_pylist()
    codes = np.array([sorted(set(names)).index(name) for name in names])
    histories = [[], ["N1"], ["N13", "N404", "N5", "N13"]]
    given = {"per_category": 2, "near_duplicates": 0.9, "diversity": 0.3}
    for values in (given, *({name: value} for name, value in given.items())):
        found = recommender.recommend_many(histories, 6, **values)
        for history, one in zip(histories, found, strict=True):
            ranking = recommender.rank(history, ids)
            allowed = np.array([news_id not in history for news_id in ids])
            best, scores = plainly(ranking.candidate_scores, vectors, codes, [0.0] * len(ids),
                                   Rules(**values), 6, allowed)  # fmt: skip
            assert one.news_ids == [ids[row] for row in best]
            np.testing.assert_allclose(one.scores, scores, atol=1e-5)
            assert recommender.recommend(history, 6, **values).news_ids == one.news_ids
    rules = Rules(calibration=0.9)
    calibrated = recommender.recommend_many(histories, 6, calibration=0.9)
    for history, one in zip(histories, calibrated, strict=True):
        scores = recommender.rank(history, ids).candidate_scores
        allowed = np.array([news_id not in history for news_id in ids])
        read = codes[[ids.index(news_id) for news_id in history if news_id in ids]]
        expected = choose(scores, vectors, codes, None, rules, 6, allowed, read)
        assert one.news_ids == [ids[row] for row in expected.rows]
    assert calibrated[2].news_ids != recommender.recommend(histories[2], 6).news_ids
    with pytest.raises(UserError, match="diversity is 2; it is a number from 0 to 1"):
        recommender.recommend([], diversity=2)


def test_the_command_applies_the_rules_and_refuses_them_with_candidates(capsys, served):
    main(["recommend", str(served.export), "--history", "N1", "-k", "4", "--json",
          "--per_category=1", "--near_duplicates=0.95", "--diversity=0.5",
          "--calibration=.1"])  # fmt: skip
    found = [news["news_id"] for news in json.loads(capsys.readouterr().out)["news"]]
    recommender = Recommender.load(served.export, threads=1)
    values = {"per_category": 1, "near_duplicates": 0.95, "diversity": 0.5, "calibration": 0.1}
    assert found == recommender.recommend(["N1"], 4, **values).news_ids
    for option in (
        *("--per_category=1", "--near_duplicates=0.9"),
        *("--diversity=0", "--calibration=0"),
    ):
        said = refused(capsys, "recommend", served.export, "--candidates", "N1", option)
        assert f"either --candidates, which are all ranked, or {option.split('=')[0]}." in said
    said = refused(capsys, "recommend", served.export, "--per_category=0")
    assert "per_category is 0; it is a number of news, 1 or more" in said


def test_older_news_fall_as_the_times_of_a_file_say(capsys, served, tmp_path):
    recommender = Recommender.load(served.export, threads=1)
    ids = recommender.news["news_id"].to_pylist()
    plain = recommender.rank(["N1"], ids)
    rng = np.random.default_rng(0)
    ages = dict(zip(ids[::2], rng.uniform(0, 60, len(ids[::2])), strict=True))
    lowered = {
        news_id: score - math.log(2) * ages.get(news_id, 0) / 12
        for news_id, score in zip(ids, plain.candidate_scores, strict=True)
        if news_id != "N1"
    }
    best = sorted(lowered, key=lambda news_id: -lowered[news_id])
    found = recommender.recommend(["N1"], 5, half_life=12, ages=ages)
    assert found.news_ids == best[:5]
    np.testing.assert_allclose(found.scores, [lowered[n] for n in best[:5]], atol=1e-5)
    young = [n for n in best if ages.get(n, 99) <= 30]
    both = {"half_life": 12.0, "max_age": 30.0}
    assert recommender.recommend(["N1"], 5, **both, ages=ages).news_ids == young[:5]
    start = datetime(2019, 11, 15, 12, tzinfo=UTC)
    times = [start - timedelta(hours=ages[n]) if n in ages else None for n in ids]
    file = tmp_path / "times.parquet"
    pq.write_table(pa.table({"news_id": ids, "published": times}), file)
    main(["recommend", str(served.export), "--history", "N1", "-k5", "--json", "--explain",
          "--half_life=12", f"--published={file}", "--at=2019-11-15T12:00"])  # fmt: skip
    news = json.loads(capsys.readouterr().out)["news"]
    assert [one["news_id"] for one in news] == best[:5]
    for one in news:
        why = one["explanation"]
        parts = [why["rest"], why["age"], *(click["value"] for click in why["clicks"])]
        assert sum(parts) == pytest.approx(one["score"], abs=1e-4)
    assert any(one["explanation"]["age"] < 0 for one in news)
    main(["recommend", str(served.export), "--max_age=.001", f"--published={file}"])
    assert capsys.readouterr() == ("", "These options allow no news item.\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--half_life=5"], "--half_life needs the times of the news. Add --published FILE."),
        (["--published=x"], "--published is only for --half_life and --max_age. Leave it out"),
        (["--at=2019-11-15"], "--at is only for --half_life and --max_age."),
        (["--max_age=5", "--published=none.parquet"], "none.parquet: there is no such file."),
        (["--max_age=5", f"--published={__file__}"], "has no times of news. It needs to be"),
        (["--max_age=5", "--published=x", "--at=noon"], "--at is 'noon'; give a time such as"),
        (["--candidates", "N1", "--half_life=5"], "Give either --candidates, which are all"),
    ],
)
def test_ages_without_times_are_refused(capsys, served, options, said):
    assert said in refused(capsys, "recommend", served.export, *options)


@pytest.mark.parametrize(
    ("ids", "times", "said"),
    [
        (["N1"], pa.array([2**62], pa.timestamp("us")), "not a time such as"),
        (["N1"], pa.nulls(1, pa.timestamp("us")), "has no times of news. It needs to be"),
        (["other"], pa.array([0], pa.timestamp("us")), "has no time of a news item of"),
    ],
)
def test_a_file_without_a_time_that_counts_is_refused(tmp_path, capsys, served, ids, times, said):
    file = tmp_path / "times.parquet"
    pq.write_table(pa.table({"news_id": ids, "published": times}), file)
    options = ["--half_life=5", f"--published={file}"]
    assert said in refused(capsys, "recommend", served.export, *options)


def test_times_that_cannot_be_read_are_refused(tmp_path, capsys, served):
    said = refused(capsys, "recommend", served.export, "--max_age=5", f"--published={tmp_path}")
    assert f"{tmp_path} is a folder. Name Parquet" in said
    file = tmp_path / "times.parquet"
    ids = [f"N{number}" for number in range(100)]
    pq.write_table(pa.table({"news_id": ids, "published": range(100)}), file)
    content = bytearray(file.read_bytes())
    content[40:80] = b"\xff" * 40
    file.write_bytes(content)
    said = refused(capsys, "recommend", served.export, "--max_age=5", f"--published={file}")
    assert f"{file} cannot be read: " in said


def test_a_rule_for_age_needs_ages(served):
    recommender = Recommender.load(served.export, threads=1)
    with pytest.raises(UserError, match="max_age is given, but no news has an age"):
        recommender.recommend(["N1"], 3, max_age=4)
    with pytest.raises(UserError, match="ages has values that are no numbers"):
        recommender.recommend(["N1"], 3, half_life=4, ages={"N2": "old"})


def test_a_tiny_half_life_leaves_news_of_age_0_as_they_are():
    term = age_term(np.array([0.0, 1.0, np.nan]), 5e-324)
    assert term.tolist() == [0.0, pytest.approx(-1e30 * math.log(2)), 0.0]
    assert np.isfinite(term.astype(np.float32)).all()
