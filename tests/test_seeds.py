import numpy as np
import pytest
from scipy import stats

from newsrec.evaluation.seeds import clustered_error, seed_interval


def runs(rng, users, number, mean=0.0, seeds=0.0, base=0.0):
    """Values of each run: what a seed does to all, what the users share, and noise."""
    seed = rng.normal(0, seeds, number)[:, None]
    return mean + seed + base + rng.normal(0, 0.5, (number, len(users)))


def some_users(rng, number=150):
    return np.repeat(np.arange(number), rng.integers(1, 9, number))


def test_very_many_users_make_it_normal():
    users = np.arange(100_000)
    a = np.random.default_rng(6).normal(size=(1, len(users)))
    low, high, p, _ = seed_interval(a, 0 * a, users)
    mean, error = a.mean(), clustered_error(a[0], users)
    assert (high - low) / 2 == pytest.approx(stats.norm.ppf(0.975) * error, rel=1e-4)
    assert p == pytest.approx(2 * stats.norm.sf(abs(mean) / error), abs=1e-4)


def test_the_clustered_error_is_the_textbook_one_where_each_user_has_one_impression():
    values = np.random.default_rng(0).normal(size=500)
    error = values.std(ddof=1) / np.sqrt(500)
    assert clustered_error(values, np.arange(500)) == pytest.approx(error)


def test_the_clustered_error_is_the_spread_of_means_over_other_users():
    rng = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(1000):
        users = some_users(rng)
        values = rng.normal(size=150)[users] + rng.normal(size=len(users))
        means.append(values.mean())
        errors.append(clustered_error(values, users))
    assert np.std(means) == pytest.approx(np.mean(errors), rel=0.08)


def test_runs_alone_give_welchs_t_test():
    # Users who agree have no error of their own, so only the runs' spread is left.
    a, b = np.array([0.70, 0.72, 0.71]), np.array([0.68, 0.69, 0.64, 0.66])
    users = np.arange(50)
    estimate = seed_interval(np.tile(a[:, None], 50), np.tile(b[:, None], 50), users)
    expected = stats.ttest_ind(a, b, equal_var=False)
    assert estimate.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert estimate.freedom == pytest.approx(expected.df)
    np.testing.assert_allclose(estimate[:2], expected.confidence_interval(), rtol=1e-9)


def test_single_runs_give_the_users_interval():
    rng = np.random.default_rng(2)
    users = np.arange(400)
    a, b = runs(rng, users, 1, 0.1), runs(rng, users, 1)
    estimate, expected = seed_interval(a, b, users), stats.ttest_1samp((a - b)[0], 0)
    assert estimate.p == pytest.approx(expected.pvalue, rel=1e-9)
    np.testing.assert_allclose(estimate[:2], expected.confidence_interval(), rtol=1e-9)


@pytest.mark.parametrize("seeds", [0.0, 0.2, 0.5])
@pytest.mark.parametrize(("numbers", "least"), [((3, 3), 0.925), ((2, 5), 0.91), ((3, 1), 0.89)])
def test_intervals_hold_the_truth_whether_users_or_seeds_matter_more(seeds, numbers, least):
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(400):
        users = some_users(rng)
        base = rng.normal(size=150)[users]
        taste = rng.normal(0, 0.5, 150)[users]  # what users have for one side
        a = runs(rng, users, numbers[0], 0.1, seeds, base + taste)
        b = runs(rng, users, numbers[1], 0.0, seeds if numbers[1] > 1 else 0.0, base)
        low, high, _, _ = seed_interval(a, b, users)
        hits += low <= 0.1 <= high
    assert least <= hits / 400 <= 0.98


def test_an_interval_of_users_alone_would_miss_the_truth_where_seeds_matter():
    rng = np.random.default_rng(4)
    users = np.arange(400)
    hits = 0
    for _ in range(200):
        a, b = (runs(rng, users, 3, seeds=0.2) for _ in range(2))
        low, high, _, _ = seed_interval(a.mean(axis=0)[None], b.mean(axis=0)[None], users)
        hits += low <= 0 <= high
    assert hits / 200 < 0.6


def test_a_side_against_itself_and_a_single_user():
    a = np.random.default_rng(5).normal(size=(1, 30))
    assert seed_interval(a, a, np.arange(30)) == (0, 0, 1, np.inf)
    assert np.isnan(seed_interval(a, a + 1, np.zeros(30, dtype=int))).all()
    assert seed_interval(a * 0 + 1, a * 0, np.arange(30)) == (1, 1, 0, np.inf)
