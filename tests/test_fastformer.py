"""Fastformer against its equations, written a second time in numpy, and at its edges."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from newsrec.errors import UserError
from newsrec.model.fastformer import (
    PRESETS,
    AdditiveAttention,
    AttentionPooling,
    Fastformer,
    FastformerConfig,
    FastformerLayer,
    masked_softmax,
)

CONFIGS = Path(__file__).parents[1] / "configs"
DIM = 16
ENCODERS = ["fastformer", "transformer"]
POSITIONS = ["learned", "recency", "none"]
MASKS = {
    "full": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]],
    "left": [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]],
    "scattered": [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]],
    "single": [[1], [1]],
    "empty": [[0, 0, 0], [1, 1, 0], [0, 0, 0]],
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


def pooled(stack, pooling, x, mask):
    return pooling(stack(x, mask), mask)


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


def reference_stack(x, positions, w, heads, layers, shared=False):
    if "positions.weight" in w:
        x = x + w["positions.weight"][positions]
    x = layer_norm(x, w, "norm")
    for i in range(layers):
        x = reference_layer(x, part(w, f"layers.{0 if shared else i}."), heads)
    return x


def places(kind, real):
    """Positions of the real elements of one row: from its first column, or from its last click."""
    where = [column for column, yes in enumerate(real) if yes]
    return where if kind == "learned" else list(range(len(where)))[::-1]


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
        if real.any():
            expected = reference_layer(x[row, real].numpy(), weights_of(layer), heads)
            assert_same(mixed[row, real], expected)
    assert mixed.isfinite().all()


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize(
    ("ffn", "norm", "positions", "shared"),
    list(itertools.product([None, 12], ["post", "none"], POSITIONS, [False, True])),
)
def test_a_stack_and_its_pooling_follow_the_equations(ffn, norm, positions, shared, padding):
    config = FastformerConfig(4, 2, ffn, norm=norm, positions=positions, share_layers=shared)
    stack = stirred(Fastformer(DIM, config, max_length=7), scale=0.1)
    pooling = stirred(AttentionPooling(DIM))
    mask = mask_of(padding)
    x = sequences(mask.shape)
    mixed = stack(x, mask)
    vectors = pooling(mixed, mask)
    for row, real in enumerate(mask):
        if not real.any():
            assert (vectors[row] == 0).all()
            continue
        where = places(positions, real)
        expected = reference_stack(x[row, real].numpy(), where, weights_of(stack), 4, 2, shared)
        assert_same(mixed[row, real], expected)
        assert_same(vectors[row], reference_pooling(expected, weights_of(pooling)))


@settings(max_examples=200, deadline=None)
@given(
    mask=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=3),
    length=st.integers(1, 6),
    heads=st.sampled_from([1, 2, 4, 8]),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_attention_follows_the_equations_for_any_mask(mask, length, heads, scale, seed):
    torch.manual_seed(seed)
    attention = AdditiveAttention(8, heads).double()
    pooling = AttentionPooling(8).double()
    mask = torch.tensor(mask)[:, :length]
    x = scale * torch.randn(*mask.shape, 8, dtype=torch.float64)
    mixed = attention(x, mask)
    vectors = pooling(mixed, mask)
    for row, real in enumerate(mask):
        if not real.any():
            assert (vectors[row] == 0).all()
            continue
        expected = reference_attention(x[row, real].numpy(), weights_of(attention), heads)
        assert_same(mixed[row, real], expected)
        assert_same(vectors[row], reference_pooling(expected, weights_of(pooling)))


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


def mostly_padding(dtype, norm, padding, encoder="fastformer"):
    """A model, and three sequences for it of which the first and the last are all padding."""
    torch.manual_seed(0)
    config = FastformerConfig(4, 2, norm=norm, encoder=encoder)
    stack = Fastformer(DIM, config, max_length=5).to(dtype)
    pooling = AttentionPooling(DIM).to(dtype)
    mask = torch.tensor([[False] * 5, [True, True, True, False, False], [False] * 5])
    x = sequences(mask.shape).to(dtype).masked_fill(~mask[..., None], padding)
    return stack, pooling, x, mask


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [
        (torch.float64, None),
        (torch.float32, None),
        (torch.bfloat16, None),
        (torch.float16, None),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
    ],
)
@pytest.mark.parametrize("norm", ["post", "none"])
@pytest.mark.parametrize("padding", [0.0, 1.0])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_sequence_of_padding_pools_to_zero_and_harms_no_gradient(
    dtype, autocast, norm, padding, encoder
):
    stack, pooling, x, mask = mostly_padding(dtype, norm, padding, encoder)
    x.requires_grad_()
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        mixed = stack(x, mask)
        vectors = pooling(mixed, mask)
    assert mixed.isfinite().all()
    assert (vectors[[0, 2]] == 0).all()
    assert (vectors[1] != 0).any()
    (vectors * torch.arange(DIM)).float().sum().backward()
    gradients = [x.grad, *(p.grad for p in (*stack.parameters(), *pooling.parameters()))]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (x.grad[~mask] == 0).all()
    assert (x.grad[mask] != 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_attention_logits_of_ten_thousand_give_finite_vectors_and_gradients(dtype, sign, encoder):
    config = FastformerConfig(heads=1, norm="none", ffn=None, dropout=0.0, encoder=encoder)
    layer, pooling = FastformerLayer(1, config), AttentionPooling(1)
    for part in (layer, pooling):
        for name, parameter in part.named_parameters():
            torch.nn.init.constant_(parameter, 0.0 if "bias" in name else 1.0)
    with torch.no_grad():  # so that logits are +-10,000 at the first element
        if encoder == "fastformer":
            layer.attention.query_score.weight.fill_(sign * 1e4)
        else:
            layer.attention.query.weight.fill_(sign * 1e4)
        pooling.logit.weight.fill_(sign * 1e4)
    layer.to(dtype), pooling.to(dtype)
    x = torch.tensor([[1.0, -1.0, 0.5], [-1.0, 1.0, 0.0]], dtype=dtype)[..., None].requires_grad_()
    mask = torch.tensor([[True, True, False], [False, False, False]])
    vectors = pooled(layer, pooling, x, mask)
    vectors.sum().backward()
    assert vectors.isfinite().all()
    assert vectors[1] == 0
    assert all(p.grad.isfinite().all() for p in (*layer.parameters(), *pooling.parameters()))
    assert x.grad.isfinite().all()
    assert (x.grad[~mask] == 0).all()


@pytest.mark.parametrize("encoder", ENCODERS)
def test_bfloat16_autocast_stays_near_float32(encoder):
    stack, pooling, x, mask = mostly_padding(torch.float32, "post", 0.0, encoder)
    stack.eval()
    expected = pooled(stack, pooling, x, mask)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = pooled(stack, pooling, x, mask)
    torch.testing.assert_close(vectors.float(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_neither_padding_nor_neighbours_change_a_sequence(positions, encoder):
    config = FastformerConfig(heads=4, layers=2, positions=positions, encoder=encoder)
    stack = stirred(Fastformer(DIM, config, max_length=9))
    pooling = stirred(AttentionPooling(DIM))
    x = sequences((1, 4))
    alone = pooled(stack, pooling, x, torch.ones(1, 4, dtype=torch.bool))
    for padding in (0.0, 1e6):
        crowd = 3 * torch.randn(3, 9, DIM, dtype=torch.float64)
        mask = torch.ones(3, 9, dtype=torch.bool)
        crowd[1] = padding
        crowd[1, :4] = x
        mask[1, 4:] = False
        torch.testing.assert_close(pooled(stack, pooling, crowd, mask)[1], alone[0])


@settings(max_examples=200, deadline=None)
@given(
    encoder=st.sampled_from(ENCODERS),
    positions=st.sampled_from(["recency", "none"]),
    real=st.lists(st.booleans(), min_size=1, max_size=8).filter(any),
    padding=st.sampled_from([0.0, 1.0, -1e4]),
    seed=st.integers(0, 2**31),
)
def test_padding_anywhere_changes_nothing(encoder, positions, real, padding, seed):
    # learned positions count columns, so there padding in front moves a sequence
    torch.manual_seed(seed)
    config = FastformerConfig(2, 2, 8, positions=positions, encoder=encoder)
    stack = stirred(Fastformer(8, config, max_length=8))
    pooling = stirred(AttentionPooling(8))
    mask = torch.tensor([real])
    x = torch.randn(1, sum(real), 8, dtype=torch.float64)
    padded = torch.full((1, len(real), 8), padding, dtype=torch.float64)
    padded[mask] = x[0]
    alone = pooled(stack, pooling, x, torch.ones(x.shape[:2], dtype=torch.bool))
    torch.testing.assert_close(pooled(stack, pooling, padded, mask), alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_without_positions_the_order_does_not_matter_and_with_them_it_does(encoder):
    order = torch.tensor([3, 0, 4, 1, 2])
    x = sequences((2, 5))
    mask = torch.ones(2, 5, dtype=torch.bool)
    pooling = stirred(AttentionPooling(DIM))
    for positions in POSITIONS:
        config = FastformerConfig(4, positions=positions, encoder=encoder)
        stack = stirred(Fastformer(DIM, config, max_length=5))
        change = pooled(stack, pooling, x[:, order], mask) - pooled(stack, pooling, x, mask)
        assert (change.abs().max() < 1e-12) == (positions == "none")


def test_recency_is_the_distance_from_the_last_element_and_learned_from_the_first():
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False, True, False, True]])
    recency = Fastformer(DIM, FastformerConfig(4, positions="recency"), max_length=4)._places(mask)
    assert recency[0].tolist() == [3, 2, 1, 0]
    assert recency[1, :2].tolist() == [1, 0]
    assert recency[2, [1, 3]].tolist() == [1, 0]
    learned = Fastformer(DIM, FastformerConfig(4, positions="learned"), max_length=4)._places(mask)
    assert learned.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("positions", ["learned", "recency"])
def test_more_elements_than_positions_are_refused(positions):
    stack = Fastformer(DIM, FastformerConfig(4, positions=positions), max_length=5)
    for length in (0, 1, 5):
        assert stack(torch.zeros(1, length, DIM), torch.ones(1, length) > 0).shape[1] == length
    with pytest.raises(UserError, match=r"6 elements.*positions for 5.*none"):
        stack(torch.zeros(1, 6, DIM), torch.ones(1, 6, dtype=torch.bool))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_gradients_are_those_of_the_function(encoder):
    config = FastformerConfig(2, 2, 3, positions="recency", encoder=encoder, share_layers=True)
    stack = stirred(Fastformer(4, config, max_length=3))
    pooling = stirred(AttentionPooling(4))
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    names = [name for name, _ in stack.named_parameters()]

    def vectors(x, *parameters):
        weights = dict(zip(names, parameters, strict=True))
        return pooling(torch.func.functional_call(stack, weights, (x, mask)), mask)

    inputs = (sequences(mask.shape, dim=4).requires_grad_(), *stack.parameters())
    assert torch.autograd.gradcheck(vectors, inputs, fast_mode=True)


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
    with pytest.raises(UserError, match=r"heads is 5.*dim, 16.*1, 2, 4, 8, 16\."):
        Fastformer(16, FastformerConfig(heads=5), max_length=5)


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("encoder", "lstm", "fastformer, transformer"),
        ("norm", "pre", "post, none"),
        ("positions", "sine", "learned, recency, none"),
        ("heads", 0, "1, 2, 4, 8, 16"),
        ("layers", -1, "0 or more"),
        ("ffn", 0, "1 or more, or null"),
        ("dropout", 1.0, "0 or more, below 1"),
        ("dropout", math.nan, "0 or more, below 1"),
    ],
)
def test_values_that_no_stack_can_have_are_refused_by_name(option, value, allowed):
    config = FastformerConfig(**{option: value})
    with pytest.raises(UserError, match=f"^{option} is .*{value}.*{allowed}"):
        Fastformer(16, config, max_length=5)
    with pytest.raises(UserError, match=f"^model.user.{option} is "):
        config.check(16, "model.user.")


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
    older = {
        "heads": 8,
        "layers": 1,
        "ffn": 128,
        "dropout": 0.3,
        "norm": "post",
        "positions": "none",
    }
    assert FastformerConfig.of(older) == FastformerConfig(8, 1, 128, 0.3)


def test_layers_that_are_shared_have_the_weights_of_one():
    def names(layers, shared):
        config = FastformerConfig(4, layers, share_layers=shared)
        return list(Fastformer(DIM, config, max_length=5).state_dict())

    assert names(3, shared=True) == names(1, shared=True) == names(1, shared=False)
    assert len(names(3, shared=False)) > len(names(3, shared=True))
    assert not any("layers" in name for name in (*names(0, True), *names(0, False)))


def test_no_layers_leave_the_elements_without_sight_of_each_other():
    stack = stirred(Fastformer(DIM, FastformerConfig(4, layers=0, norm="none"), max_length=5))
    x = sequences((2, 5))
    assert torch.equal(stack(x, torch.ones(2, 5, dtype=torch.bool)), x)


def test_presets_are_what_the_authors_published_and_give_way_to_what_is_written():
    notebook = FastformerConfig(16, 2, 256, 0.2, "post", "learned")
    assert FastformerConfig.preset("notebook") == notebook
    plain = FastformerConfig(ffn=None, norm="none", positions="none")
    assert FastformerConfig.preset("plain") == plain
    mixed = FastformerConfig.preset("plain", heads=8, ffn=64, encoder="transformer")
    assert mixed == FastformerConfig(8, ffn=64, norm="none", encoder="transformer")
    with pytest.raises(UserError, match=r"'fancy'.*notebook, plain"):
        FastformerConfig.preset("fancy")


def test_the_files_of_the_presets_hold_what_the_presets_hold():
    files = {path.stem: path.read_text() for path in (CONFIGS / "encoder").glob("*.yaml")}
    assert {name: yaml.safe_load(text) for name, text in files.items()} == PRESETS


def test_a_preset_is_chosen_on_the_command_line_and_gives_way_to_single_options(monkeypatch):
    import jsonargparse

    from newsrec.commands.fit import FitCLI, cli_options

    jsonargparse.set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    monkeypatch.setattr("sys.argv", ["newsrec"])
    args = ["--config", str(CONFIGS / "demo.yaml")]
    args += ["--model.user", str(CONFIGS / "encoder" / "plain.yaml"), "--model.user.heads", "4"]
    args += ["--model.news.encoder", "transformer"]
    model = FitCLI(args=args, **cli_options(run=False)).model
    assert model.user == FastformerConfig.preset("plain", heads=4, dropout=0.3)  # dropout: the demo
    assert model.news == FastformerConfig(8, ffn=128, dropout=0.3, encoder="transformer")


def test_a_notebook_stack_is_of_the_authors_size_and_a_plain_one_has_attention_alone():
    notebook = Fastformer(256, FastformerConfig.preset("notebook"), max_length=256)
    idle_biases = 2 * 2 * 16
    count = sum(p.numel() for p in notebook.parameters())
    assert count == 2 * 404_000 - idle_biases + 256 * 256 + 2 * 256  # positions, and the first norm
    plain = Fastformer(DIM, FastformerConfig.preset("plain"), max_length=5)
    assert {name.split(".")[2] for name in plain.state_dict()} == {"attention", "output"}
