"""Joined sequences against padded ones: the same values and gradients, whatever the lengths."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_news_encoder import news
from test_tuning import made_plm

from newsrec.errors import UserError
from newsrec.model import dropout
from newsrec.model.dropout import Dropout, kept
from newsrec.model.fastformer import (
    AttentionPooling,
    Fastformer,
    FastformerConfig,
    init_weights,
    pooling_of,
)
from newsrec.model.news_encoder import NewsEncoder
from newsrec.model.plm.blocks import blocks_as_on, length_mask
from newsrec.model.sequences import (
    Joined,
    masked_mean,
    masked_softmax,
    product,
    weighted_sums,
)
from newsrec.model.user_encoders import UserEncoder

DIM = 8
LENGTHS = [1, 3, 3, 4, 7]


def made(kind, seed=0, **options):
    """A stack and its pooling in float64, without dropout, weights far from their start."""
    torch.manual_seed(seed)
    config = FastformerConfig(**{"heads": 2, "ffn": 6, "dropout": 0.0, "encoder": kind} | options)
    parts = torch.nn.ModuleList([Fastformer(DIM, config, 9), pooling_of(DIM, config)]).double()
    with torch.no_grad():
        for parameter in parts.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return parts


def run(parts, x, mask):
    """Vectors of sequences, and the gradients of a sum of them."""
    x = x.detach().requires_grad_()
    stack, pooling = parts
    parts.zero_grad()
    vectors = pooling(stack(x, mask), mask)
    (vectors * torch.arange(1.0, vectors.numel() + 1).view(vectors.shape)).sum().backward()
    return vectors, x.grad, {n: p.grad for n, p in parts.named_parameters()}


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(["fastformer", "transformer"]),
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    norm=st.sampled_from(["post", "none"]),
    positions=st.sampled_from(["learned", "recency", "none"]),
    pooling=st.sampled_from(["attention", "mean"]),
    layers=st.integers(0, 2),
    seed=st.integers(0, 2**31),
)
def test_joined_sequences_give_what_padded_ones_give(
    kind, lengths, norm, positions, pooling, layers, seed
):
    options = {"norm": norm, "positions": positions, "pooling": pooling, "layers": layers}
    parts = made(kind, seed, **options)
    lengths = torch.tensor(lengths)
    mask = length_mask(lengths, 9)
    padded = torch.randn(*mask.shape, DIM, dtype=torch.float64)
    expected, padded_gradient, gradients = run(parts, padded, mask)
    vectors, gradient, own = run(parts, padded[mask], Joined.of(lengths))
    close(vectors, expected)
    close(gradient, padded_gradient[mask])
    for name, value in gradients.items():
        assert (own[name] is None) == (value is None)
        if value is not None:
            close(own[name], value)


def test_functions_of_joined_sequences_follow_a_loop():
    lengths = torch.tensor([2, 0, 5, 1])
    where = Joined.of(lengths)
    torch.manual_seed(0)
    x, logits = torch.randn(8, 6).double(), 30 * torch.randn(8, 3).double()
    vectors = torch.randn(4, 6).double()
    weights = masked_softmax(logits, where)
    sums, means, products = (
        weighted_sums(weights, x, where), masked_mean(x, where), product(x, vectors, where),
    )  # fmt: skip
    ends = lengths.cumsum(0).tolist()
    assert where.numbers().tolist() == [0, 1, 0, 1, 2, 3, 4, 0]
    for row, (end, length) in enumerate(zip(ends, lengths.tolist(), strict=True)):
        own = slice(end - length, end)
        if not length:
            assert (sums[row] == 0).all()
            assert (means[row] == 0).all()
            continue
        exact = np.exp(logits[own].numpy() - logits[own].numpy().max(axis=0))
        np.testing.assert_allclose(weights[own], exact / exact.sum(axis=0), rtol=1e-12)
        for head in range(3):
            part = slice(2 * head, 2 * head + 2)
            expected = (weights[own, head, None] * x[own, part]).sum(dim=0)
            close(sums[row, part], expected)
        close(means[row], x[own].mean(dim=0))
        close(products[own], x[own] * vectors[row])


def test_gradients_of_joined_sequences_are_those_of_the_functions():
    where = Joined.of(torch.tensor([2, 0, 3]))
    given = [torch.randn(*shape).double().requires_grad_() for shape in ((5, 2), (5, 4), (3, 4))]
    for function, inputs in (
        (masked_softmax, given[:1]), (weighted_sums, given[:2]), (product, given[1:]),
    ):  # fmt: skip
        assert torch.autograd.gradcheck(lambda *x, f=function: f(*x, where), inputs)


@pytest.mark.parametrize("kind", ["fastformer", "transformer"])
@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.bfloat16, None), (torch.float16, None), (torch.float32, torch.bfloat16)],
)
def test_half_precision_stays_near_float32(kind, dtype, autocast):
    parts = made(kind).float()
    lengths = torch.tensor(LENGTHS)
    x = torch.randn(sum(LENGTHS), DIM)
    expected, *_ = run(parts, x, Joined.of(lengths))
    parts.to(dtype)
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        vectors, gradient, own = run(parts, x.to(dtype), Joined.of(lengths))
    torch.testing.assert_close(vectors.float(), expected, rtol=0.1, atol=0.1)
    assert gradient.dtype == dtype
    assert all(g.dtype == dtype and g.isfinite().all() for g in own.values())


def test_logits_of_ten_thousand_do_not_overflow_where_sequences_are_joined():
    logits = torch.tensor([1e4, 1e4, -1e4, -1e4])[:, None]
    weights = masked_softmax(logits, Joined.of(torch.tensor([3, 1])))
    assert weights[:, 0].tolist() == [0.5, 0.5, 0.0, 1.0]


def test_more_elements_than_positions_are_refused_where_sequences_are_joined():
    stack = Fastformer(DIM, FastformerConfig(2, positions="recency"), max_length=5)
    assert stack(torch.zeros(6, DIM), Joined.of(torch.tensor([1, 5]))).shape == (6, DIM)
    with pytest.raises(UserError, match=r"6 elements.*positions for 5.*none"):
        stack(torch.zeros(7, DIM), Joined.of(torch.tensor([1, 6])))


@pytest.mark.parametrize("kind", ["fastformer", "transformer"])
@pytest.mark.parametrize("positions", ["recency", "none"])
def test_users_are_the_same_joined_or_padded(kind, positions):
    torch.manual_seed(0)
    config = FastformerConfig(2, ffn=6, dropout=0.0, positions=positions, encoder=kind)
    encoder = UserEncoder(DIM, config, max_history=6, residual=True).double()
    encoder.apply(init_weights)
    torch.nn.init.constant_(encoder.gate, 0.5)
    mask = length_mask(torch.tensor([3, 0, 6, 1, 3]), 6)
    mask[2, 1:3] = False  # a history with a gap
    history = torch.randn(5, 6, DIM).double().requires_grad_()
    found = []
    for joins in (True, False):
        encoder.joins = joins
        encoder.zero_grad()
        history.grad = None
        users = encoder(history, mask)
        users.pow(2).sum().backward()
        found.append([users, history.grad, *(p.grad for p in encoder.parameters())])
    for joined, padded in zip(*found, strict=True):
        close(joined, padded)


@pytest.mark.parametrize("kind", ["fastformer", "transformer"])
def test_news_are_joined_on_a_cpu_and_padded_elsewhere(kind, monkeypatch):
    torch.manual_seed(0)
    config = FastformerConfig(2, ffn=6, dropout=0.0, encoder=kind)
    encoder = NewsEncoder(made_plm("bert"), DIM, config, 0, max_tokens=12, residual=True).double()
    torch.nn.init.constant_(encoder.gate, 0.5)
    token_ids, lengths = news([1, 2, 2, 4, 5, 9, 12])
    seen, pool = [], encoder.pool
    monkeypatch.setattr(encoder, "pool", lambda x, mask: seen.append(mask) or pool(x, mask))
    joined = encoder(token_ids, lengths)
    with blocks_as_on("cuda"):
        padded = encoder(token_ids, lengths)
    assert [isinstance(mask, Joined) for mask in seen] == [True, *[False] * (len(seen) - 1)]
    close(joined, padded)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.999999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_drops_its_share_and_keeps_the_mean(share, dtype):
    torch.manual_seed(0)
    module, x = Dropout(share), torch.ones(501, 401, dtype=dtype, requires_grad=True)
    y = module(x)
    y.float().sum().backward()
    dropped = (y == 0).float()
    assert abs(float(dropped.mean()) - share) < 0.005
    assert len(set(y[y != 0].tolist())) <= 1
    assert torch.equal(x.grad, y.detach())
    # neighbours, also those whose decisions come from one random word, are independent
    for step in (1, 2, 3, 4, 401):
        both = dropped.flatten()[step:] * dropped.flatten()[:-step]
        assert abs(float(both.mean()) - share**2) < 0.01


def test_dropout_follows_the_seed_and_stops_outside_training(monkeypatch):
    module, x = Dropout(0.5), torch.randn(7, 3)
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs += [module(x), module(x)]
    assert torch.equal(runs[0], runs[2])
    assert torch.equal(runs[1], runs[3])
    assert not torch.equal(runs[0], runs[1])
    assert torch.equal(module.eval()(x), x)
    assert Dropout(0.0)(x) is x
    assert module.train()(torch.zeros(0, 3)).shape == (0, 3)
    monkeypatch.setattr(dropout, "kept", None)  # a GPU has a fast kernel of its own
    with blocks_as_on("cuda"):
        assert module(x).shape == x.shape


def test_kept_values_are_scaled_so_that_their_mean_is_exact():
    torch.manual_seed(0)
    factor = kept(torch.zeros(10), 1e-6)  # below the resolution
    assert (factor == 1).all()
    assert set(kept(torch.zeros(1000), 0.25).tolist()) == {0.0, float(np.float32(4 / 3))}


def test_a_pooling_of_one_sequence_is_a_weighted_mean():
    pooling, x = AttentionPooling(DIM).double(), torch.randn(4, DIM).double()
    weights = pooling.logit(torch.tanh(pooling.hidden(x))).softmax(dim=0)
    close(pooling(x, Joined.of(torch.tensor([4]))), (weights * x).sum(dim=0, keepdim=True))
