"""Public weights, against the public forward written from its equations with the public names."""

import math

import numpy as np
import pytest
import torch

from newsrec.errors import UserError
from newsrec.model.convert import fastformer_from_public

DIM = 16
SHAPE = {"dim": DIM, "heads": 4, "ffn": 12, "layers": 2, "positions": 7}
MASKS = {
    "full": [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]],
    "left": [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]],
    "scattered": [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]],
    "single": [[1], [1]],
}


def public_weights(dim, heads, ffn, layers, positions, scale=0.3):
    """Weights under the public names, all of them, score biases too."""
    linear = {"poolers.0.att_fc1": (dim, dim), "poolers.0.att_fc2": (1, dim)}
    norms = ["LayerNorm"]
    for n in range(layers):
        layer = f"encoders.{n}."
        for name in ("query", "key", "transform"):
            linear[f"{layer}attention.self.{name}"] = (dim, dim)
        for name in ("query_att", "key_att"):
            linear[f"{layer}attention.self.{name}"] = (heads, dim)
        linear[f"{layer}attention.output.dense"] = (dim, dim)
        norms.append(f"{layer}attention.output.LayerNorm")
        if ffn:
            linear[f"{layer}intermediate.dense"] = (ffn, dim)
            linear[f"{layer}output.dense"] = (dim, ffn)
            norms.append(f"{layer}output.LayerNorm")
    shapes = {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    shapes |= {f"{name}.{kind}": (dim,) for name in norms for kind in ("weight", "bias")}
    if positions:
        shapes["position_embeddings.weight"] = (positions, dim)
    generator = torch.Generator().manual_seed(0)
    return {
        name: scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        + (1 if name.endswith("LayerNorm.weight") else 0)
        for name, shape in shapes.items()
    }


def public_forward(w, x, mask, heads, layers):
    """The published forward in numpy: masks are -10,000, and the pooling has 1e-8 to its sum."""
    w = {name: value.numpy() for name, value in w.items()}
    length, dim = x.shape[1:]
    minus = np.where(mask, 0.0, -10_000.0)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-12)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def pool(x, logits):  # per head: weights [batch, length] over its slice of x
        parts = []
        for h, part in enumerate(np.split(x, heads, axis=-1)):
            scaled = logits[..., h] / math.sqrt(dim / heads) + minus
            weights = np.exp(scaled - scaled.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            parts.append((weights[..., None] * part).sum(axis=1, keepdims=True))
        return np.concatenate(parts, axis=-1)

    if "position_embeddings.weight" in w:
        x = x + w["position_embeddings.weight"][:length]
    x = norm(x, "LayerNorm")
    for n in range(layers):
        at, layer = f"encoders.{n}.attention.self.", f"encoders.{n}."
        query = linear(x, at + "query")
        product = linear(x, at + "key") * pool(query, linear(query, at + "query_att"))
        global_key = pool(product, linear(product, at + "key_att"))
        mixed = linear(query * global_key, at + "transform") + query
        x = norm(
            linear(mixed, layer + "attention.output.dense") + x,
            f"{layer}attention.output.LayerNorm",
        )
        if f"{layer}output.dense.weight" in w:
            inner = linear(x, layer + "intermediate.dense")
            inner = inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))) / 2
            x = norm(linear(inner, layer + "output.dense") + x, layer + "output.LayerNorm")
    weights = np.exp(linear(np.tanh(linear(x, "poolers.0.att_fc1")), "poolers.0.att_fc2"))
    weights = weights * mask[..., None]
    return (weights / (weights.sum(axis=1, keepdims=True) + 1e-8) * x).sum(axis=1)


def sequences(padding, dim=DIM):
    mask = torch.tensor(MASKS[padding], dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*mask.shape, dim, generator=generator, dtype=torch.float64), mask


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("heads", [1, 4, 16])
@pytest.mark.parametrize(("ffn", "layers", "positions"), [(12, 2, 7), (16, 1, None), (None, 3, 0)])
def test_converted_weights_give_what_the_public_forward_gives(
    padding, heads, ffn, layers, positions
):
    weights = public_weights(DIM, heads, ffn, layers, positions)
    module = fastformer_from_public(
        weights, dim=DIM, heads=heads, ffn=ffn, layers=layers, positions=positions
    )
    x, mask = sequences(padding)
    expected = public_forward(weights, x.numpy(), mask.numpy(), heads, layers)
    vectors = module(x, mask)
    assert vectors.dtype == torch.float64
    np.testing.assert_allclose(vectors.detach().numpy(), expected, rtol=0, atol=1e-6)


def test_the_notebooks_sizes_in_float32_agree_too():
    sizes = {"dim": 256, "heads": 16, "ffn": 256, "layers": 2, "positions": 256}
    weights = public_weights(**sizes, scale=0.02)
    module = fastformer_from_public({n: w.float() for n, w in weights.items()}, **sizes)
    x, mask = sequences("right", dim=256)
    expected = public_forward(weights, x.numpy(), mask.numpy(), heads=16, layers=2)
    vectors = module(x.float(), mask)
    assert vectors.dtype == torch.float32
    np.testing.assert_allclose(vectors.detach().numpy(), expected, rtol=0, atol=1e-6)


def test_score_biases_change_nothing_and_may_be_absent():
    weights = public_weights(**SHAPE)
    idle = [n for n in weights if n.endswith(("_att.bias", "att_fc2.bias"))]
    assert len(idle) == 2 * 2 + 1
    x, mask = sequences("scattered")
    expected = fastformer_from_public(weights, **SHAPE)(x, mask)
    without = {n: w for n, w in weights.items() if n not in idle}
    assert torch.equal(fastformer_from_public(without, **SHAPE)(x, mask), expected)
    other = public_forward(
        weights | {n: weights[n] + 3 for n in idle}, x.numpy(), mask.numpy(), 4, 2
    )
    np.testing.assert_allclose(expected.detach().numpy(), other, rtol=0, atol=1e-6)


def test_a_row_of_padding_gives_zeros():
    x, mask = sequences("full")
    mask[1] = False
    vectors = fastformer_from_public(public_weights(**SHAPE), **SHAPE)(x, mask)
    assert (vectors[1] == 0).all()
    assert (vectors[0] != 0).any()


def test_the_module_stands_alone_in_evaluation_mode():
    weights = public_weights(**SHAPE)
    module = fastformer_from_public(weights, **SHAPE)
    x, mask = sequences("full")
    before = module(x, mask)
    for weight in weights.values():
        weight.zero_()
    assert torch.equal(module(x, mask), before)
    assert not any(part.training for part in module.modules())
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("prefix", ["fastformer_model.", "module.", "module.news.fastformer."])
def test_a_prefix_is_found_out_and_what_stands_beside_it_left_alone(prefix):
    weights = public_weights(**SHAPE)
    model = {prefix + name: weight for name, weight in weights.items()}
    model |= {"word_embedding.weight": torch.zeros(9, DIM), "dense.bias": torch.zeros(3)}
    x, mask = sequences("left")
    expected = fastformer_from_public(weights, **SHAPE)(x, mask)
    assert torch.equal(fastformer_from_public(model, **SHAPE)(x, mask), expected)
    assert torch.equal(fastformer_from_public(model, **SHAPE, prefix=prefix)(x, mask), expected)


def test_of_two_fastformers_one_must_be_chosen():
    news, user = public_weights(**SHAPE), public_weights(**SHAPE, scale=0.1)
    model = {f"news.{n}": w for n, w in news.items()} | {f"user.{n}": w for n, w in user.items()}
    with pytest.raises(UserError, match=r"2 Fastformers.*prefix.*'news\.', 'user\.'"):
        fastformer_from_public(model, **SHAPE)
    x, mask = sequences("full")
    expected = fastformer_from_public(user, **SHAPE)(x, mask)
    assert torch.equal(fastformer_from_public(model, **SHAPE, prefix="user.")(x, mask), expected)


def test_weights_that_do_not_fit_are_named_with_what_was_expected():
    weights = public_weights(**SHAPE)
    del weights["encoders.1.attention.self.key.weight"]
    del weights["poolers.0.att_fc1.bias"]
    weights["encoders.0.attention.self.value.weight"] = torch.zeros(DIM, DIM)
    weights["encoders.0.output.dense.bias"] = torch.zeros(5)
    with pytest.raises(UserError) as error:
        fastformer_from_public(weights, **SHAPE)
    for part in (
        "missing encoders.1.attention.self.key.weight (16, 16)",
        "missing poolers.0.att_fc1.bias (16,)",
        "unexpected encoders.0.attention.self.value.weight (16, 16)",
        "encoders.0.output.dense.bias is (5,) where (16,) is expected",
        "dim 16, heads 4, ffn 12, layers 2, positions 7",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"heads": 8}, r"query_att.weight is \(4, 16\) where \(8, 16\)"),
        ({"ffn": 20}, r"intermediate.dense.weight is \(12, 16\) where \(20, 16\)"),
        ({"ffn": None}, r"unexpected encoders.0.intermediate.dense.weight"),
        ({"layers": 1}, r"unexpected encoders.1.attention.self.query.weight"),
        ({"layers": 3}, r"missing encoders.2.attention.self.query.weight"),
        ({"positions": 9}, r"position_embeddings.weight is \(7, 16\) where \(9, 16\)"),
        ({"positions": None}, r"unexpected position_embeddings.weight \(7, 16\)"),
        ({"dim": 32}, r"query.weight is \(16, 16\) where \(32, 32\)"),
        ({"heads": 5}, r"heads is 5.*1, 2, 4, 8, 16"),
    ],
)
def test_sizes_that_are_not_those_of_the_weights_are_refused(other, said):
    with pytest.raises(UserError, match=said):
        fastformer_from_public(public_weights(**SHAPE), **(SHAPE | other))


def test_weights_of_something_else_are_refused():
    with pytest.raises(UserError, match=r"missing encoders.0.*unexpected layer.weight"):
        fastformer_from_public({"layer.weight": torch.zeros(2, 2)}, **SHAPE)
