import doctest
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import docs_block
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from newsrec import metrics
from newsrec.metrics import (
    METRICS,
    category_entropy,
    impression_metrics,
    mind_metrics,
    ranks,
)

CLOSE = {"rtol": 0, "atol": 1e-12}


def rank_by_loop(scores):
    """Rank one impression's candidates: highest first, equal scores as they stand."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    rank = [0] * len(scores)
    for place, i in enumerate(order, start=1):
        rank[i] = place
    return rank


def dcg(ranked, k):
    ranked = np.asarray(ranked, dtype=float)[:k]
    return float(np.sum((2**ranked - 1) / np.log2(np.arange(len(ranked)) + 2)))


def evaluate_by_loop(scores, labels):
    """MIND's evaluator on one impression, fed with 1 / rank as a submission is."""
    rank = rank_by_loop(scores)
    submitted = [1 / r for r in rank]
    ranked = [label for _, label in sorted(zip(rank, labels, strict=True))]
    reciprocal = [label / place for place, label in enumerate(ranked, start=1)]
    ideal = sorted(labels, reverse=True)
    return [
        roc_auc_score(labels, submitted),
        sum(reciprocal) / sum(labels),
        dcg(ranked, 5) / dcg(ideal, 5),
        dcg(ranked, 10) / dcg(ideal, 10),
    ]


def all_by_loop(scores, labels, offsets):
    """Evaluate each impression that has a click and a skip; others are None."""
    values = []
    for start, end in pairwise(offsets):
        mine = [int(label) for label in labels[start:end]]
        evaluable = 0 < sum(mine) < len(mine)
        values.append(evaluate_by_loop(list(scores[start:end]), mine) if evaluable else None)
    return values


def assert_agrees_with_loop(scores, labels, offsets):
    as_numbers = scores.double().tolist() if isinstance(scores, torch.Tensor) else scores.tolist()
    expected = all_by_loop(as_numbers, list(labels), [int(o) for o in offsets])
    result = impression_metrics(scores, labels, offsets)
    assert result.valid.tolist() == [value is not None for value in expected]
    found = [value for value in expected if value is not None]
    if found:
        np.testing.assert_allclose(result.values[:, result.valid].T, found, **CLOSE)
        means = mind_metrics(scores, labels, offsets)
        np.testing.assert_allclose([means[m] for m in METRICS], np.mean(found, axis=0), **CLOSE)
    assert np.isnan(result.values[:, ~result.valid]).all()
    bounds = list(pairwise(offsets))
    rank = ranks(scores, offsets)
    assert rank.dtype == np.int32
    assert rank.tolist() == [r for s, e in bounds for r in rank_by_loop(as_numbers[s:e])]
    assert result.tied.tolist() == [len(set(as_numbers[s:e])) < e - s for s, e in bounds]


def random_impressions(rng, number, longest=30):
    """Return labels and offsets; some lists are empty, of one candidate or of one class."""
    lengths = rng.integers(0, longest, number)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = (rng.random(offsets[-1]) < np.repeat(rng.random(number), lengths)).astype(np.int8)
    return labels, offsets


def test_the_metrics_of_one_impression_by_hand():
    # ranks: clicked 1st and 3rd of four
    result = mind_metrics([-0.5, -1.0, -2.0, -3.0], [1, 0, 1, 0], [0, 4])
    assert result["auc"] == 3 / 4  # of four pairs of click and skip, one is the wrong way round
    assert result["mrr"] == (1 + 1 / 3) / 2
    ideal = 1 + 1 / np.log2(3)
    assert result["ndcg@5"] == pytest.approx((1 + 1 / 2) / ideal, abs=1e-15)
    assert result["ndcg@10"] == result["ndcg@5"]


def test_ndcg_stops_at_its_depth():
    scores, labels = -np.arange(12.0), np.zeros(12, dtype=int)
    labels[[5, 11]] = 1  # ranks 6 and 12
    result = mind_metrics(scores, labels, [0, 12])
    assert result["ndcg@5"] == 0
    assert result["ndcg@10"] == pytest.approx(1 / np.log2(7) / (1 + 1 / np.log2(3)), abs=1e-15)


def test_equal_scores_rank_in_the_order_of_the_file():
    assert ranks([1, 2, 1, 2, 3, 3], [0, 4, 6]).tolist() == [3, 1, 4, 2, 1, 2]
    result = mind_metrics([0, 0, 0, 0], [0, 1, 1, 0], [0, 2, 4])
    assert result["auc"] == 0.5  # 0 where the skip stands first, 1 where the click does
    assert result["tied"] == 2


def test_a_click_with_a_negative_score_counts():
    assert mind_metrics([-2.0, -1.0], [0, 1], [0, 2])["mrr"] == 1


def test_users_are_not_compared_with_each_other():
    # every score of the first impression is above every score of the second
    assert mind_metrics([9, 8, 2, 1], [1, 0, 1, 0], [0, 2, 4])["auc"] == 1


def test_impressions_of_one_class_are_left_out_of_all_four_and_counted():
    scores = [3, 2, 1, 5, 4, 7, 8, 9]
    labels = [1, 0, 0, 1, 1, 0, 0, 1]
    result = mind_metrics(scores, labels, [0, 3, 5, 7, 7, 8])
    counts = {name: result[name] for name in ("impressions", "evaluated", "single_class", "tied")}
    assert counts == {"impressions": 5, "evaluated": 1, "single_class": 4, "tied": 0}
    assert [result[name] for name in METRICS] == [1, 1, 1, 1]


def test_a_perfect_and_a_reversed_order_are_the_two_ends():
    labels, offsets = [1, 1, 0, 0, 0], [0, 5]
    assert mind_metrics([5, 4, 3, 2, 1], labels, offsets)["auc"] == 1
    assert mind_metrics([1, 2, 3, 4, 5], labels, offsets)["auc"] == 0


@pytest.mark.parametrize("offsets", [[0], [0, 0, 0]])
def test_nothing_to_evaluate_gives_nan(offsets):
    result = mind_metrics([], [], offsets)
    assert result["impressions"] == result["single_class"] == len(offsets) - 1
    assert all(np.isnan(result[name]) for name in METRICS)
    assert ranks([], offsets).tolist() == []


def test_the_example_in_the_docstring_holds():
    assert doctest.testmod(metrics).attempted == 1
    assert doctest.testmod(metrics).failed == 0


def test_the_example_in_the_docs_prints_what_it_says(capsys):
    example = docs_block("evaluate.md", "from newsrec.metrics")
    exec(example, {})
    assert capsys.readouterr().out.split() == re.findall(r"print\(.*\)  # (.*)", example)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "int32", "int64", "bool"])
def test_numpy_scores_agree_with_the_loop(kind, seed):
    rng = np.random.default_rng(seed)
    labels, offsets = random_impressions(rng, 60)
    scores = rng.normal(0, 3, offsets[-1])
    scores[rng.random(len(scores)) < 0.3] = rng.integers(-2, 3)  # ties
    assert_agrees_with_loop(scores.astype(kind), labels, offsets)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64", "int64"])
def test_torch_scores_agree_with_the_loop(kind):
    rng = np.random.default_rng(7)
    labels, offsets = random_impressions(rng, 60)
    scores = torch.from_numpy(rng.normal(0, 3, offsets[-1])).to(getattr(torch, kind))
    scores.requires_grad_(scores.is_floating_point())
    labels, offsets = torch.from_numpy(labels).bool(), torch.from_numpy(offsets).int()
    assert_agrees_with_loop(scores, labels, offsets)


numbers = st.floats(width=32, allow_nan=False) | st.sampled_from(
    [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, 1e-45, -1e-45, 3e38, -3e38]
)
impressions = st.lists(
    st.lists(st.tuples(numbers, st.integers(0, 1)), max_size=9), min_size=1, max_size=5
)


def flatten(lists, dtype=np.float32):
    flat = [pair for one in lists for pair in one]
    offsets = np.cumsum([0, *map(len, lists)])
    scores = np.array([score for score, _ in flat], dtype=dtype)
    return scores, np.array([label for _, label in flat], dtype=int), offsets


@given(impressions, st.sampled_from([np.float32, np.float64]))
@settings(max_examples=200, deadline=None)
def test_any_scores_agree_with_the_loop(lists, dtype):
    assert_agrees_with_loop(*flatten(lists, dtype))


@given(st.lists(numbers), st.lists(numbers))
@settings(max_examples=200, deadline=None)
def test_ranks_are_a_permutation_of_each_impression(first, second):
    rank = ranks(np.array(first + second, dtype=np.float32), [0, len(first), len(first + second)])
    assert sorted(rank[: len(first)]) == list(range(1, len(first) + 1))
    assert sorted(rank[len(first) :]) == list(range(1, len(second) + 1))


steps = st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 1)), max_size=12)


@given(
    st.lists(steps, min_size=1, max_size=6),
    st.sampled_from([np.exp, np.arctan, lambda x: 3 * x - 7, lambda x: x**3, lambda x: x / 64]),
)
@settings(max_examples=200, deadline=None)
def test_only_the_order_of_scores_matters(lists, increasing):
    scores, labels, offsets = flatten(lists, np.float64)
    before, after = (impression_metrics(s, labels, offsets) for s in (scores, increasing(scores)))
    np.testing.assert_array_equal(before.values, after.values)
    np.testing.assert_array_equal(before.tied, after.tied)
    np.testing.assert_array_equal(ranks(scores, offsets), ranks(increasing(scores), offsets))


@given(impressions, st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_the_order_of_impressions_does_not_matter(lists, rng):
    order = list(range(len(lists)))
    rng.shuffle(order)
    before = impression_metrics(*flatten(lists))
    after = impression_metrics(*flatten([lists[i] for i in order]))
    np.testing.assert_array_equal(before.values[:, order], after.values)
    np.testing.assert_array_equal(before.valid[order], after.valid)
    np.testing.assert_array_equal(before.tied[order], after.tied)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), numbers)
@settings(max_examples=200, deadline=None)
def test_a_constant_scorer_ranks_in_the_order_of_the_file(lengths, constant):
    offsets = np.cumsum([0, *lengths])
    rank = ranks(np.full(offsets[-1], constant, dtype=np.float32), offsets)
    assert rank.tolist() == [place for n in lengths for place in range(1, n + 1)]


def test_a_constant_scorer_is_as_good_as_chance_where_clicks_stand_anywhere():
    rng = np.random.default_rng(0)
    offsets = np.arange(0, 200_001, 20)
    labels = (rng.permuted(np.tile(np.arange(20), (10_000, 1)), axis=1) < 2).ravel()
    assert abs(mind_metrics(np.zeros(200_000), labels, offsets)["auc"] - 0.5) < 0.01


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_and_minus_zero_are_equal(dtype):
    scores = np.array([-0.0, 0.0, -0.0, 0.0], dtype=dtype)
    assert ranks(scores, [0, 4]).tolist() == [1, 2, 3, 4]
    assert impression_metrics(scores, [0, 1, 0, 1], [0, 4]).tied.tolist() == [True]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_infinite_scores_are_the_ends(dtype):
    scores = np.array([0, -np.inf, np.inf, np.finfo(dtype).max, np.finfo(dtype).min], dtype=dtype)
    assert ranks(scores, [0, 5]).tolist() == [3, 5, 1, 2, 4]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("as_kind", [np.asarray, torch.from_numpy])
def test_a_nan_score_is_refused_and_its_impression_named(dtype, as_kind):
    scores = as_kind(np.array([1, 2, 3, np.nan, 5, np.nan], dtype=dtype))
    offsets = [0, 2, 2, 5, 6]
    with pytest.raises(ValueError, match="2 scores are NaN, the first in impression 2"):
        ranks(scores, offsets)
    with pytest.raises(ValueError, match="2 scores are NaN, the first in impression 2"):
        mind_metrics(scores, [0, 1, 0, 1, 0, 1], offsets)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], "Label 2 at position 2"),
        ([0, -1, 1], "Label -1 at position 1"),
        ([0.5, 0, 1], r"Label 0\.5 at position 0"),
        ([0, 1, np.nan], "Label nan at position 2"),
        ([0, 1], "3 scores but 2 labels"),
        ([], "3 scores but 0 labels"),
    ],
)
def test_labels_that_are_no_clicks_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        mind_metrics([1, 2, 3], labels, [0, 3])


@pytest.mark.parametrize(
    "offsets", [[], [0], [3], [0, 2], [0, 4], [1, 3], [0, 2, 1, 3], [-1, 3], [[0, 3]], 3]
)
def test_offsets_that_do_not_fit_are_refused(offsets):
    for call in (ranks, lambda s, o: mind_metrics(s, [0, 1, 1], o)):
        with pytest.raises(ValueError, match=r"[Oo]ffsets"):
            call([1, 2, 3], offsets)


def test_scores_that_are_not_flat_are_refused():
    with pytest.raises(ValueError, match="must be flat"):
        ranks(np.zeros((2, 2)), [0, 4])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_change_nothing(dtype):
    # 300,000 impressions are sorted in two blocks of 2^18, their parts in one
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, 5, 300_000)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    scores = rng.integers(-3, 3, offsets[-1]).astype(dtype)
    labels = rng.integers(0, 2, offsets[-1])
    whole, rank = impression_metrics(scores, labels, offsets), ranks(scores, offsets)
    cuts = [0, 1, 2**18 - 1, 2**18, 300_000]
    for first, last in pairwise(cuts):
        start, end = offsets[first], offsets[last]
        mine = offsets[first : last + 1] - start
        part = impression_metrics(scores[start:end], labels[start:end], mine)
        np.testing.assert_array_equal(part.values, whole.values[:, first:last])
        np.testing.assert_array_equal(part.valid, whole.valid[first:last])
        np.testing.assert_array_equal(part.tied, whole.tied[first:last])
        np.testing.assert_array_equal(ranks(scores[start:end], mine), rank[start:end])


@pytest.mark.parametrize(
    "longest", [2**16, 70_000, pytest.param(2**24 + 1, marks=pytest.mark.slow)]
)
def test_very_long_impressions_are_sorted_like_short_ones(longest):
    # the last does not leave room for position and score in one sortable integer
    rng = np.random.default_rng(2)
    lengths = np.array([3, longest, 1, 4])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    scores = rng.normal(size=offsets[-1]).astype(np.float32)
    scores[:8] = scores[-8:] = 0  # 0 also ties with its like across the boundaries
    rank = ranks(scores, offsets)
    for start, end in pairwise(offsets):
        order = np.argsort(-scores[start:end], kind="stable")
        np.testing.assert_array_equal(rank[start:end][order], np.arange(1, end - start + 1))
    if longest < 2**20:
        labels = rng.integers(0, 2, offsets[-1])
        assert_agrees_with_loop(scores, labels, offsets)


def entropy_by_loop(rank, categories, k):
    top = [c for r, c in zip(rank, categories, strict=True) if r <= k]
    shares = [top.count(c) / len(top) for c in set(top)]
    return -sum(share * np.log2(share) for share in shares)


@given(
    st.lists(st.lists(st.integers(-1, 4), max_size=14), max_size=8),
    st.integers(1, 12),
    st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_the_entropy_of_categories_agrees_with_a_loop(lists, k, seed):
    rng = np.random.default_rng(seed)
    rank = [rng.permutation(len(row)) + 1 for row in lists]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in lists])]).astype(int)
    expected = [entropy_by_loop(r, row, k) for r, row in zip(rank, lists, strict=True)]
    flat = np.concatenate([np.zeros(0, dtype=int), *rank])
    categories = np.array([c for row in lists for c in row], dtype=int)
    found = category_entropy(flat, categories, offsets, k)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_the_entropy_is_in_bits_and_counts_the_best_alone():
    rank = [1, 2, 3, 4, 5, 1, 2, 1]
    categories = [7, 7, 9, 9, 3, 1, 1, 4]
    assert category_entropy(rank, categories, [0, 5, 7, 8], k=4).tolist() == [1, 0, 0]
    ten = category_entropy(np.arange(1, 12), np.arange(11), [0, 11])
    np.testing.assert_allclose(ten, np.log2(10))
    assert not np.signbit(category_entropy([1], [0], [0, 1]))[0]


def test_an_entropy_of_arrays_that_do_not_fit_is_refused():
    with pytest.raises(ValueError, match="flat, up to 3"):
        category_entropy([1, 2], [0, 0], [0, 3])
