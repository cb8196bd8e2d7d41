import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.evaluation import ensemble
from newsrec.evaluation.ensemble import ENSEMBLES, combine, merge_info
from newsrec.metrics import ranks

CLOSE = {"rtol": 0, "atol": 1e-9}

numbers = st.integers(-200, 200).map(lambda x: x / 8)  # few, so that ties are common
how = st.sampled_from(sorted(ENSEMBLES))


@st.composite
def ensembles(draw, elements=numbers):
    """Scores of one to three members ``[members, candidates]`` in float32, and offsets."""
    lengths = draw(st.lists(st.integers(0, 6), max_size=4))
    count, total = draw(st.integers(1, 3)), sum(lengths)
    flat = draw(st.lists(elements, min_size=count * total, max_size=count * total))
    return np.array(flat, dtype=np.float32).reshape(count, total), np.cumsum([0, *lengths])


def standard_by_loop(scores):
    if len(set(scores)) < 2:
        return [0.0] * len(scores)
    mean = math.fsum(scores) / len(scores)
    deviation = math.sqrt(math.fsum((s - mean) ** 2 for s in scores) / len(scores))
    return [(s - mean) / deviation for s in scores]


def ranks_by_loop(scores):
    return [
        1 + sum(other > s or (other == s and j < i) for j, other in enumerate(scores))
        for i, s in enumerate(scores)
    ]


def combine_by_loop(members, offsets, how):
    result = []
    for begin, end in pairwise(offsets):
        lists = [[float(s) for s in scores[begin:end]] for scores in members]
        own = [standard_by_loop(s) if how == "mean_score" else ranks_by_loop(s) for s in lists]
        sign = 1 if how == "mean_score" else -1
        result += [sign * math.fsum(column) / len(members) for column in zip(*own, strict=True)]
    return result


@given(ensembles(st.floats(-(2.0**100), 2.0**100, width=32) | numbers), how)
@settings(max_examples=200, deadline=None)
def test_any_members_agree_with_the_loop(case, how):
    members, offsets = case
    np.testing.assert_allclose(
        combine(members, offsets, how), combine_by_loop(members, offsets, how), **CLOSE
    )


@given(ensembles(), how, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_the_order_of_members_does_not_matter(case, how, rng):
    members, offsets = case
    order = list(range(len(members)))
    rng.shuffle(order)
    np.testing.assert_array_equal(
        combine(members, offsets, how), combine(members[order], offsets, how)
    )


@given(ensembles(), how, st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_one_model_several_times_gives_its_ranks(case, how, times):
    (scores, *_), offsets = case
    found = ranks(combine([scores] * times, offsets, how), offsets)
    np.testing.assert_array_equal(found, ranks(scores, offsets))


@given(ensembles(), st.data())
@settings(max_examples=200, deadline=None)
def test_mean_score_does_not_see_a_members_scale(case, data):
    members, offsets = case
    which = data.draw(st.integers(0, len(members) - 1))
    count = len(offsets) - 1
    scale = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=count, max_size=count))
    shift = data.draw(st.lists(st.floats(-1e3, 1e3), min_size=count, max_size=count))
    other = [scores.astype(np.float64) for scores in members]
    lengths = np.diff(offsets)
    other[which] = other[which] * np.repeat(scale, lengths) + np.repeat(shift, lengths)
    np.testing.assert_allclose(
        combine(other, offsets, "mean_score"), combine(members, offsets, "mean_score"), **CLOSE
    )


@given(
    ensembles(),
    st.sampled_from([np.exp, np.arctan, lambda x: 3 * x - 7, lambda x: x**3, lambda x: x / 64]),
    st.data(),
)
@settings(max_examples=200, deadline=None)
def test_mean_rank_sees_only_the_order_of_a_members_scores(case, increasing, data):
    members, offsets = case
    which = data.draw(st.integers(0, len(members) - 1))
    other = [scores.astype(np.float64) for scores in members]
    other[which] = increasing(other[which])
    np.testing.assert_array_equal(
        combine(other, offsets, "mean_rank"), combine(members, offsets, "mean_rank")
    )


@given(ensembles(), how, st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_blocks_do_not_show(case, how, block):
    members, offsets = case
    whole = combine(members, offsets, how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ensemble, "BLOCK", block)
        np.testing.assert_array_equal(combine(members, offsets, how), whole)


def test_an_impression_of_equal_scores_says_nothing():
    members = [np.full(3, 0.1, dtype=np.float32), np.array([1, 2, 3], dtype=np.float32)]
    combined = combine(members, np.array([0, 3]), "mean_score")
    np.testing.assert_allclose(combined, np.array([-1, 0, 1]) * math.sqrt(1.5) / 2, **CLOSE)


def test_opposite_members_cancel():
    members = [np.array([1, 2, 4], dtype=np.float32), np.array([4, 3, 1], dtype=np.float32)]
    offsets = np.array([0, 3])
    np.testing.assert_allclose(combine(members, offsets, "mean_score"), np.zeros(3), **CLOSE)
    assert combine(members, offsets, "mean_rank").tolist() == [-2, -2, -2]


def test_memory_is_that_of_the_result_and_a_block():
    rng = np.random.default_rng(0)
    offsets = np.arange(0, 1_000_001, 4)
    members = list(rng.random((8, 1_000_000), dtype=np.float32))
    tracemalloc.start()
    combine(members, offsets, "mean_score")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * 8 * 1_000_000  # all members' standard scores would be 8 times the result


def test_an_ensemble_says_all_that_its_members_saw():
    one = {
        "scorer": "checkpoint",
        "selected_on": "dev",
        "selected_news": "all",
        "trained_on": {"train": "9 to 13"},
        "other_data": [],
        "precision": "fp32",
        "checkpoint_sha256": "a",
    }
    two = one | {"selected_on": "last_day", "selected_news": "new"}
    two |= {"trained_on": {"train": "9 to 12"}}
    three = one | {"selected_on": None, "trained_on": {"train+dev": "9 to 14"}}
    assert merge_info([one, two, three, one], "mean_rank") == {
        "scorer": "checkpoint",
        "ensemble": "mean_rank",
        "selected_on": "dev+last_day",
        "selected_news": "all+new",
        "trained_on": {"train": "9 to 13 and 9 to 12", "train+dev": "9 to 14"},
        "other_data": [],
        "precision": "fp32",
        "checkpoint_sha256": ["a"] * 4,
    }
    assert merge_info([three, three], "mean_rank")["selected_on"] is None
    elsewhere = one | {"other_data": ["train", "dev"]}
    assert merge_info([elsewhere, elsewhere], "mean_rank")["other_data"] == ["train", "dev"]
    half = one | {"other_data": ["train"]}  # its dev is this folder's
    assert merge_info([elsewhere, half], "mean_rank")["other_data"] == ["train"]
