"""Candidates that repeat a click, against a loop over pairs of a candidate and a click."""

import numpy as np
import pytest
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.data import FIRST_NEWS
from newsrec.data.dataset import open_mind
from newsrec.errors import UserError
from newsrec.evaluation import scoring
from newsrec.evaluation.repeats import Repeats
from newsrec.report.notes import notes
from newsrec.reranking import lower, repeats
from newsrec.serving import Recommender


def cosine(a, b):
    lengths = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / lengths) if lengths else 0.0


def by_loop(news, candidates, clicks, threshold):
    return [any(cosine(news[c], news[h]) >= threshold for h in clicks) for c in candidates]


# rows 2 and 3 have a cosine of .8, 4 is as 2 but longer, 5 is against it, 6 is across it
NEWS = np.array([[0, 0], [1, 1], [1, 0], [4, 3], [5, 0], [-1, 0], [0, 2]], dtype=np.float32)


def test_repeats_by_hand():
    everything = np.arange(2, 7)
    assert repeats(NEWS, everything, [2], 0.8).tolist() == [True, True, True, False, False]
    assert repeats(NEWS, everything, [2], 0.81).tolist() == [True, False, True, False, False]
    assert repeats(NEWS, everything, [2], 1).tolist() == [True, False, True, False, False]
    assert repeats(NEWS, everything, [5, 6], 0.6).tolist() == [False, True, False, True, True]
    assert repeats(NEWS, everything, [], 0.1).tolist() == [False] * 5
    assert repeats(NEWS, everything, [0], 0.1).tolist() == [False] * 5  # zeros are like nothing
    assert repeats(NEWS, np.array([], dtype=int), [2], 0.1).tolist() == []


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1), st.integers(1, 9))
def test_repeats_are_the_loop_over_pairs(seed, threshold, at_once):
    rng = np.random.default_rng(seed)
    news = rng.normal(size=(9, 3)).astype(np.float32)
    candidates, clicks = rng.integers(0, 9, 6), rng.integers(0, 9, rng.integers(0, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("newsrec.reranking.NEWS_AT_ONCE", at_once)
        found = repeats(news, candidates, clicks, threshold)
    exact = news.astype(np.float64)
    near = [abs(cosine(exact[c], exact[h]) - threshold) < 1e-5 for c in candidates for h in clicks]
    if not any(near):
        assert found.tolist() == by_loop(exact, candidates, clicks, threshold)


def test_a_penalty_is_subtracted_and_the_filter_ranks_last_in_the_same_order():
    scores = np.array([3.0, 1.0, 2.0, 2.5])
    repeated = np.array([True, False, False, True])
    assert lower(scores, repeated, 0.75).tolist() == [2.25, 1.0, 2.0, 1.75]
    assert (-lower(scores, repeated, None)).argsort().tolist() == [2, 1, 0, 3]
    assert lower(scores, ~np.ones(4, bool), None).tolist() == scores.tolist()
    everything = lower(scores, np.ones(4, bool), None)
    assert (-everything).argsort().tolist() == (-scores).argsort().tolist()
    assert lower(scores[:0], repeated[:0], None).tolist() == []


@pytest.mark.parametrize("penalty", [None, 0.5])
def test_a_split_is_lowered_impression_by_impression(mind_dir, penalty):
    data = open_mind(mind_dir)
    rng = np.random.default_rng(0)
    news = rng.normal(size=(data.num_news, 3)).astype(np.float32)
    for split in data.splits.values():
        scores = rng.normal(size=len(split.candidates.values)).astype(np.float32)
        rule = Repeats(0.7, penalty)
        repeated = rule.find(split, news)
        found = rule.apply(scores, repeated, split.candidates.offsets)
        expected, total = [], 0
        for i, history in enumerate(split.history):
            part = slice(split.candidates.offsets[i], split.candidates.offsets[i + 1])
            begin, end = split.histories.offsets[history : history + 2]
            rows = split.candidates.values[part]
            is_repeat = by_loop(news, rows, split.histories.values[begin:end], 0.7)
            is_repeat = [r and row >= FIRST_NEWS for r, row in zip(is_repeat, rows, strict=True)]
            total += sum(is_repeat)
            own = scores[part].astype(np.float64)
            less = own.max() - own.min() + 1 if penalty is None else penalty
            expected += [s - less * r for s, r in zip(own, is_repeat, strict=True)]
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert repeated.sum() == total > 0


def test_an_ensemble_lowers_what_half_of_its_models_find(mind_dir):
    data = open_mind(mind_dir)
    offsets = data.split("dev").candidates.offsets
    rng = np.random.default_rng(0)
    info = {"selected_on": "dev", "selected_news": "all", "trained_on": {}, "other_data": []}
    masks = rng.random((4, offsets[-1])) < 0.4
    members = [
        scoring.Scored(str(i), data, rng.normal(size=offsets[-1]), None,
                       info | {"checkpoint_sha256": str(i)}, mask)
        for i, mask in enumerate(masks)
    ]  # fmt: skip
    combined = scoring._combined(members, [], "dev", "mean_rank")
    expected = masks.sum(axis=0) >= 2
    assert combined.repeated.tolist() == expected.tolist()
    found = scoring._lowered(combined, "dev", Repeats(0.9, 2.0))
    np.testing.assert_allclose(found.scores, combined.scores - 2.0 * expected)
    assert found.info["repeats"]["candidates"] == expected.sum()
    assert scoring._combined([m._replace(repeated=None) for m in members], [], "dev",
                             "mean_rank").repeated is None  # fmt: skip


@pytest.mark.parametrize(
    ("threshold", "penalty", "said"),
    [
        (None, 2.0, "--repeat_penalty is 2.0, but --repeat_threshold is not set"),
        (0.0, None, "--repeat_threshold is 0.0; it is a cosine, above 0 and up to 1"),
        (1.5, None, "--repeat_threshold is 1.5"),
        (float("nan"), None, "--repeat_threshold is nan"),
        (0.9, -1.0, "--repeat_penalty is -1.0; it must be above 0"),
        (0.9, float("inf"), "--repeat_penalty is inf"),
    ],
)
def test_options_without_a_meaning_are_refused(threshold, penalty, said):
    with pytest.raises(UserError, match=said):
        Repeats.of(threshold, penalty)


def test_no_options_are_no_repeats_and_a_note_says_what_was_done():
    assert Repeats.of(None, None) is None
    metrics = {"split": "dev", "trained_on": {}, "selected_on": None}
    for penalty, number, said in (
        (None, 1200, "1,200 candidates repeat a click (cosine of at least 0.9), ranked la"),
        (0.5, 3, "3 candidates repeat a click (cosine of at least 0.9), scored 0.5 low"),
    ):
        (line,) = notes(metrics | {"repeats": Repeats.of(0.9, penalty).described(number)})
        assert line.startswith(said)


def test_commands_refuse_repeats_where_they_have_no_meaning(capsys, served):
    said = refused(capsys, "evaluate", "--scorer=recent", "--repeat_threshold=0.9",
                   "--data.root=x", "--output=y", "--split=dev")  # fmt: skip
    assert "the baseline recent has none" in said
    said = refused(capsys, "recommend", served.export, "--candidates", "N1", "--skip_repeats=0.9")
    assert "either --candidates, which are all ranked, or --skip_repeats" in said
    said = refused(capsys, "recommend", served.export, "--skip_repeats=2")
    assert "skip_repeats is 2.0; it is a cosine" in said


def test_a_recommender_leaves_out_what_repeats_a_click(served):
    recommender = Recommender.load(served.export, threads=1)
    ids, vectors = recommender.news["news_id"].to_pylist(), recommender.news_vectors
    row_of = {news_id: row + FIRST_NEWS for row, news_id in enumerate(ids)}
    everything = len(ids)
    histories = [[], ["N1"], ["N13", "N404", "N5", "N13"]]
    for threshold in (0.3, 0.6, 1.0):
        found = recommender.recommend_many(
            histories, everything, exclude_history=False, skip_repeats=threshold
        )
        for history, one in zip(histories, found, strict=True):
            clicks = [row_of[i] for i in history if i in row_of]
            rows = [row_of[i] for i in ids]
            same = by_loop(vectors, rows, clicks, threshold - 1e-6)
            left = {i for i, out in zip(ids, same, strict=True) if not out}
            assert set(one.news_ids) == left
            alone = recommender.recommend(
                history, everything, exclude_history=False, skip_repeats=threshold
            )
            assert alone.news_ids == one.news_ids
    whole = recommender.recommend(histories[2], everything)
    some = recommender.recommend(histories[2], everything, skip_repeats=0.6)
    assert some.news_ids == [i for i in whole.news_ids if i in set(some.news_ids)]
    with pytest.raises(UserError, match=r"skip_repeats is '1'; give a cosine"):
        recommender.recommend([], skip_repeats="1")
