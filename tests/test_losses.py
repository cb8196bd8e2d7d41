"""The losses against sums by hand, and against plain loops over samples."""

import math

import numpy as np
import pytest
import torch
from conftest import fit_options, refused
from forks import started
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_worlds import (
    Sample,
    World,
    encoded_batch,
    gradients_of_other,
    gradients_of_process,
    made_samples,
    made_share,
    made_world,
)

from newsrec.data import FIRST_NEWS
from newsrec.data.batch import Batch
from newsrec.errors import UserError
from newsrec.metrics import mind_metrics
from newsrec.model.recommender import Encoded
from newsrec.training.losses import LOSSES, cross_entropy, impression, in_batch
from newsrec.training.module import RecommenderModule

NEWS = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [2.0, 1.0]])
USERS = torch.tensor([[[1.0, 2.0]], [[-1.0, 0.5]]])


def batch_of(user, candidates, labels):
    token_ids, history = torch.zeros(5, 1), torch.zeros(2, 1)
    tensors = (torch.tensor(values) for values in (user, candidates, labels))
    return Batch(token_ids, torch.zeros(5), None, history, *tensors)


def test_cross_entropy_is_that_of_the_clicked_candidate_among_the_real_ones():
    batch = batch_of([0, 1], [[2, 4, 3], [3, 2, 0]], [[0, 1, 0], [1, 0, 0]])
    first = math.log(sum(map(math.exp, (1.0, 4.0, 2.0)))) - 4.0
    second = math.log(sum(map(math.exp, (0.5, -1.0)))) - 0.5  # the last candidate is padding
    found = cross_entropy(Encoded(NEWS, USERS), batch)
    torch.testing.assert_close(found, torch.tensor((first + second) / 2))


def test_what_padded_candidates_score_does_not_reach_the_loss(monkeypatch):
    batch = batch_of([0, 0], [[2, 3, 0], [3, 0, 0]], [[1, 0, 0], [1, 0, 0]])
    scores = torch.tensor([[0.0, 0.0, 99.0], [-5.0, 99.0, float("inf")]], requires_grad=True)
    monkeypatch.setattr("newsrec.training.losses.match_candidates", lambda *_: scores)
    loss = cross_entropy(Encoded(NEWS, USERS), batch)
    assert float(loss) == pytest.approx(math.log(2) / 2)
    loss.backward()
    torch.testing.assert_close(scores.grad, torch.tensor([[-0.25, 0.25, 0], [0, 0, 0]]))


def test_padding_has_no_gradient():
    news = NEWS.clone().requires_grad_()
    cross_entropy(Encoded(news, USERS), batch_of([1], [[3, 2, 0]], [[1, 0, 0]])).backward()
    assert (news.grad[0] == 0).all()
    assert (news.grad[2:4] != 0).any(dim=1).all()


def test_half_precision_vectors_give_a_loss_in_float32():
    batch = batch_of([0, 1], [[2, 4, 3], [3, 2, 0]], [[0, 1, 0], [1, 0, 0]])
    assert cross_entropy(Encoded(NEWS.half(), USERS.half()), batch).dtype == torch.float32


def in_batch_loop(world, samples, share):
    losses = []
    for sample in samples:
        own = [sample.clicks[0], *sample.skips]
        total = sum(world.score(sample, news).exp() for news in own)
        others = [other.clicks[0] for other in samples if not other.is_of_user_of(sample)]
        known = {*sample.history, *sample.clicks}
        known |= {s.clicks[0] for s in samples if s.is_of_user_of(sample)}
        for news in sorted(set(others) - {*own, *known}):
            q = 1 - (1 - float(share[news])) ** len(others)
            total = total + world.score(sample, news).exp() / q
        losses.append(total.log() - world.score(sample, sample.clicks[0]))
    return sum(losses) / len(losses)


def impression_loop(world, samples):
    losses = []
    for sample in samples:
        scores = {n: world.score(sample, n) for n in (*sample.clicks, *sample.skips)}
        total = sum(score.exp() for score in scores.values()).log()
        losses.append(sum(total - scores[n] for n in sample.clicks) / len(sample.clicks))
    return sum(losses) / len(losses)


def assert_same_loss_and_gradient(found, expected, world):
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    for one, other in zip(
        torch.autograd.grad(found, world), torch.autograd.grad(expected, world), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


sizes = st.integers(0, 2**32), st.integers(1, 7), st.integers(6, 14), st.integers(1, 2)


@pytest.mark.slow
@given(*sizes, st.integers(0, 9))
@settings(max_examples=200, deadline=None)
def test_in_batch_is_what_a_loop_over_samples_finds(seed, number, num_news, interests, largest):
    rng = np.random.default_rng(seed)
    world, share = made_world(rng, num_news, interests), made_share(rng, num_news)
    samples = made_samples(rng, number, num_news)
    found = in_batch(*encoded_batch(world, samples, share, largest=largest))
    assert_same_loss_and_gradient(found, in_batch_loop(world, samples, share), world)


@given(*sizes)
@settings(max_examples=200, deadline=None)
def test_impression_is_what_a_loop_over_impressions_finds(seed, number, num_news, interests):
    rng = np.random.default_rng(seed)
    world, samples = made_world(rng, num_news, interests), made_samples(rng, number, num_news)
    found = impression(*encoded_batch(world, samples, whole=True))
    assert_same_loss_and_gradient(found, impression_loop(world, samples), world)


@given(*sizes)
@settings(max_examples=200, deadline=None)
def test_who_shares_the_batch_does_not_change_the_loss_of_own_candidates(
    seed, number, num_news, interests
):
    rng = np.random.default_rng(seed)
    world, samples = made_world(rng, num_news, interests), made_samples(rng, number, num_news)
    for loss, whole in ((cross_entropy, False), (impression, True)):
        alone = [loss(*encoded_batch(world, [sample], whole=whole)) for sample in samples]
        together = loss(*encoded_batch(world, samples, whole=whole))
        torch.testing.assert_close(together, torch.stack(alone).mean(), rtol=1e-4, atol=1e-4)


def test_another_sample_adds_its_click_unless_the_user_has_clicked_it():
    """With scores of 0, exp(s) is 1 for own candidates and 1 / q for others' clicks."""
    world = World(torch.zeros(9, 2), torch.zeros(2), torch.zeros(1, 2, 2))
    share = np.array([0, 0, 0.5, 0.25, 0.25, 0, 0, 0, 0], np.float32)

    def loss(*samples):
        return float(in_batch(*encoded_batch(world, list(samples), share)))

    one, two = Sample([5], [2], [7]), Sample([6], [3], [8])
    assert loss(one) == pytest.approx(math.log(2))
    assert loss(one, two) == pytest.approx((math.log(2 + 4) + math.log(2 + 2)) / 2)
    again = two._replace(history=[7])  # its click is one negative more of the first, not two
    q = {2: 1 - 0.5**2, 3: 1 - 0.75**2}
    expected = math.log(2 + 1 / q[3]) + 2 * math.log(2 + 1 / q[2])
    assert loss(one, two, again) == pytest.approx(expected / 3)
    before, same, skipped = (
        two._replace(history=[2]),
        two._replace(clicks=[3, 2]),
        two._replace(skips=[8, 2]),
    )
    for knows, own in ((before, 2), (same, 2), (skipped, 3)):
        found = loss(one, knows)
        assert found == pytest.approx((math.log(2 + 4) + math.log(own)) / 2)
    assert loss(one, one._replace(history=[])) == pytest.approx(math.log(2))


def test_no_click_of_a_user_is_a_negative_of_the_same_user():
    """Nor does it count among the samples that may click a negative."""
    world = World(torch.zeros(9, 2), torch.zeros(2), torch.zeros(1, 2, 2))
    share = np.array([0, 0, 0.5, 0.25, 0.25, 0, 0, 0, 0], np.float32)
    one, two = Sample([5], [2], [7], user=3), Sample([5], [3], [8], user=3)
    other = Sample([6], [4], [8])
    found = in_batch(*encoded_batch(world, [one, two, other], share))
    q = {2: 1 - 0.5**2, 3: 1 - 0.75**2, 4: 0.25}
    of_user = 2 * math.log(2 + 1 / q[4])  # of one other sample, not of two
    assert float(found) == pytest.approx((of_user + math.log(2 + 1 / q[2] + 1 / q[3])) / 3)


def test_a_news_item_that_all_samples_click_is_no_negative_and_gives_finite_gradients():
    world = made_world(np.random.default_rng(0), 6)
    share = np.array([0, 0, 1, 0, 0, 0], np.float32)
    samples = [Sample([3], [2], [4]), Sample([], [2], [5])]
    for given_samples in (samples, samples[:1]):
        encoded, batch = encoded_batch(world, given_samples, share, largest=3)
        loss = in_batch(encoded, batch)
        torch.testing.assert_close(loss, cross_entropy(encoded, batch))
        assert all(g.isfinite().all() for g in torch.autograd.grad(loss, world))


def test_what_a_popular_news_item_adds_does_not_depend_on_its_popularity_on_average():
    """The mean over drawn batches is the sum over all news that are not excluded."""
    rng = np.random.default_rng(1)
    world = World(torch.zeros(12, 2), torch.zeros(2), torch.zeros(1, 2, 2))
    share = np.array([0, 0, 0.4, 0.2, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0, 0], np.float32)
    encoded, batch = encoded_batch(world, [Sample([5], [2], [10])], share, largest=10)
    totals = []
    for clicks in rng.choice(12, (1000, 9), p=share / share.sum()):  # of nine other samples
        news = torch.tensor([2, *clicks])
        shared = batch.shared._replace(
            news=news, share=torch.from_numpy(share)[news], user=torch.arange(10)
        )
        totals.append(math.exp(float(in_batch(encoded, batch._replace(shared=shared)))))
    assert np.mean(totals) == pytest.approx(2 + 6, abs=0.35)  # four standard errors


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_float32_under_autocast_and_of_half_precision_vectors(name):
    rng = np.random.default_rng(3)
    world, samples, share = made_world(rng, 14), made_samples(rng, 6, 14), made_share(rng, 14)
    encoded, batch = encoded_batch(world, samples, share, whole=name == "impression")
    expected = LOSSES[name](encoded, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = Encoded(*(vectors.bfloat16() for vectors in encoded))
        found = LOSSES[name](rounded, batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0.03)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found, world))
    assert LOSSES[name](Encoded(*(v.half() for v in encoded)), batch).dtype == torch.float32


@pytest.mark.parametrize("name", LOSSES)
def test_padded_candidates_have_no_gradient(name):
    rng = np.random.default_rng(4)
    world, share = made_world(rng, 14), made_share(rng, 14)
    samples = [Sample([2], [3, 4], [5, 6, 7]), Sample([], [8], [9])]
    encoded, batch = encoded_batch(world, samples, share, name == "impression", largest=5)
    news = encoded.news.detach().requires_grad_()
    LOSSES[name](Encoded(news, encoded.users.detach()), batch).backward()
    assert (news.grad[0] == 0).all()
    assert (news.grad[batch.candidates[1, :2]] != 0).any(dim=1).all()


# Several processes


@pytest.mark.parametrize("part", [4, 5])
def test_two_processes_have_the_loss_and_gradient_of_one_with_the_joined_batch(part, tmp_path):
    store = f"file://{tmp_path}/store"
    other, hears = started(gradients_of_other, store, part)
    here = gradients_of_process(0, store, part)
    there = [torch.from_numpy(value) for value in hears.recv()]
    other.join(60)
    assert other.exitcode == 0
    rng = np.random.default_rng(5)
    world, share, samples = made_world(rng, 14, 2), made_share(rng, 14), made_samples(rng, 8, 14)
    whole = in_batch(*encoded_batch(world, samples, share))
    alone = in_batch(*encoded_batch(world, samples[:part], share))
    assert abs(float(whole - alone)) > 1e-3  # the other process's clicks count
    expected = [whole.detach(), *torch.autograd.grad(whole, world)]
    for found in (here, there):
        for value, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-4, atol=1e-5)


# What is learned


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_learns_a_world_of_two_topics(name):
    rng = np.random.default_rng(6)
    num_news, topic = 42, np.arange(42) % 2

    def draw(count):
        for number in range(count):
            mine, other = (
                rng.permutation(np.flatnonzero(topic[FIRST_NEWS:] == t) + FIRST_NEWS).tolist()
                for t in (number % 2, 1 - number % 2)
            )
            yield Sample(mine[:3], mine[3 : 4 + number % 3], other[:4])

    test = list(draw(60))
    table = torch.tensor(rng.normal(size=(num_news, 3), scale=0.3), dtype=torch.float32)
    world = World(*(t.requires_grad_() for t in (table, torch.zeros(3), torch.eye(3)[None])))
    share = made_share(rng, num_news)

    def auc():
        scores = [world.score(s, n) for s in test for n in (*s.clicks, *s.skips)]
        labels = [i < len(s.clicks) for s in test for i in range(len(s.clicks) + len(s.skips))]
        offsets = np.cumsum([0, *(len(s.clicks) + len(s.skips) for s in test)])
        scores = torch.stack(scores).detach().numpy()
        return mind_metrics(scores, np.array(labels), offsets)["auc"]

    assert auc() < 0.7
    optimizer = torch.optim.Adam(world, lr=0.05)
    for _ in range(80):
        optimizer.zero_grad()
        LOSSES[name](*encoded_batch(world, list(draw(20)), share, name == "impression")).backward()
        optimizer.step()
    assert auc() > 0.95


# What contradicts a loss


def test_whole_impressions_take_no_npratio_and_fit_says_so(capsys, mind_dir, plm_dir, tmp_path):
    options = fit_options(mind_dir, plm_dir, tmp_path / "run")
    said = refused(capsys, *options, "--model.loss=impression", "--data.npratio=2")
    assert "data.npratio is 2, but model.loss impression" in said
    assert "data.max_candidates" in said
    said = refused(capsys, *options, "--data.loss=in_batch")
    assert "data.loss follows model.loss. Set model.loss instead." in said
    assert not (tmp_path / "run").exists()


def test_a_loss_that_there_is_not_is_refused_naming_all():
    names = ", ".join(LOSSES)
    with pytest.raises(UserError, match=rf"model\.loss is 'hinge'\. Choose one of {names}\."):
        RecommenderModule(loss="hinge")
    with pytest.raises(
        UserError, match=r"model\.user_encoder is 'lstm'\. Choose one of fastformer\."
    ):
        RecommenderModule(user_encoder="lstm")
