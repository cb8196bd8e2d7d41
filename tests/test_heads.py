"""The ways to make scores (``model.matching``), against loops over one user and one news item."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_export import DIM, MAX_HISTORY, made
from test_recommender import SAMPLES, compose, eval_batch, vector_of_news

from newsrec.data.batch import EvalBatch
from newsrec.errors import UserError
from newsrec.export import graphs
from newsrec.export.verify import as_arrays, made_histories, newest
from newsrec.model import heads, matching
from newsrec.model.fastformer import FastformerConfig
from newsrec.model.plm.load import load_plm
from newsrec.model.recommender import NewsRecommender
from newsrec.model.user_encoders import InterestAttention, UserEncoder, weighted_sums
from newsrec.serving import matching as twin
from newsrec.training.module import RecommenderModule

HEADS = {
    "late": {"matching": "late", "late_clicks": 3},
    "all clicks": {"matching": "late", "late_clicks": 99},
    "logsumexp": {"matching": "interests", "interests": 3},
    "max": {"matching": "interests", "interests": 2, "combine": "max"},
}
SLOW = dict.fromkeys(["all clicks", "max"], pytest.mark.slow)
EACH = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)


def dot(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def late_by_hand(user, clicks, news, k):
    best = sorted((dot(click, news) for click in clicks), reverse=True)[:k]
    return dot(user, news) + (sum(best) / len(best) if best else 0.0)


def smooth_by_hand(interests, news, temperature):
    each = [dot(interest, news) for interest in interests]
    best = max(each)
    mean = sum(math.exp((x - best) / temperature) for x in each) / len(each)
    return best + temperature * math.log(mean)


@st.composite
def made_users(draw):
    """Users ``[users, vectors, dim]`` of which the first vector is their own, a mask of their
    clicks, and news; small numbers, some of them equal."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_users, history, num_news, dim = (draw(st.integers(low, 7)) for low in (1, 0, 1, 1))
    users = rng.integers(-4, 5, (num_users, 1 + history, dim)).astype(np.float32) / 2
    clicks = rng.integers(0, history + 1, num_users)
    mask = np.arange(history) < clicks[:, None]
    return users, mask, rng.integers(-4, 5, (num_news, dim)).astype(np.float32) / 2


@settings(max_examples=200, deadline=None)
@given(
    made_users(),
    st.integers(1, 8),
    st.sampled_from([1, 2, 3, 8192]),
    st.randoms(use_true_random=False),
)
def test_late_is_the_loop_over_clicks_in_pytorch_and_numpy(made, k, at_once, random):
    users, mask, news = made
    expected = np.array([
        [late_by_hand(user[0], user[1:][real], item, k) for item in news]
        for user, real in zip(users, mask, strict=True)
    ])  # fmt: skip
    head = heads.LateHead(users.shape[2], k)
    whole = matching.Users(torch.tensor(users), torch.tensor(mask), head.combine)
    assert_every_function(whole, news, expected, random)
    served = twin.Matching({"head": "late", "clicks": k})
    outputs = [users[:, 0], users[:, 1:], mask]
    assert_served(served.users(outputs), news, expected, at_once)


@pytest.mark.parametrize("combine", ["max", "logsumexp"])
@settings(max_examples=200, deadline=None)
@given(
    made_users(),
    st.floats(0.1, 9),
    st.sampled_from([1, 2, 8192]),
    st.randoms(use_true_random=False),
)
def test_interests_are_the_loop_over_interests_in_pytorch_and_numpy(
    combine, made, t, at_once, random
):
    users, _, news = made
    number = users.shape[1]
    head = heads.InterestHead(number, combine)
    if combine == "logsumexp":
        head.log_temperature.data.fill_(math.log(t))
        expected = [[smooth_by_hand(user, item, t) for item in news] for user in users]
    else:
        expected = [[max(dot(v, item) for v in user) for item in news] for user in users]
    whole = head(torch.tensor(users), None, None, None)
    assert_every_function(whole, news, np.array(expected), random)
    served = twin.Matching(head.settings())
    outputs = [users.mean(axis=1), users]
    assert_served(served.users(outputs), news, np.array(expected), at_once)


def assert_every_function(users, news, expected, random):
    """Compare all functions of ``newsrec.model.matching`` with the scores of all pairs."""
    items = torch.tensor(news)
    close = {"rtol": 1e-5, "atol": 1e-5}
    counts = [random.randrange(5) for _ in range(4)]
    owner = torch.tensor([random.randrange(len(users)) for _ in counts])
    shown = torch.tensor([random.randrange(len(news)) for _ in range(sum(counts))]).long()
    offsets = torch.tensor([0, *counts]).cumsum(0)
    batch = EvalBatch(torch.empty(0), owner, shown, offsets, None, torch.empty(0))
    before, matching.NUMBERS_AT_ONCE = matching.NUMBERS_AT_ONCE, random.choice([1, 40, 2**20])
    try:
        found = matching.match_all(users, items)
        scores = matching.match_impressions(users, items, batch)
    finally:
        matching.NUMBERS_AT_ONCE = before
    np.testing.assert_allclose(found.detach(), expected, **close)
    each = owner.repeat_interleave(torch.tensor(counts))
    np.testing.assert_allclose(scores.detach(), expected[each, shown], **close)
    assert scores.dtype == torch.float32
    rows = torch.tensor(
        [[random.randrange(len(news)) for _ in range(3)] for _ in range(len(users))]
    )
    found = matching.match_candidates(users, items[rows]).detach()
    np.testing.assert_allclose(found, np.take_along_axis(expected, rows.numpy(), 1), **close)
    some = torch.tensor([random.randrange(len(users)) for _ in range(4)])
    pairs = matching.match_pairs(users[some], items[rows[some, 0]]).detach()
    np.testing.assert_allclose(pairs, expected[some, rows[some, 0]], **close)


def assert_served(users, news, expected, at_once):
    before = twin.NEWS_AT_ONCE, twin.FEW_NEWS
    twin.NEWS_AT_ONCE, twin.FEW_NEWS = at_once, 1024 * (at_once % 2)  # each way to find the largest
    try:
        found = twin.match_all(users, news)
        block = np.full(expected.shape, np.nan, np.float32)
        assert twin.match_all(users, news, out=block) is block
    finally:
        twin.NEWS_AT_ONCE, twin.FEW_NEWS = before
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(block, found)
    alone = twin.match_all(users[:1], news)
    np.testing.assert_allclose(alone, found[:1], rtol=1e-5, atol=1e-5)


# In a model


def stirred(plm_dir, head, residual=True, **user):
    """A model whose every part has a say."""
    shape = {"heads": 4, "ffn": 24}
    model = NewsRecommender(
        load_plm(str(plm_dir)), DIM, 1, shape, shape | user, max_tokens=12, max_history=5,
        residual=residual, **head,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".plm." not in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def score_by_hand(model, clicked, candidate, head):
    """Return the score of one candidate for one user, whose parts are encoded alone."""
    users = model.user_encoder
    if not clicked:
        return users.empty @ candidate
    history = torch.stack(clicked)
    mask = torch.ones(1, len(clicked), dtype=torch.bool)
    if head["matching"] == "late":
        share = 1 / (1 + math.exp(-model.head.mix.item()))
        clicks = history + history @ model.head.change.weight.T
        best = sorted((clicks @ candidate).tolist(), reverse=True)[: head["late_clicks"]]
        scale = 1.0 if users.log_scale is None else math.exp(users.log_scale.item())
        own = users(history[None], mask)[0, 0] @ candidate
        return (1 - share) * own + share * scale * sum(best) / len(best)
    each = []
    mixed = users.fastformer(history[None], mask)[0]
    for query in users.attention.query.weight:
        logits = torch.stack(
            [(x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() @ query for x in mixed]
        )
        weights = logits.softmax(0)
        vector = weights @ mixed
        if users.gate is not None:
            vector = users.log_scale.exp() * (weights @ history + users.gate * vector)
        each.append(vector)
    if head.get("combine") == "max":
        return max(vector @ candidate for vector in each)
    t = float(model.head.log_temperature.exp())
    return torch.tensor(smooth_by_hand(torch.stack(each).detach(), candidate.detach(), t))


@EACH
@pytest.mark.parametrize("residual", [True, False])
def test_training_scores_equal_a_loop_over_samples(plm_dir, head, residual):
    model = stirred(plm_dir, head, residual)
    scores = model(compose(SAMPLES))
    assert scores.shape == (5, 3)
    for sample, (history, shown) in enumerate(SAMPLES):
        clicked = [vector_of_news(model, n) for n in history]
        for column, n in enumerate(shown):
            if n is not None:
                expected = score_by_hand(model, clicked, vector_of_news(model, n), head)
                torch.testing.assert_close(
                    scores[sample, column], torch.as_tensor(expected), rtol=1e-4, atol=1e-4
                )


@EACH
def test_impressions_equal_a_loop_and_do_not_depend_on_who_shares_the_batch(plm_dir, head):
    model = stirred(plm_dir, head)
    vectors = torch.randn(12, DIM, generator=torch.Generator().manual_seed(0))
    vectors[0] = 0
    impressions = [
        ([2, 3, 2], [4, 5, 1, 6]),
        ([], [7, 8]),
        ([11, 10, 9, 8, 7], [2, 11, 3, 5, 1]),
        ([4], [4, 4, 9]),
    ]
    together = model.score(vectors, eval_batch(impressions))
    start = 0
    for history, shown in impressions:
        alone = model.score(vectors, eval_batch([(history, shown)]))
        part = together[start : start + len(shown)]
        torch.testing.assert_close(alone, part, rtol=1e-5, atol=1e-5)
        for row, score in zip(shown, part, strict=True):
            expected = score_by_hand(model, [vectors[r] for r in history], vectors[row], head)
            torch.testing.assert_close(score, torch.as_tensor(expected), rtol=1e-4, atol=1e-4)
        start += len(shown)
    nobody = eval_batch([([], [3, 4]), ([], [5])])
    expected = vectors[3:6] @ model.user_encoder.empty
    torch.testing.assert_close(model.score(vectors, nobody), expected, rtol=1e-5, atol=1e-5)
    for width in (0, 5):
        empty = eval_batch([])._replace(history=torch.zeros(0, width, dtype=torch.long))
        assert model.score(vectors, empty).shape == (0,)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.score(vectors, eval_batch(impressions))
    assert rounded.dtype == torch.float32
    assert (rounded - together).abs().max() < 0.1 * together.abs().max()


@EACH
def test_scores_depend_neither_on_padding_nor_on_the_order_of_clicks(plm_dir, head):
    model = stirred(plm_dir, head, positions="none")
    history = torch.randn(2, 5, DIM, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 4 + [False], [True, False, False, False, False]])
    news = torch.randn(7, DIM, generator=torch.Generator().manual_seed(1))
    expected = matching.match_all(model.users_of(history, mask), news)
    order = torch.tensor([2, 0, 3, 1, 4])
    exchanged = matching.match_all(model.users_of(history[:, order], mask[:, order]), news)
    torch.testing.assert_close(exchanged[0], expected[0], rtol=1e-5, atol=1e-5)
    history[~mask] = float("nan") if head["matching"] == "interests" else 1e3
    history = history.nan_to_num(1e3)
    torch.testing.assert_close(
        matching.match_all(model.users_of(history, mask), news), expected, rtol=1e-5, atol=1e-5
    )
    alone = matching.match_all(model.users_of(history[1:, :1], mask[1:, :1]), news)
    torch.testing.assert_close(alone[0], expected[1], rtol=1e-5, atol=1e-5)


@EACH
def test_a_users_score_has_no_gradient_to_the_history_of_another(plm_dir, head):
    model = stirred(plm_dir, head)
    vectors = torch.randn(9, DIM, generator=torch.Generator().manual_seed(0), requires_grad=True)
    history = torch.tensor([[2, 3, 0], [4, 5, 6], [0, 0, 0]])
    users = model.users(vectors, history)
    matching.match_all(users, torch.ones(1, DIM))[0].sum().backward()
    touched = vectors.grad.abs().sum(dim=1) > 0
    assert touched.nonzero().flatten().tolist() == [2, 3]


@EACH
@pytest.mark.parametrize("residual", [True, False])
def test_every_parameter_gets_a_finite_gradient(plm_dir, head, residual):
    # One without would stop DistributedDataParallel on the second step.
    model = stirred(plm_dir, head, residual)
    for samples in (SAMPLES, SAMPLES[1:2]):
        model.zero_grad()
        model(compose(samples)).nan_to_num().pow(2).sum().backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            assert parameter.grad is None or parameter.grad.isfinite().all(), name


def test_untrained_late_with_all_clicks_scores_as_dot(plm_dir):
    """Both terms have the same scale: at the start they are the same mean of the clicks."""
    torch.manual_seed(0)
    shape = {"heads": 4, "ffn": 24}
    plm = load_plm(str(plm_dir))
    given = (plm, DIM, 0, shape, shape, 12, 5)
    late = NewsRecommender(*given, matching="late", late_clicks=99).eval()
    plain = NewsRecommender(*given).eval()
    missing = plain.load_state_dict(late.state_dict(), strict=False)
    assert missing.unexpected_keys == ["head.mix", "head.change.weight"]
    batch = compose(SAMPLES)
    torch.testing.assert_close(late(batch), plain(batch), rtol=1e-5, atol=1e-5)


def test_interests_of_untrained_users_differ_and_equal_interests_score_as_one(plm_dir):
    torch.manual_seed(0)
    encoder = UserEncoder(DIM, FastformerConfig(4), 6, residual=True, interests=4).eval()
    history = torch.randn(1, 6, DIM)
    users = encoder(history, torch.ones(1, 6, dtype=torch.bool))
    assert users.shape == (1, 4, DIM)
    distances = torch.cdist(users[0], users[0]) / users[0].norm(dim=1)
    assert distances[~torch.eye(4, dtype=torch.bool)].min() > 0.1
    same = users[:, :1].expand(-1, 4, -1)
    for combine in ("max", "logsumexp"):
        head = heads.InterestHead(4, combine)
        news = torch.randn(5, DIM)
        found = matching.match_all(head(same, None, None, None), news)
        torch.testing.assert_close(found, matching.match_all(same[:, :1], news))


def test_a_click_counts_as_often_as_it_was_made():
    head = heads.LateHead(1, clicks=2)
    products = torch.tensor([[0.0, 3.0, 1.0, 3.0]])  # the user vector's, then three clicks'
    once = torch.tensor([[True, True, False]])
    twice = torch.ones(1, 3, dtype=torch.bool)
    assert head.combine(products, once).tolist() == [2.0]
    assert head.combine(products, twice).tolist() == [3.0]


def test_attention_ignores_padding_and_its_weights_sum_to_one():
    torch.manual_seed(0)
    attention = InterestAttention(DIM, 3)
    x, mask = torch.randn(2, 4, DIM), torch.tensor([[True, True, False, False], [False] * 4])
    weights = attention(x, mask)
    torch.testing.assert_close(weights.sum(dim=1), torch.tensor([[1.0] * 3, [0.0] * 3]))
    assert (weights[~mask] == 0).all()
    x[~mask] = float("nan")
    assert weighted_sums(x, weights, mask).isfinite().all()


# Exported


@pytest.mark.parametrize(
    ("head", "residual"),
    [
        *(pytest.param(head, True, marks=SLOW.get(name, ())) for name, head in HEADS.items()),
        pytest.param(HEADS["late"], False, marks=pytest.mark.slow),
    ],
    ids=[*HEADS, "late without residual"],
)
def test_the_graph_has_what_serving_needs_for_any_batch_and_history(plm_dir, head, residual):
    module = made(plm_dir, residual=residual, **head)
    recommender = module.recommender
    program = graphs.trace_user_encoder(
        recommender.user_encoder, MAX_HISTORY, recommender.head
    ).module()
    served = twin.Matching(recommender.head.settings())
    news = torch.randn(50, DIM, generator=torch.Generator().manual_seed(0))
    for rows, mask in made_histories(MAX_HISTORY, 50):
        history = news[rows] * mask[..., None]
        with torch.no_grad():
            outputs = as_arrays(program(history, mask))
            users = recommender.users_of(*newest(history, mask, MAX_HISTORY))
            expected = matching.match_all(users, news)
            own = users.vectors[:, :1] if head["matching"] == "late" else users.vectors
        np.testing.assert_allclose(outputs[0], own.mean(dim=1), rtol=1e-4, atol=1e-4)
        shapes = served.shapes(len(mask), mask.shape[1], DIM)
        assert [output.shape for output in outputs] == shapes
        found = twin.match_all(served.users(outputs), news.numpy())
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


# Options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"matching": "cosine"}, r"model\.matching is 'cosine'\. Choose one of dot, late, inter"),
        ({"combine": "mean"}, r"model\.combine is 'mean'\. Choose one of logsumexp, max\."),
        ({"late_clicks": "3"}, r"model\.late_clicks is '3'; give a whole number"),
        (
            {"late_clicks": 3},
            r"model\.late_clicks is 3, but model\.matching is dot.*Set model\.matching late",
        ),
        (
            {"matching": "late", "combine": "max"},
            r"model\.combine is max, but model\.matching is late.*Set model\.matching interests",
        ),
        ({"late_clicks": 0}, r"model\.late_clicks is 0; it must be at least 1"),
        ({"interests": 2**40}, r"model\.interests is 1099511627776; it must be at least 1, and at"),
        (
            {"matching": "interests", "user": {"pooling": "mean"}},
            r"model\.user\.pooling is mean, and model\.matching is interests.*Leave",
        ),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(options, said):
    with pytest.raises(UserError, match=said):
        RecommenderModule(**options)
