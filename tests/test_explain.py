"""What each click adds to a score, against Shapley's formula over all sets of clicks."""

import json
import math
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.__main__ import main
from newsrec.attribution import ALL_ORDERS, PAIRS, attribute, runs
from newsrec.errors import UserError
from newsrec.evaluation.explained import explainer
from newsrec.export.graphs import ServedUserEncoder
from newsrec.model.fastformer import FastformerConfig
from newsrec.model.heads import head_of
from newsrec.model.user_encoders import UserEncoder
from newsrec.report.recommendations import reasons
from newsrec.serving import Recommender
from newsrec.serving.explain import explain, explanations
from newsrec.serving.matching import Matching

DIM, LONGEST, LATE_CLICKS = 8, 6, 2
FASTFORMER = FastformerConfig(heads=2, ffn=16, positions="recency")
MEAN = FastformerConfig(heads=2, layers=0, norm="none", pooling="mean")


def shapley(clicks, worth):
    """Shapley's formula: what a click adds to each set of the others, weighted by the sets."""
    values = []
    for click in range(clicks):
        others = [other for other in range(clicks) if other != click]
        value = 0.0
        for size in range(clicks):
            weight = math.factorial(size) * math.factorial(clicks - size - 1)
            for chosen in combinations(others, size):
                added = worth({*chosen, click}) - worth({*chosen})
                value = value + weight / math.factorial(clicks) * added
        values.append(value)
    return np.array(values)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), clicks=st.integers(0, 9))
def test_values_add_up_and_pairs_of_clicks_are_divided_exactly(seed, clicks):
    rng = np.random.default_rng(seed)
    alone, pairs = rng.normal(size=clicks), np.triu(rng.normal(size=(clicks, clicks)), 1)
    what = runs(clicks)
    number = max(math.factorial(clicks) if clicks <= ALL_ORDERS else 2 * PAIRS, 1)
    assert what.rows.shape == (number, clicks + 1)
    assert not what.kept[0].any()
    assert what.kept[-1].all()
    kept = what.kept.astype(float)
    scores = 0.5 + kept @ alone + np.einsum("rc,cd,rd->r", kept, pairs, kept)
    found = attribute(what, scores[:, None])
    np.testing.assert_allclose(found.values[0], alone + (pairs + pairs.T).sum(axis=1) / 2)
    assert found.rest == [0.5]
    any_scores = rng.normal(size=(len(kept), 2))
    found = attribute(what, any_scores)
    np.testing.assert_allclose(found.values.sum(axis=1) + found.rest, any_scores[-1])
    linear = attribute(what, (kept @ alone)[:, None])
    assert linear.exact
    np.testing.assert_allclose(linear.values[0], alone)


def model(kind, head, residual=True, gate=0.7):
    """The parts of a trained model that make users and scores, all of which count."""
    torch.manual_seed(0)
    vectors = 3 if head == "interests" else None
    encoder = UserEncoder(DIM, kind, LONGEST, residual, vectors)
    head = head_of(head, DIM, LATE_CLICKS, 3, "logsumexp", appeal=True)
    for weights in (*encoder.parameters(), *head.parameters()):
        torch.nn.init.normal_(weights, std=0.4)
    if residual:
        torch.nn.init.constant_(encoder.gate, gate)
    recommender = torch.nn.Module()
    recommender.user_encoder, recommender.head = encoder, head
    recommender.users_of = lambda history, mask: head(
        encoder(history, mask), history, mask, encoder.scale()
    )
    news = torch.cat([torch.zeros(1, DIM), torch.randn(12, DIM)])
    return SimpleNamespace(recommender=recommender.eval(), news_vectors=news)


class Served:
    """Runs the graph that an export has, one user at a time; see ``serving.sessions.Encoders``."""

    def __init__(self, module):
        recommender = module.recommender
        self.dim, self.max_history = DIM, LONGEST
        self.matching = Matching(recommender.head.settings())
        self.graph = ServedUserEncoder(recommender.user_encoder, LONGEST, recommender.head)

    def users(self, histories, news):
        longest = max(1, *map(len, histories))
        outputs = []
        for rows in histories:
            history = torch.zeros(1, longest, DIM)
            history[0, : len(rows)] = torch.from_numpy(news[np.array(rows, dtype=int)])
            with torch.no_grad():
                found = self.graph(history, torch.arange(longest)[None] < len(rows))
            outputs.append(found if isinstance(found, tuple) else (found,))
        return self.matching.users([torch.cat(part).numpy() for part in zip(*outputs, strict=True)])


def score(served, news, history, candidates):
    """The scores of one user; a row 0 in the history is a click without content."""
    users = served.users([history], news)
    products = users.real_vectors(0) @ news[candidates].T
    return users.combine(products.copy()) if len(products) > 1 else products[0]


@pytest.mark.parametrize("head", ["dot", "late", "interests"])
@pytest.mark.parametrize("residual", [True, False])
def test_values_are_shapleys_and_both_engines_agree(head, residual):
    module = model(FASTFORMER, head, residual)
    served, news = Served(module), module.news_vectors.numpy()
    candidates = [2, 9, 10, 11]
    for history in ([], [3], [4, 5], [5, 3, 5], [7, 1, 8, 2, 6, 12], [9, 3, 7, 1, 8, 2, 6, 12]):
        found = explain(served, history, news, candidates)
        again = explainer(module, LONGEST)(np.array(history), np.array(candidates))
        np.testing.assert_allclose(found.values, again.values, atol=1e-5)
        np.testing.assert_allclose(found.rest, again.rest, atol=1e-5)
        read = history[-LONGEST:]
        assert found.values.shape == (4, len(read))
        total = found.values.sum(axis=1) + found.rest
        np.testing.assert_allclose(total, score(served, news, read, candidates), atol=1e-5)
        if len(read) > ALL_ORDERS:
            assert not found.exact
            continue
        if head == "late":
            # the own vector's product is divided by runs, the mean of the largest as it is made
            own = SimpleNamespace(users=lambda *a: served.users(*a)[:1])
            vectors = served.users([read], news).vectors[0, 1:]
            products = vectors[: len(read)] @ news[candidates].T
            top = np.zeros_like(products)
            for column in range(len(candidates)):
                best = np.argsort(-products[:, column])[:LATE_CLICKS]
                top[best, column] = products[best, column] / max(1, len(best))

            def worth(kept, own=own, read=read):
                hidden = [row if i in kept else 0 for i, row in enumerate(read)]
                return own.users([hidden], news).vectors[0, 0] @ news[candidates].T
        else:
            top = 0.0

            def worth(kept, read=read):
                hidden = [row if i in kept else 0 for i, row in enumerate(read)]
                return score(served, news, hidden, candidates)

        expected = shapley(len(read), worth).reshape(len(read), 4) + top
        np.testing.assert_allclose(found.values.T, expected, atol=1e-5)


@pytest.mark.parametrize("head", ["dot", "late"])
@pytest.mark.parametrize(("kind", "residual", "gate"), [(MEAN, False, 0), (FASTFORMER, True, 0)])
def test_a_mean_of_clicks_is_divided_exactly(head, kind, residual, gate):
    module = model(kind, head, residual, gate)
    served, news = Served(module), module.news_vectors.numpy()
    recommender = module.recommender
    scale = float(recommender.user_encoder.scale())
    share = float(recommender.head.mix.sigmoid()) if head == "late" else 0.0
    change = recommender.head.change.weight.detach().numpy() if head == "late" else None
    for history in ([3], [4, 5], [7, 1, 8, 2, 6, 12]):
        found = explain(served, history, news, [9, 10])
        assert found.exact
        for values, rest, candidate in zip(found.values, found.rest, news[[9, 10]], strict=True):
            expected = np.array([(1 - share) * scale * (news[i] @ candidate) for i in history])
            expected /= len(history)
            if head == "late":
                each = [share * scale * ((news[i] + change @ news[i]) @ candidate) for i in history]
                for place in np.argsort(each)[::-1][:LATE_CLICKS]:
                    expected[place] += each[place] / min(len(history), LATE_CLICKS)
            np.testing.assert_allclose(values, expected, atol=1e-5)
            appeal = recommender.head.appeal.detach().numpy() @ candidate
            assert rest == pytest.approx(appeal, abs=1e-5)


def test_a_recommender_explains_its_scores(served):
    recommender = Recommender.load(served.export, threads=1)
    histories = [[], ["N1"], ["N404"], ["N13", "N404", "N5", "N13"], [f"N{i}" for i in range(30)]]
    for history in histories:
        ids = ["N2", "N405", "N7"]
        found = recommender.explain(history, ids)
        scores = recommender.rank(history, ids).candidate_scores
        known = [i for i in history if i in recommender.known_ids][-20:]
        for one, value in zip(found, scores, strict=True):
            assert [news_id for news_id, _ in one.clicks] == known
            total = sum(value for _, value in one.clicks) + one.rest + one.age
            assert total == pytest.approx(value, abs=1e-4)
            assert (one.method, one.age) == ("shapley" if len(known) > 1 else "exact", 0)
    assert recommender.explain(["N1"], []) == []
    with pytest.raises(UserError, match=r"news_ids holds 'N1' twice"):
        recommender.explain([], ["N1", "N1"])
    with pytest.raises(UserError, match=r"history_ids is a list of lists"):
        recommender.explain([["N1"]], ["N1"])


def test_an_age_term_is_part_of_an_explanation():
    what = runs(2)
    found = attribute(what, what.kept.sum(axis=1, keepdims=True) * np.ones((1, 2)))
    old, new = explanations(found, ["out", "N1", "N2"], np.array([-1.5, 0]))
    assert old == ([("N1", 1.0), ("N2", 1.0)], 0.0, -1.5, "exact")
    assert new.age == 0
    assert old.plain()["clicks"][1] == {"news_id": "N2", "value": 1.0}


def test_the_command_explains(capsys, served):
    command = ["recommend", str(served.export), "--history", "N1", "N404", "N5", "-k", "2"]
    main([*command, "--explain", "--json"])
    answer = json.loads(capsys.readouterr().out)
    for news in answer["news"]:
        clicks = news["explanation"]["clicks"]
        assert [click["news_id"] for click in clicks] == ["N1", "N5"]
        assert clicks[1]["title"] == "Shares fall as rates rise again"
        total = sum(click["value"] for click in clicks) + news["explanation"]["rest"]
        assert total == pytest.approx(news["score"], abs=1e-4)
    main([*command, "--explain"])
    said = capsys.readouterr().out
    assert said.count("without any click") == 2
    assert "add up to the score" in said
    main(command)
    assert "without any click" not in capsys.readouterr().out


def test_reasons_name_the_clicks_that_change_a_score_most():
    clicks = [{"title": f"t{i}", "value": v} for i, v in enumerate([0.1, -2.0, 0.5, 1.0, 0.25])]
    lines = reasons({"clicks": clicks, "rest": -1.0, "age": -0.25, "other": 1e-6})
    assert lines == ["-2.000 t1", "+1.000 t3", "+0.500 t2", "+0.350 2 other clicks",
                     "-1.000 without any click", "-0.250 for its age"]  # fmt: skip
    assert reasons({"clicks": [], "rest": 0.0}) == ["+0.000 without any click"]
    assert reasons({"clicks": clicks[:4], "rest": 0.0})[3] == "+0.100 1 other click"


def test_the_page_says_why(served):
    page = (served.dev / "report.html").read_text(encoding="utf-8")
    assert "<summary>why</summary>" in page
    assert page.count("without any click") >= 10
