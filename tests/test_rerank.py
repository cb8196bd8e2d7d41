import itertools
import json
import math

import numpy as np
import pytest
from beyond_worlds import random_data

from newsrec.__main__ import main
from newsrec.data.dataset import open_mind
from newsrec.errors import UserError
from newsrec.evaluation.beyond_lists import measure, top_of
from newsrec.evaluation.rerank import TRADE_OFF, Rerank, check_vectors, trade_off
from newsrec.evaluation.results import category_codes
from newsrec.evaluation.scoring import Scored
from newsrec.metrics import impression_metrics, mind_metrics, ranks
from newsrec.report.evaluate import evaluate
from newsrec.report.trade_off import trade_off_pictures, trade_off_rows
from newsrec.reranking import pick


def calibrated(scores, categories, target, share, diversity, vectors, k):
    """Pick as ``pick`` says, one by one, each worth computed from the whole list."""
    picked = []
    while len(picked) < min(k, len(scores)):
        worths = {}
        for i in set(range(len(scores))) - set(picked):
            cosines = [
                vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j])
                for j in picked
            ]
            worth = (1 - diversity) * scores[i] - diversity * max(cosines, default=0)
            listed = [categories[j] for j in [*picked, i]]
            divergence = 0.0
            for category, p in enumerate(target):
                q = 0.99 * listed.count(category) / len(listed) + 0.01 * p
                divergence += p * math.log(p / q) if p else 0
            worths[i] = (1 - share) * worth - share * divergence
        picked.append(max(worths, key=lambda i: (worths[i], -i)))
    return picked


def test_calibration_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    for _ in range(60):
        number = int(rng.integers(1, 12))
        scores = np.sort(rng.normal(size=number))[::-1]
        categories, vectors = rng.integers(-1, 4, number), rng.normal(size=(number, 3))
        target = rng.multinomial(6, [0.5, 0.3, 0.2, 0]) / 6
        share, diversity = rng.choice([0.2, 0.5, 0.95]), rng.choice([0.0, 0.3])
        found = pick(scores, 6, vectors=vectors, categories=categories, diversity=diversity,
                     calibration=share, target=target)  # fmt: skip
        lists = [c if c >= 0 else 99 for c in categories]
        assert found == calibrated(scores, lists, target, share, diversity, vectors, 6)


def test_calibration_picks_from_a_shortlist_only_what_is_certain():
    rng = np.random.default_rng(1)
    for _ in range(100):
        scores = np.sort(rng.normal(size=30))[::-1]
        categories, target = rng.integers(0, 3, 30), np.array([0.7, 0.3, 0.0])
        options = {"calibration": 0.5, "target": target}
        whole = pick(scores, 5, categories=categories, **options)
        part = pick(
            scores[:12], 5, categories=categories[:12], left_out=float(scores[11]), **options
        )
        assert part == whole[: len(part)]
    assert pick(np.array([2.0, 1.0]), 2, categories=np.array([1, 0]), calibration=0.99,
                target=np.array([1.0, 0.0])) == [1, 0]  # fmt: skip


@pytest.fixture(scope="module")
def world():
    data, scores, vectors = random_data(50, 300, 6, unknown=0.05, largest=40)
    return data, data.split("train"), scores.astype(np.float64), vectors


def test_the_picked_news_come_first_and_the_others_as_they_were(world):
    data, split, scores, vectors = world
    rules = Rerank(per_category=2, diversity=0.3)
    changed = rules.apply(data, "train", scores, vectors)
    before, after = (ranks(values, split.candidates.offsets) for values in (scores, changed))
    names = category_codes(data)
    for row in range(50):
        shown = slice(*split.candidates.offsets[row : row + 2])
        order = np.argsort(before[shown])
        news = split.candidates.values[shown][order]
        expected = pick(scores[shown][order], 10, vectors=vectors[news], categories=names[news],
                        per_category=2, diversity=0.3)  # fmt: skip
        rest = [i for i in range(len(order)) if i not in expected]
        assert np.argsort(after[shown]).tolist() == order[[*expected, *rest]].tolist()
    some = rules.apply(data, "train", scores, vectors, np.array([3]))
    shown = slice(*split.candidates.offsets[3:5])
    np.testing.assert_array_equal(some[shown], changed[shown])
    np.testing.assert_array_equal(np.delete(some, np.r_[shown]), np.delete(scores, np.r_[shown]))


def test_each_rule_moves_the_metric_that_it_is_for(world):
    data, split, scores, vectors = world
    found = trade_off(data, "train", scores, vectors, vectors)
    assert set(found["rules"]) == set(TRADE_OFF)
    assert (
        found["impressions"]
        == impression_metrics(scores, split.labels, split.candidates.offsets).valid.sum()
    )
    metrics = mind_metrics(scores, split.labels, split.candidates.offsets)
    assert found["none"]["ndcg@10"] == pytest.approx(metrics["ndcg@10"])
    first = {"diversity": 1, "calibration": -1, "per_category": 1, "near_duplicates": -1,
             "half_life": -1}  # fmt: skip
    for rule, lines in found["rules"].items():
        values = [found["none"][lines["for"]], *(one[lines["for"]] for one in lines["measured"])]
        assert first[rule] * (values[-1] - values[0]) > 0
    strong = found["rules"]["calibration"]["measured"][-1]
    changed = Rerank(calibration=strong["value"]).apply(data, "train", scores, None)
    again = mind_metrics(changed, split.labels, split.candidates.offsets)
    assert strong["ndcg@10"] == pytest.approx(again["ndcg@10"])
    low, high = strong["ndcg@10_difference_interval"]
    assert low <= strong["ndcg@10_difference"] <= high
    rows = trade_off_rows(found)
    assert [len(lines) for _, lines in rows.values()] == [
        1 + len(values) for values, _ in TRADE_OFF.values()
    ]
    for by_age, rules in ((True, {"half_life"}), (False, set())):
        lines = trade_off(data, "train", scores, None, None, by_age=by_age)["rules"]
        assert set(lines) == {"calibration", "per_category"} | rules


def test_accuracy_is_shown_against_each_property_for_each_value(world):
    data, split, scores, vectors = world
    without = trade_off(data, "train", scores, vectors, None)
    headings, rows = trade_off_rows(without)["--diversity"]
    assert "vector\ndiversity" not in headings
    assert all(len(row) == len(headings) for row in rows)
    found = trade_off(data, "train", scores, vectors, vectors)
    curves = trade_off_pictures(found)
    assert {curve.name for curve in curves[:5]} == {
        "calibration", "category diversity", "vector diversity", "near-duplicates",
        "freshness, hours",
    }  # fmt: skip
    others = {"fragmentation", "novelty, bits", "unexpectedness", "serendipity", "coverage",
              "Gini of exposure"}  # fmt: skip
    assert {curve.name for curve in curves[5:]} == others
    picture = next(curve.picture for curve in curves if curve.name == "coverage")
    assert picture.count("<polyline") == len(TRADE_OFF)
    rule = found["rules"]["per_category"]["measured"][3]
    assert (
        f"<title>--per_category 2: nDCG@10 {rule['ndcg@10']:.4f}, {rule['coverage@10']:.3f}<"
        in (picture)
    )
    changed = Rerank(per_category=2).apply(data, "train", scores, None)
    listed, shown, alike = set(), set(), []
    names = category_codes(data)
    for begin, end in itertools.pairwise(split.candidates.offsets):
        if 0 < split.labels[begin:end].sum() < end - begin:
            news = split.candidates.values[begin:end]
            best = [news[i] for i in np.argsort(-changed[begin:end], kind="stable")[:10]]
            listed |= {n for n in best if n > 1}
            shown |= {n for n in news.tolist() if n > 1}
            pairs = list(itertools.combinations([names[n] for n in best if n > 1], 2))
            alike += [np.mean([a != b for a, b in pairs])] if pairs else []
    assert rule["coverage@10"] == pytest.approx(len(listed) / len(shown))
    assert rule["category_diversity@10"] == pytest.approx(np.mean(alike))


def test_without_a_click_to_rank_there_is_no_trade_off(mind_dir, tmp_path, caplog):
    data = open_mind(mind_dir)
    part = data.split("dev")
    nothing = part._replace(labels=np.zeros_like(part.labels))
    data = data._replace(splits=data.splits | {"dev": nothing})
    scores = np.zeros(len(part.candidates.values), np.float32)
    info = {"selected_on": None, "trained_on": {}, "precision": None}
    scored = Scored("some", data, scores, None, info)
    found = evaluate(lambda: scored, mind_dir, "dev", tmp_path / "x", measure_trade_off=True)
    assert "trade_off" not in found.metrics
    assert "dev has no clicked beside a skipped candidate: left out." in caplog.text


def test_evaluate_reports_the_new_order(mind_dir, tmp_path, capsys):
    data = open_mind(mind_dir)
    part = data.split("dev")
    rng = np.random.default_rng(0)
    scores = rng.normal(size=len(part.candidates.values)).astype(np.float32)
    vectors = rng.normal(size=(data.num_news, 5)).astype(np.float32)
    info = {"selected_on": None, "trained_on": {}, "precision": None}
    scored = Scored("some", data, scores, vectors, info, model_vectors=vectors)
    rules = Rerank(diversity=0.4, near_duplicates=0.8)
    found = evaluate(lambda: scored, mind_dir, "dev", tmp_path / "x", baselines=False,
                     rerank=rules, measure_trade_off=True)  # fmt: skip
    changed = rules.apply(data, "dev", scores, vectors)
    expected = mind_metrics(changed, part.labels, part.candidates.offsets)
    assert found.metrics["auc"] == expected["auc"]
    assert found.metrics["rerank"] == {"diversity": 0.4, "near_duplicates": 0.8}
    assert json.loads(json.dumps(found.metrics, allow_nan=False)) == found.metrics
    top = top_of(part, ranks(changed, part.candidates.offsets))
    row = measure(data, "dev", {"": top}, vectors)[""][7]
    assert found.metrics["beyond"]["metrics"]["vector_diversity@10"]["value"] == pytest.approx(
        np.nanmean(row)
    )
    page = (tmp_path / "x" / "report.html").read_text()
    assert ">Trade-off</h2>" in page
    assert "each option alone, without this re-ranking." in page
    assert "are re-ranked: no near-duplicates (cosine of at least 0.8), diversity 0.4." in page


def test_a_baseline_can_be_re_ranked_without_vectors(mind_dir, tmp_path, capsys):
    base = ["evaluate", "--scorer=recent", f"--data.root={mind_dir}", "--baselines=false",
            "--trainer.accelerator=cpu"]  # fmt: skip
    main([*base, "--split=dev", f"--output={tmp_path / 'plain'}"])
    main([*base, "--split=dev", f"--output={tmp_path / 'new'}", "--calibration=.9",
          "--per_category=1", "--trade_off=true"])  # fmt: skip
    said = capsys.readouterr().out
    assert "re-ranked: at most 1 of a category, calibration 0.9." in said
    assert "Trade-off: --calibration" in said
    assert "Trade-off: --half_life" not in said
    main(["compare", str(tmp_path / "plain"), str(tmp_path / "new")])
    said = " ".join(capsys.readouterr().out.split())
    assert "First news: A not re-ranked, B at most 1 of a category, calibration 0.9." in said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0, None, None, None), "--per_category is 0; it is a number of news"),
        ((None, 1.5, None, None), "--near_duplicates is 1.5; it is a cosine"),
        ((None, None, 1.1, None), "--diversity is 1.1; it is a number from 0 to 1"),
        ((None, None, None, math.nan), "--calibration is nan; it is a number from 0 to 1"),
    ],
)
def test_rules_without_a_meaning_are_refused(values, said):
    with pytest.raises(UserError, match=said):
        Rerank.of(*values)


def test_vectors_are_those_of_one_model():
    assert Rerank.of(None, None, None, None) is None
    assert Rerank.of(None, None, 0.0, 0.0) is None
    with pytest.raises(
        UserError, match="--diversity compares the news vectors of a model, and the"
    ):
        check_vectors(Rerank(diversity=0.1), "recent", 0)
    with pytest.raises(UserError, match=r"--near_duplicates .* --ckpt_path has 2 checkpoints"):
        check_vectors(Rerank(near_duplicates=0.1), None, 2)
    check_vectors(Rerank(per_category=1, calibration=1), "recent", 0)
