import numpy as np
import pytest

from newsrec.evaluation import intervals
from newsrec.evaluation.intervals import mean_interval, paired_interval


def clustered(rng, num_users=80, spread=1.0):
    """Values of impressions around a mean of 0: users differ by ``spread``, impressions by 1."""
    users = np.repeat(np.arange(num_users), rng.integers(1, 12, num_users))
    return rng.normal(0, spread, num_users)[users] + rng.normal(size=len(users)), users


def width(interval):
    return interval[..., 1] - interval[..., 0]


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = {0.95: 0, 0.5: 0}
    for _ in range(200):
        values, users = clustered(rng)
        for level in hits:
            low, high = mean_interval(values, users, resamples=400, level=level)
            hits[level] += low <= 0 <= high
    assert 0.88 < hits[0.95] / 200 < 0.99
    assert 0.40 < hits[0.5] / 200 < 0.60


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
    expected = mean_interval(values, users)
    monkeypatch.setattr(intervals, "BLOCK_WEIGHTS", weights)
    np.testing.assert_allclose(mean_interval(values, users), expected, rtol=1e-12)


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
