import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.evaluation import intervals
from newsrec.evaluation.intervals import holm, mean_interval, paired_interval, sign_flip_p


def clustered(rng, num_users=80, spread=1.0):
    """Values of impressions around a mean of 0: users differ by ``spread``, impressions by 1."""
    users = np.repeat(np.arange(num_users), rng.integers(1, 12, num_users))
    return rng.normal(0, spread, num_users)[users] + rng.normal(size=len(users)), users


def width(interval):
    return interval[..., 1] - interval[..., 0]


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = {0.95: 0, 0.5: 0}
    for _ in range(400):
        values, users = clustered(rng, num_users=200)
        for level in hits:
            low, high = mean_interval(values, users, level=level)
            hits[level] += low <= 0 <= high
    assert 0.925 <= hits[0.95] / 400 <= 0.975
    assert 0.44 <= hits[0.5] / 400 <= 0.56


def test_paired_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        b, users = clustered(rng, num_users=200, spread=3.0)
        gain = rng.normal(0, 0.5, 200)[users] + rng.normal(size=len(users))
        _, low, high = paired_interval(b + 0.02 + gain, b, users)
        hits += low <= 0.02 <= high
    assert 0.925 <= hits / 400 <= 0.975


def test_an_interval_that_ignores_users_would_miss_the_truth():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        values, _ = clustered(rng)
        low, high = mean_interval(values, np.arange(len(values)), resamples=400)
        hits += low <= 0 <= high
    assert hits / 200 < 0.85


def test_intervals_are_wider_where_the_impressions_of_a_user_agree():
    values, users = clustered(np.random.default_rng(1), num_users=300, spread=2.0)
    strangers = np.arange(len(users))
    assert width(mean_interval(values, users)) > 1.5 * width(mean_interval(values, strangers))


def test_users_with_one_impression_give_the_textbook_interval():
    values = np.random.default_rng(2).normal(size=2000)
    low, high = mean_interval(values, np.arange(2000), resamples=4000)
    error = values.std() / np.sqrt(2000)
    np.testing.assert_allclose(
        [low, high], values.mean() + np.array([-1.96, 1.96]) * error, atol=0.1 * error
    )


def test_equal_seeds_give_equal_intervals():
    values, users = clustered(np.random.default_rng(3))
    first = mean_interval(values, users, seed=5)
    np.testing.assert_array_equal(first, mean_interval(values, users, seed=5))
    assert (first != mean_interval(values, users, seed=6)).all()


@pytest.mark.parametrize("weights", [1, 1000, 7000])
def test_the_size_of_a_block_does_not_change_the_interval(monkeypatch, weights):
    values, users = clustered(np.random.default_rng(3))
    expected = mean_interval(values, users, resamples=333)
    p = sign_flip_p(values, users, resamples=333)
    monkeypatch.setattr(intervals, "BLOCK_WEIGHTS", weights)
    np.testing.assert_allclose(mean_interval(values, users, resamples=333), expected, rtol=1e-12)
    assert sign_flip_p(values, users, resamples=333) == p


def test_weights_are_poisson_and_independent():
    weights = intervals._poisson(np.random.Generator(np.random.SFC64(1)), 300, 1001)
    assert weights.shape == (300, 1001)
    for k in range(6):
        chance = math.exp(-1) / math.factorial(k)
        error = math.sqrt(chance * (1 - chance) / weights.size)
        assert abs((weights == k).mean() - chance) < 4 * error + 2**-16
    assert abs(weights.var() - 1) < 0.02
    assert np.abs(np.corrcoef(weights)[np.triu_indices(300, 1)]).max() < 5.5 / math.sqrt(1001)


def test_the_interval_is_that_of_a_plain_loop_over_resamples():
    values, users = clustered(np.random.default_rng(4), num_users=30)
    weights = intervals._poisson(np.random.Generator(np.random.SFC64(7)), 30, 200)
    means = [np.average(values, weights=weights[users, i]) for i in range(200)]
    expected = np.quantile(means, [0.025, 0.975])
    np.testing.assert_allclose(mean_interval(values, users, resamples=200, seed=7), expected)


def test_memory_does_not_grow_with_users_times_resamples():
    values, users = np.random.default_rng(5).normal(size=40_000), np.arange(40_000)
    tracemalloc.start()
    mean_interval(values, users)  # all weights at once would take 320 MB
    sign_flip_p(values, users, resamples=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6


def test_names_and_order_of_users_do_not_matter():
    values, users = clustered(np.random.default_rng(4))
    order = np.random.default_rng(5).permutation(len(users))
    shuffled = mean_interval(values[order], users[order] * 10 - 7)
    np.testing.assert_allclose(shuffled, mean_interval(values, users), rtol=1e-12)


def test_each_metric_has_the_interval_it_has_alone():
    values, users = clustered(np.random.default_rng(6))
    both = mean_interval(np.stack([values, values**2]), users)
    assert both.shape == (2, 2)
    np.testing.assert_allclose(both[0], mean_interval(values, users), rtol=1e-12)
    np.testing.assert_allclose(both[1], mean_interval(values**2, users), rtol=1e-12)


def test_impressions_without_a_value_are_left_out():
    values, users = clustered(np.random.default_rng(7))
    missing = np.arange(len(users)) % 3 == 0
    expected = mean_interval(values[~missing], users[~missing])
    with_nan = np.where(missing, np.nan, values)
    np.testing.assert_array_equal(mean_interval(with_nan, users), expected)


def test_no_impression_gives_nan_and_one_user_a_point():
    assert np.isnan(mean_interval([[np.nan], [np.nan]], [1])).all()
    assert mean_interval([], np.array([], dtype=int)).shape == (2,)
    assert mean_interval([1.0, 2.0], [4, 4]).tolist() == [1.5, 1.5]


def test_a_model_compared_with_itself_differs_by_exactly_nothing():
    values, users = clustered(np.random.default_rng(8))
    values[3] = np.nan
    assert paired_interval(values, values, users) == (0, 0, 0)


def test_a_paired_interval_sees_a_difference_that_single_intervals_do_not():
    rng = np.random.default_rng(9)
    b, users = clustered(rng, num_users=300)
    a = b + 0.05 + rng.normal(0, 0.2, len(b))
    mean, low, high = paired_interval(a, b, users)
    assert mean == pytest.approx((a - b).mean())
    assert 0 < low < mean < high
    assert mean_interval(a, users)[0] < mean_interval(b, users)[1]


def test_a_paired_interval_leaves_out_what_either_lacks():
    rng = np.random.default_rng(10)
    a, users = clustered(rng)
    b = rng.normal(size=len(a))
    expected = paired_interval(a[2:], b[2:], users[2:])
    a[0] = b[1] = np.nan
    assert paired_interval(a, b, users) == expected
    assert np.isnan(paired_interval([np.nan], [1.0], [0])).all()


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\)"):
        mean_interval([1.0, 2.0, 3.0], [0, 1])
    with pytest.raises(ValueError, match="differ"):
        paired_interval([1.0, 2.0], [1.0, 2.0, 3.0], [0, 1])
    with pytest.raises(ValueError, match="differ"):
        paired_interval([1.0, 2.0], [1.0, 2.0], [0, 1, 2])
    with pytest.raises(ValueError, match="differ"):
        sign_flip_p([1.0, 2.0], [0])


def exact_sign_flip_p(difference, users):
    """Share of all signings that reach the observed sum."""
    sums = [difference[users == user].sum() for user in np.unique(users)]
    observed = abs(sum(sums))
    signings = list(itertools.product((1, -1), repeat=len(sums)))
    reached = [
        abs(sum(s * x for s, x in zip(signs, sums, strict=True))) >= observed - 1e-9
        for signs in signings
    ]
    return sum(reached) / len(signings)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 8)), min_size=1, max_size=30))
def test_the_sign_flip_p_is_that_of_all_signings(pairs):
    # Whole numbers, divided so that they are not exact, give many ties.
    difference = np.array([value for value, _ in pairs]) / 3
    users = np.array([user for _, user in pairs])
    exact = exact_sign_flip_p(difference, users)
    error = math.sqrt(exact * (1 - exact) / 9_999)
    assert abs(sign_flip_p(difference, users) - exact) <= 5 * error + 2e-4


def test_the_sign_flip_p_is_that_of_a_plain_loop_with_the_same_signs():
    difference, users = clustered(np.random.default_rng(11), num_users=21)
    difference += 0.3
    sums = np.bincount(users, difference)
    rng = np.random.Generator(np.random.SFC64(3))
    drawn = intervals._random_bytes(rng, 3, 99)  # of 21 users in groups of eight
    reached = 0
    for i in range(99):
        total = 0.0
        for user in range(21):
            negative = drawn[user // 8, i] >> (user % 8) & 1
            total += -sums[user] if negative else sums[user]
        reached += abs(total / len(users)) >= abs(difference.mean())
    assert sign_flip_p(difference, users, resamples=99, seed=3) == (1 + reached) / 100
    assert 1 < reached < 99


def test_where_nothing_differs_p_is_uniform():
    rng = np.random.default_rng(12)
    p = np.array([sign_flip_p(*clustered(rng), resamples=999) for _ in range(400)])
    assert 0.025 <= (p < 0.05).mean() <= 0.075
    assert 0.44 <= (p < 0.5).mean() <= 0.56


def test_a_sign_of_each_impression_would_find_too_much():
    rng = np.random.default_rng(12)
    found = 0
    for _ in range(200):
        values, _ = clustered(rng)
        found += sign_flip_p(values, np.arange(len(values)), resamples=199) < 0.05
    assert found / 200 > 0.15


def test_a_difference_is_found():
    rng = np.random.default_rng(13)
    found = 0
    for _ in range(100):
        values, users = clustered(rng, num_users=200, spread=0.5)
        found += sign_flip_p(values + 0.25, users, resamples=999) < 0.05
    assert found >= 95
    assert sign_flip_p(values + 5, users) == 1 / 10_000
    assert sign_flip_p(values + 5, users) == sign_flip_p(-values - 5, users)


def test_sign_flips_of_nothing_one_user_and_missing_values():
    values, users = clustered(np.random.default_rng(14))
    assert sign_flip_p(values * 0, users) == 1
    assert sign_flip_p([0.5, 0.25], [3, 3]) == 1  # either sign lies as far from 0
    assert np.isnan(sign_flip_p([np.nan], [0]))
    missing = np.arange(len(users)) % 3 == 0
    expected = sign_flip_p(values[~missing], users[~missing])
    assert sign_flip_p(np.where(missing, np.nan, values), users) == expected


def test_equal_seeds_give_equal_p_and_names_of_users_do_not_matter():
    values, users = clustered(np.random.default_rng(15))
    p = sign_flip_p(values, users, seed=5)
    assert p == sign_flip_p(values, users * 10 - 7, seed=5)
    assert p != sign_flip_p(values, users, seed=6)


def test_holm_gives_the_textbook_numbers():
    adjusted = holm([0.01, 0.04, 0.03, np.nan, 0.005])
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, np.nan, 0.02])
    assert holm([]).tolist() == []
    assert holm([0.7, 0.9]).tolist() == [1, 1]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12), st.floats(0.001, 0.999))
def test_holm_believes_what_its_step_by_step_rule_believes(p, level):
    believed = set()
    for k, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[i] * (len(p) - k) > level:
            break
        believed.add(i)
    assert set(np.flatnonzero(holm(p) <= level)) == believed
