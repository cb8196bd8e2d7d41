import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from newsrec.serving import search as module
from newsrec.serving.search import search, top_k


def plainly(scores, k):
    """The slow form: sort all, stably, and drop what is excluded."""
    order = np.argsort(-scores, kind="stable")
    return order[scores[order] > -np.inf][:k]


FEW_VALUES = st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 0.25, 3.0, np.float32(1e-45)])
ANY_VALUE = st.floats(width=32, allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), values=st.sampled_from([FEW_VALUES, ANY_VALUE]))
def test_the_best_are_those_of_a_stable_sort(data, values):
    scores = data.draw(hnp.arrays(np.float32, st.integers(1, 60), elements=values))
    k = data.draw(st.integers(1, len(scores)))
    groups = data.draw(st.integers(1, 8))
    with pytest.MonkeyPatch.context() as patch:  # groups as small as the scores are few
        patch.setattr(module, "GROUPS", groups)
        patch.setattr(module, "GROUPS_PER_RESULT", 1)
        np.testing.assert_array_equal(top_k(scores, k), plainly(scores, k))


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    number=st.integers(1, 6000),
    share=st.floats(0, 1),
    distinct=st.integers(1, 5000),
    data=st.data(),
)
def test_the_best_of_many_scores_are_those_of_a_stable_sort(seed, number, share, distinct, data):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, distinct, number).astype(np.float32)
    scores[rng.random(number) < share] = -np.inf
    k = data.draw(st.one_of(st.integers(1, min(number, 20)), st.integers(1, number)))
    np.testing.assert_array_equal(top_k(scores, k), plainly(scores, k))


def test_the_best_are_found_when_they_are_neighbours_or_all_alike():
    scores = np.zeros(10_000, dtype=np.float32)
    scores[5000:5100] = np.arange(100)
    np.testing.assert_array_equal(top_k(scores, 100), [*range(5099, 5000, -1), 0])
    np.testing.assert_array_equal(top_k(np.zeros(10_000, dtype=np.float32), 3), [0, 1, 2])
    # All of the best in one group, whose maximum alone is high.
    scores = np.zeros(50 * module.GROUPS, dtype=np.float32)
    scores[7 :: module.GROUPS] = 1
    np.testing.assert_array_equal(top_k(scores, 50), np.arange(50) * module.GROUPS + 7)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), at_once=st.integers(1, 200), data=st.data())
def test_users_are_searched_alike_in_blocks_of_any_size(seed, at_once, data):
    rng = np.random.default_rng(seed)
    users = rng.integers(-2, 3, (data.draw(st.integers(0, 7)), 3)).astype(np.float32)
    news = rng.integers(-2, 3, (data.draw(st.integers(1, 30)), 3)).astype(np.float32)
    k = data.draw(st.integers(1, len(news)))
    excluded = [rng.integers(0, len(news), rng.integers(0, 9)).tolist() for _ in users]
    allowed = rng.random(len(news)) < 0.7 if data.draw(st.booleans()) else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SCORES_AT_ONCE", at_once)
        found = list(search(users[:, None], news, k, excluded, allowed))
    assert len(found) == len(users)
    for user, rows, best in zip(users, excluded, found, strict=True):
        scores = news @ user  # small whole numbers: exact in any order of summing
        scores[rows] = -np.inf
        if allowed is not None:
            scores[~allowed] = -np.inf
        np.testing.assert_array_equal(best.rows, plainly(scores, k))
        np.testing.assert_array_equal(best.scores, scores[best.rows])


def test_nobody_and_nothing_excluded():
    users, news = np.ones((1, 2), np.float32), np.arange(6, dtype=np.float32).reshape(3, 2)
    (best,) = search(users[:, None], news, 3)
    np.testing.assert_array_equal(best.rows, [2, 1, 0])
    (best,) = search(users[:, None], news, 3, [[0, 1, 2]])
    assert len(best.rows) == 0
    assert list(search(users[:0, None], news, 3)) == []
