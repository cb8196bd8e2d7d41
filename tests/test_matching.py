"""User and news vectors to scores: PyTorch, numpy and a loop agree on the same numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.data.batch import EvalBatch
from newsrec.model import matching
from newsrec.serving import matching as twin


@st.composite
def vectors(draw):
    """User vectors ``[users, interests, dim]`` and news vectors ``[news, dim]``, of small numbers.

    Their products are exact, in whatever order they are summed.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_users, num_news, dim = (draw(st.integers(low, 9)) for low in (0, 0, 1))
    interests = draw(st.integers(1, 3))
    users = rng.integers(-8, 9, (num_users, interests, dim)).astype(np.float32)
    return users / 4, rng.integers(-8, 9, (num_news, dim)).astype(np.float32)


def by_hand(user, news):
    """The score of one user ``[interests, dim]`` and one news item ``[dim]``."""
    return max(sum(float(a) * float(b) for a, b in zip(row, news, strict=True)) for row in user)


@settings(max_examples=200, deadline=None)
@given(vectors())
def test_all_news_are_scored_for_all_users_alike_in_numpy_and_pytorch(made):
    users, news = made
    expected = [[by_hand(user, item) for item in news] for user in users]
    expected = np.array(expected, np.float32).reshape(len(users), len(news))
    found = matching.match_all(torch.from_numpy(users), torch.from_numpy(news))
    np.testing.assert_array_equal(found.numpy(), expected)
    np.testing.assert_array_equal(twin.match_all(users, news), expected)
    block = np.full_like(expected, np.nan)
    assert twin.match_all(users, news, out=block) is block
    np.testing.assert_array_equal(block, expected)


@settings(max_examples=200, deadline=None)
@given(vectors(), st.integers(0, 5), st.randoms(use_true_random=False))
def test_pairs_and_candidates_are_scored_as_all_are(made, width, random):
    users, news = (torch.from_numpy(part) for part in made)
    if not len(users) or not len(news):
        width = 0
    everything = matching.match_all(users, news)
    rows = [[random.randrange(len(news)) for _ in range(width)] for _ in users]
    shown = torch.tensor(rows, dtype=torch.long).reshape(len(users), width)
    expected = everything.gather(1, shown) if width else everything.new_zeros(len(users), 0)
    assert torch.equal(matching.match_candidates(users, news[shown]), expected)
    owner = torch.arange(len(users)).repeat_interleave(width)
    pairs = matching.match_pairs(users[owner], news[shown.flatten()])
    assert torch.equal(pairs, expected.flatten())


@settings(max_examples=200, deadline=None)
@given(vectors(), st.lists(st.integers(0, 4), max_size=6), st.randoms(use_true_random=False))
def test_impressions_are_scored_candidate_by_candidate(made, counts, random):
    users, news = (torch.from_numpy(part) for part in made)
    if not len(users) or not len(news):
        counts = []
    user = torch.tensor([random.randrange(len(users)) for _ in counts], dtype=torch.long)
    shown = torch.tensor([random.randrange(len(news)) for _ in range(sum(counts))]).long()
    offsets = torch.tensor([0, *counts]).cumsum(0)
    batch = EvalBatch(torch.empty(0), user, shown, offsets, None, torch.empty(0))
    found = matching.match_impressions(users.half(), news.half(), batch)
    owner = [int(u) for u, count in zip(user, counts, strict=True) for _ in range(count)]
    expected = [by_hand(users[u], news[row]) for u, row in zip(owner, shown, strict=True)]
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), np.array(expected, np.float32))


@pytest.mark.parametrize("seed", range(20))
def test_one_interest_is_the_plain_dot_product_bit_for_bit(seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 60, (3,), generator=generator).tolist()
    num_users, num_shown, dim = sizes
    users = torch.randn(num_users, dim, generator=generator)
    shown = torch.randn(num_users, num_shown, dim, generator=generator)
    news = shown.flatten(0, 1)
    plain = torch.einsum("bd,bcd->bc", users, shown)
    assert torch.equal(matching.match_candidates(users[:, None], shown), plain)
    assert torch.equal(matching.match_all(users[:, None], news), users @ news.T)
    pairs = users.repeat_interleave(num_shown, dim=0)
    assert torch.equal(matching.match_pairs(pairs[:, None], news), (pairs * news).sum(dim=1))
    own, items = users.numpy(), news.numpy()
    np.testing.assert_array_equal(twin.match_all(own[:, None], items), np.matmul(own, items.T))
    np.testing.assert_array_equal(twin.match_all(own[:1, None], items)[0], items @ own[0])


def test_the_gradient_goes_to_the_interest_that_scores_highest():
    users = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]], requires_grad=True)
    matching.match_candidates(users, torch.tensor([[[1.0, 1.0]]])).sum().backward()
    assert users.grad.tolist() == [[[0.0, 0.0], [1.0, 1.0]]]
