"""Loads weights of public Fastformer implementations, named as in the authors' notebook."""

from collections.abc import Mapping

from torch import Tensor, nn

from newsrec.errors import UserError
from newsrec.model.fastformer import AttentionPooling, Fastformer, FastformerConfig

LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.query_score": "attention.self.query_att",
    "attention.key_score": "attention.self.key_att",
    "attention.transform": "attention.self.transform",
    "output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "ffn.0": "intermediate.dense",
    "ffn.2": "output.dense",
    "ffn_norm": "output.LayerNorm",
}
"""Our name of a part of a layer -> the public name, which follows ``encoders.N.``"""

ENCODER = {
    "stack.positions": "position_embeddings",
    "stack.norm": "LayerNorm",
    "pooling.hidden": "poolers.0.att_fc1",
    "pooling.logit": "poolers.0.att_fc2",
}
"""Our name of a part outside the layers -> the public name."""

IDLE = ("attention.self.query_att.bias", "attention.self.key_att.bias", "poolers.0.att_fc2.bias")
"""Biases of attention scores; dropping them is exact, since each shifts all logits equally."""

MARK = "encoders.0.attention.self.query.weight"
"""Every public state dict has this name; the text before it is the prefix of all names."""


class PooledFastformer(nn.Module):
    """A Fastformer stack with pooling on top; public implementations call this an encoder."""

    def __init__(self, dim: int, config: FastformerConfig, max_length: int) -> None:
        super().__init__()
        self.stack = Fastformer(dim, config, max_length)
        self.pooling = AttentionPooling(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return ``[batch, dim]`` for ``[batch, length, dim]``; see ``AttentionPooling``."""
        return self.pooling(self.stack(x, mask), mask)


def fastformer_from_public(
    state_dict: Mapping[str, Tensor],
    *,
    dim: int,
    heads: int,
    ffn: int | None,
    layers: int,
    positions: int | None,
    prefix: str | None = None,
) -> PooledFastformer:
    """Build a Fastformer from weights with the public names.

    The names are those of https://github.com/wuch15/Fastformer: ``encoders.N.attention.self.query``
    and so on. The result agrees with the public forward pass to 1e-6; a small difference remains
    because the public pooling divides by its sum + 1e-8. Rows that are all padding give zeros here.

    Args:
        state_dict: Names to weights, of the encoder or of a model that contains one.
        dim: Size of each element.
        heads: Attention heads.
        ffn: Width of the feed-forward part; None if there is none.
        layers: Layers.
        positions: Number of learned positions, which bounds the sequence length; None or 0 for
            none.
        prefix: Prefix of the encoder's names, such as ``fastformer_model.``; detected if None.
            Names without the prefix are ignored.

    Returns:
        The encoder in evaluation mode, in the precision of the weights.

    Raises:
        UserError: If weights are missing, unexpected or of another shape; the message lists them.
    """
    config = FastformerConfig(
        heads, layers, ffn, positions="learned" if positions else "none", norm="post"
    )
    module = PooledFastformer(dim, config, positions or 0).eval()
    public = {name: _public_name(name) for name in module.state_dict()}
    expected = {public[name]: tuple(w.shape) for name, w in module.state_dict().items()}
    prefix = _prefix(state_dict) if prefix is None else prefix
    given = {
        name.removeprefix(prefix): weight
        for name, weight in state_dict.items()
        if name.startswith(prefix) and not name.endswith(IDLE)
    }
    wrong = [f"missing {name} {shape}" for name, shape in expected.items() if name not in given]
    for name, weight in given.items():
        shape = tuple(weight.shape)
        if name not in expected:
            wrong.append(f"unexpected {name} {shape}")
        elif shape != expected[name]:
            wrong.append(f"{name} is {shape} where {expected[name]} is expected")
    if wrong:
        raise UserError(
            f"The weights do not fit dim {dim}, heads {heads}, ffn {ffn}, layers {layers}, "
            f"positions {positions}, prefix {prefix!r}: {'; '.join(wrong)}."
        )
    module.to(given[public["pooling.logit.weight"]].dtype)
    module.load_state_dict({name: given[public[name]] for name in public})
    return module


def _public_name(name: str) -> str:
    part, _, kind = name.rpartition(".")
    if part in ENCODER:
        return f"{ENCODER[part]}.{kind}"
    number, _, part = part.removeprefix("stack.layers.").partition(".")
    return f"encoders.{number}.{LAYER[part]}.{kind}"


def _prefix(state_dict: Mapping[str, Tensor]) -> str:
    found = [name.removesuffix(MARK) for name in state_dict if name.endswith(MARK)]
    if len(found) > 1:
        raise UserError(f"There are {len(found)} Fastformers. Set prefix to one of {found}.")
    return found[0] if found else ""
