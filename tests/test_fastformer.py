"""Fastformer against its equations, written a second time in numpy, and at its edges."""

import itertools
import math

import numpy as np
import pytest
import torch

from newsrec.errors import UserError
from newsrec.model.fastformer import (
    AdditiveAttention,
    AttentionPooling,
    Fastformer,
    FastformerConfig,
    FastformerLayer,
    masked_softmax,
)

DIM = 16
MASKS = {
    "full": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]],
    "left": [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]],
    "scattered": [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]],
    "single": [[1], [1]],
}


def stirred(module, scale=0.3):
    """The module in float64 and evaluation mode, its parameters far from their gentle start."""
    generator = torch.Generator().manual_seed(0)
    module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise, alpha=scale)
    return module


def sequences(shape, dim=DIM):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, dim, generator=generator, dtype=torch.float64)


def mask_of(name):
    return torch.tensor(MASKS[name], dtype=torch.bool)


# The equations for one sequence without padding: x [length, dim], w the weights by name.


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def layer_norm(x, w, name):
    if f"{name}.weight" not in w:
        return x
    centred = x - x.mean(axis=1, keepdims=True)
    x = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-12)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def reference_attention(x, w, heads):
    e = x.shape[1] // heads
    q, k = linear(x, w, "query"), linear(x, w, "key")
    u = np.zeros_like(x)
    gq, gk = np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for h in range(heads):
        a = softmax(q @ w["query_score.weight"][h] / math.sqrt(e))
        gq[h * e : (h + 1) * e] = a @ q[:, h * e : (h + 1) * e]
    p = k * gq
    for h in range(heads):
        b = softmax(p @ w["key_score.weight"][h] / math.sqrt(e))
        gk[h * e : (h + 1) * e] = b @ p[:, h * e : (h + 1) * e]
    for i in range(len(x)):
        u[i] = w["transform.weight"] @ (q[i] * gk) + w["transform.bias"] + q[i]
    return u


def reference_layer(x, w, heads):
    u = reference_attention(x, part(w, "attention."), heads)
    h = layer_norm(linear(u, w, "output") + x, w, "attention_norm")
    if "ffn.0.weight" not in w:
        return h
    return layer_norm(linear(gelu(linear(h, w, "ffn.0")), w, "ffn.2") + h, w, "ffn_norm")


def reference_stack(x, positions, w, heads, layers):
    if "positions.weight" in w:
        x = x + w["positions.weight"][positions]
    x = layer_norm(x, w, "norm")
    for i in range(layers):
        x = reference_layer(x, part(w, f"layers.{i}."), heads)
    return x


def reference_pooling(x, w):
    return softmax(np.tanh(linear(x, w, "hidden")) @ w["logit.weight"][0]) @ x


def weights_of(module):
    return {name: value.numpy() for name, value in module.state_dict().items()}


def part(weights, prefix):
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def assert_same(actual, expected):
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("heads", [1, 4, 16])
def test_a_layer_follows_the_equations(heads, padding):
    layer = stirred(FastformerLayer(DIM, FastformerConfig(heads, ffn=12)))
    mask = mask_of(padding)
    x = sequences(mask.shape)
    mixed = layer(x, mask)
    for row, real in enumerate(mask):
        expected = reference_layer(x[row, real].numpy(), weights_of(layer), heads)
        assert_same(mixed[row, real], expected)


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize(
    ("ffn", "norm", "positions"),
    list(itertools.product([None, 12], ["post", "none"], ["learned", "none"])),
)
def test_a_stack_and_its_pooling_follow_the_equations(ffn, norm, positions, padding):
    config = FastformerConfig(heads=4, layers=2, ffn=ffn, norm=norm, positions=positions)
    stack = stirred(Fastformer(DIM, config, max_length=7), scale=0.1)
    pooling = stirred(AttentionPooling(DIM))
    mask = mask_of(padding)
    x = sequences(mask.shape)
    mixed = stack(x, mask)
    pooled = pooling(mixed, mask)
    for row, real in enumerate(mask):
        where = real.nonzero().flatten().numpy()
        expected = reference_stack(x[row, real].numpy(), where, weights_of(stack), 4, layers=2)
        assert_same(mixed[row, real], expected)
        assert_same(pooled[row], reference_pooling(expected, weights_of(pooling)))


def test_masked_softmax_gives_the_masked_nothing():
    logits = torch.tensor([[0.0, 9.0, 0.0, math.log(2)]])[..., None]  # [batch, length, heads]
    mask = torch.tensor([[True, False, True, True]])
    weights = masked_softmax(logits, mask)[0, :, 0]
    torch.testing.assert_close(weights, torch.tensor([0.25, 0.0, 0.25, 0.5]))
    assert weights[1] == 0


def test_masked_softmax_gives_zeros_where_nothing_is_real():
    weights = masked_softmax(torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool))
    assert (weights == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_masked_softmax_computes_in_float32_at_least(dtype):
    logits = torch.zeros(1, 3000, 1, dtype=dtype)
    weights = masked_softmax(logits, torch.ones(1, 3000, dtype=torch.bool))
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    assert masked_softmax(logits.double(), weights[..., 0] > 0).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_logits_of_ten_thousand_do_not_overflow(dtype):
    logits = torch.tensor([[1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]], dtype=dtype)[..., None]
    weights = masked_softmax(logits, torch.tensor([[True, True, True], [True, False, False]]))
    assert weights[..., 0].tolist() == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]

    pooling = AttentionPooling(1)
    for parameter, value in zip(pooling.parameters(), (1.0, 0.0, 1e4), strict=True):
        torch.nn.init.constant_(parameter, value)
    x = torch.tensor([[9.0], [9.0], [-9.0]])
    assert pooling(x[None], torch.ones(1, 3, dtype=torch.bool)).tolist() == [[9.0]]


def mostly_padding(dtype, norm, padding):
    """A model, and three sequences for it of which the first and the last are all padding."""
    torch.manual_seed(0)
    stack = Fastformer(DIM, FastformerConfig(heads=4, layers=2, norm=norm), max_length=5).to(dtype)
    pooling = AttentionPooling(DIM).to(dtype)
    mask = torch.tensor([[False] * 5, [True, True, True, False, False], [False] * 5])
    x = sequences(mask.shape).to(dtype).masked_fill(~mask[..., None], padding)
    return stack, pooling, x, mask


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.float32, None),
        (torch.bfloat16, None),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
    ],
)
@pytest.mark.parametrize("norm", ["post", "none"])
@pytest.mark.parametrize("padding", [0.0, 1.0])
def test_a_sequence_of_padding_pools_to_zero_and_harms_no_gradient(dtype, autocast, norm, padding):
    stack, pooling, x, mask = mostly_padding(dtype, norm, padding)
    x.requires_grad_()
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        mixed = stack(x, mask)
        pooled = pooling(mixed, mask)
    assert mixed.isfinite().all()
    assert (pooled[[0, 2]] == 0).all()
    assert (pooled[1] != 0).any()
    (pooled * torch.arange(DIM)).float().sum().backward()
    gradients = [x.grad, *(p.grad for p in (*stack.parameters(), *pooling.parameters()))]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (x.grad[~mask] == 0).all()
    assert (x.grad[mask] != 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("padding", [0.0, 1.0])
def test_weights_of_half_precision_pool_a_sequence_of_padding_to_zero_too(dtype, padding):
    stack, pooling, x, mask = mostly_padding(dtype, "post", padding)
    pooled = pooling(stack(x, mask), mask)
    assert pooled.dtype == dtype
    assert pooled.isfinite().all()
    assert (pooled[[0, 2]] == 0).all()


def test_bfloat16_autocast_stays_near_float32():
    stack, pooling, x, mask = mostly_padding(torch.float32, "post", 0.0)
    stack.eval()
    expected = pooling(stack(x, mask), mask)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = pooling(stack(x, mask), mask)
    torch.testing.assert_close(pooled.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("positions", ["learned", "none"])
def test_neither_padding_nor_neighbours_change_a_sequence(positions):
    config = FastformerConfig(heads=4, layers=2, positions=positions)
    stack = stirred(Fastformer(DIM, config, max_length=9))
    pooling = stirred(AttentionPooling(DIM))
    x = sequences((1, 4))
    alone = pooling(stack(x, torch.ones(1, 4, dtype=torch.bool)), torch.ones(1, 4) > 0)
    for padding in (0.0, 1e6):
        crowd = 3 * torch.randn(3, 9, DIM, dtype=torch.float64)
        mask = torch.ones(3, 9, dtype=torch.bool)
        crowd[1] = padding
        crowd[1, :4] = x
        mask[1, 4:] = False
        torch.testing.assert_close(pooling(stack(crowd, mask), mask)[1], alone[0])


def test_without_positions_the_order_does_not_matter_and_with_them_it_does():
    order = torch.tensor([3, 0, 4, 1, 2])
    x = sequences((2, 5))
    mask = torch.ones(2, 5, dtype=torch.bool)
    pooling = stirred(AttentionPooling(DIM))
    plain = stirred(Fastformer(DIM, FastformerConfig(4), max_length=5))
    torch.testing.assert_close(
        pooling(plain(x[:, order], mask), mask), pooling(plain(x, mask), mask)
    )
    placed = stirred(Fastformer(DIM, FastformerConfig(4, positions="learned"), max_length=5))
    change = pooling(placed(x[:, order], mask), mask) - pooling(placed(x, mask), mask)
    assert change.abs().max() > 0.01


def test_gradients_are_those_of_the_function():
    layer = stirred(FastformerLayer(4, FastformerConfig(heads=2, ffn=3)))
    pooling = stirred(AttentionPooling(4))
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    names = [name for name, _ in layer.named_parameters()]

    def pooled(x, *parameters):
        weights = dict(zip(names, parameters, strict=True))
        return pooling(torch.func.functional_call(layer, weights, (x, mask)), mask)

    inputs = (sequences(mask.shape, dim=4).requires_grad_(), *layer.parameters())
    assert torch.autograd.gradcheck(pooled, inputs, fast_mode=True)


def test_dropout_works_in_training_only():
    torch.manual_seed(0)
    stack = Fastformer(DIM, FastformerConfig(4, dropout=0.5), max_length=5)
    x, mask = sequences((2, 5)).float(), torch.ones(2, 5, dtype=torch.bool)
    assert not torch.equal(stack(x, mask), stack(x, mask))
    stack.eval()
    assert torch.equal(stack(x, mask), stack(x, mask))


def test_heads_that_do_not_divide_dim_are_refused_by_name():
    with pytest.raises(UserError, match=r"heads is 5.*dim, 16"):
        AdditiveAttention(16, heads=5)


def test_a_layer_has_the_404000_parameters_of_the_authors_less_their_idle_biases():
    layer = FastformerLayer(256, FastformerConfig(heads=16, ffn=256))
    square = 256 * 256 + 256  # query, key, transform, output, and two of the feed-forward part
    scores, idle_biases, norms = 2 * 16 * 256, 2 * 16, 2 * 2 * 256
    assert sum(p.numel() for p in layer.parameters()) == 6 * square + scores + norms
    assert 6 * square + scores + norms + idle_biases == 404_000


def test_weights_start_as_the_authors_start_them():
    torch.manual_seed(0)
    stack = Fastformer(64, FastformerConfig(layers=2, positions="learned"), max_length=50)
    for name, parameter in stack.named_parameters():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all()
        elif name.endswith("bias"):
            assert (parameter == 0).all()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_config_is_made_of_itself_or_of_the_plain_values_of_a_checkpoint():
    config = FastformerConfig(heads=2, ffn=None)
    assert FastformerConfig.of(config) is config
    assert FastformerConfig.of(vars(config).copy()) == config
