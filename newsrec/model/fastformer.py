"""Fastformer: additive attention in linear time (Wu et al., arXiv 2108.09084).

This file knows nothing about news. Shapes use ``length`` for the sequence and ``dim`` for its
elements; a mask is True where an element is real.
"""

import math
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from newsrec.errors import UserError
from newsrec.model.dropout import Dropout
from newsrec.model.sequences import (
    Joined,
    Mask,
    masked_mean,
    masked_softmax,
    product,
    weighted_sums,
)
from newsrec.model.transformer import SoftmaxAttention

Encoder = Literal["fastformer", "transformer"]
Norm = Literal["post", "none"]
Positions = Literal["learned", "recency", "none"]
Pooling = Literal["attention", "mean"]

PRESETS: dict[str, dict[str, Any]] = {
    "notebook": {
        "heads": 16,
        "layers": 2,
        "ffn": 256,
        "dropout": 0.2,
        "norm": "post",
        "positions": "learned",
    },
    "plain": {"heads": 16, "layers": 1, "ffn": None, "norm": "none", "positions": "none"},
}
"""Shapes that the authors published at https://github.com/wuch15/Fastformer, for dim 256.

``notebook`` is their released layer with the sizes of ``fastformer.json``. ``plain`` follows their
README: not all tasks need the feed-forward part, and news recommendation does better without layer
normalization and positions. On the command line: ``--model.user configs/encoder/plain.yaml``.
"""

MOST_HEADS, FEW = 4096, 10
"""An error message suggests at most ``FEW`` numbers of heads, up to ``MOST_HEADS``."""


@dataclass(unsafe_hash=True)  # so that it can be the default of an option
class FastformerConfig:
    """Shape of a stack of Fastformer layers, or of its softmax twin.

    Args:
        heads: Attention heads; must divide dim.
        layers: Number of layers; with 0, elements are pooled without attention between them.
        ffn: Width of the feed-forward part, or null to leave it out.
        dropout: Share of values dropped in training.
        norm: post adds a LayerNorm after each residual sum, none adds no LayerNorm.
        positions: learned adds an embedding of the position, recency adds an embedding of the
            distance from the last element (in a history, the newest click), none ignores the order.
        encoder: fastformer, or transformer for softmax attention in otherwise the same layers.
        share_layers: Whether all layers share one set of weights, as in the paper; in the authors'
            code each layer has its own.
        pooling: How the elements become one vector at the end: attention takes a mean with learned
            weights, as in the paper; mean takes the plain mean.
    """

    heads: int = 16
    layers: int = 1
    ffn: int | None = 256
    dropout: float = 0.2
    norm: Norm = "post"
    positions: Positions = "none"
    encoder: Encoder = "fastformer"
    share_layers: bool = False
    pooling: Pooling = "attention"

    @classmethod
    def of(cls, values: "FastformerConfig | dict[str, Any]") -> "FastformerConfig":
        """Return a config unchanged, or build it from the plain dict in a checkpoint."""
        return values if isinstance(values, cls) else cls(**values)  # type: ignore[arg-type]

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "FastformerConfig":
        """Return a published shape, notebook or plain, with some changes: see ``PRESETS``."""
        if name not in PRESETS:
            raise UserError(f"preset is {name!r}. Choose one of {', '.join(PRESETS)}.")
        return cls(**(PRESETS[name] | overrides))

    def check(self, dim: int, option: str = "") -> None:
        """Refuse values that no stack of elements of size ``dim`` can be built from.

        ``option`` is the prefix of a field's name in messages, such as ``model.user.``.
        """
        kinds = {"encoder": Encoder, "norm": Norm, "positions": Positions, "pooling": Pooling}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if value not in get_args(kind):
                allowed = ", ".join(get_args(kind))
                raise UserError(f"{option}{name} is {value!r}. Choose one of {allowed}.")
        if self.heads < 1 or dim % self.heads:
            divisors = (n for n in range(1, min(dim, MOST_HEADS) + 1) if dim % n == 0)
            raise UserError(
                f"{option}heads is {self.heads}, which does not divide dim, {dim}. "
                f"Choose one of {', '.join(map(str, islice(divisors, FEW)))}."
            )
        if self.layers < 0:
            raise UserError(f"{option}layers is {self.layers}; it must be 0 or more.")
        if self.ffn is not None and self.ffn < 1:
            raise UserError(
                f"{option}ffn is {self.ffn}; it must be 1 or more, or null for no such part."
            )
        if not 0 <= self.dropout < 1:
            raise UserError(f"{option}dropout is {self.dropout}; it must be 0 or more, below 1.")


class AttentionPooling(nn.Module):
    """Weighted mean over a sequence of elements of size ``dim``, weights learned from them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, dim)
        self.logit = nn.Linear(dim, 1, bias=False)  # a bias would shift all logits equally

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """Pool sequences ``[batch, length, dim]`` to vectors ``[batch, dim]``.

        They may also be joined, see ``newsrec.model.sequences``. An empty sequence gives zeros.
        """
        weights = masked_softmax(self.logit(torch.tanh(self.hidden(x))), mask)
        return weighted_sums(weights, x, mask)


class MeanPooling(nn.Module):
    """Mean over a sequence, in place of ``AttentionPooling``."""

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """Pool sequences; same arguments and result as ``AttentionPooling``."""
        return masked_mean(x, mask)


def pooling_of(dim: int, config: FastformerConfig) -> nn.Module:
    """Return a new pooling module of the kind that ``config.pooling`` names."""
    return AttentionPooling(dim) if config.pooling == "attention" else MeanPooling()


class AdditiveAttention(nn.Module):
    """Fastformer's attention: a global query, then a global key, each pooled by additive attention.

    As in the authors' code, each head computes its scores from the full query, the values are the
    queries (there is no third projection), and the global key pools ``key * global query``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"heads is {heads}, which does not divide dim, {dim}.")
        self.heads = heads
        self.scale = 1 / math.sqrt(dim // heads)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        # No biases: they would shift all positions equally, without effect or gradient.
        self.query_score = nn.Linear(dim, heads, bias=False)
        self.key_score = nn.Linear(dim, heads, bias=False)
        self.transform = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """Mix sequences ``[batch, length, dim]``, or joined ones ``[elements, dim]``.

        The result is undefined where a mask ``[batch, length]`` is False.
        """
        query, key = self.query(x), self.key(x)
        global_query = self._pool(self.query_score(query), query, mask)
        key = product(key, global_query, mask)
        global_key = self._pool(self.key_score(key), key, mask)
        return self.transform(product(query, global_key, mask)) + query

    def _pool(self, logits: Tensor, x: Tensor, mask: Mask) -> Tensor:
        weights = masked_softmax(logits * self.scale, mask)
        return weighted_sums(weights, x, mask)


class LayerNorm(nn.LayerNorm):
    """Layer normalization with the authors' epsilon, 1e-12, also in float16.

    An element without variance, such as padding, is divided by 1e-6. On a CPU, PyTorch keeps the
    inverse in float16 for the backward pass, where it overflows to infinity and gives 0 times
    infinity. So float16 is normalized in float32.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each element ``[..., dim]``."""
        if self.weight.dtype != torch.float16:
            return super().forward(x)
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class FastformerLayer(nn.Module):
    """Additive attention and a feed-forward part, each with a residual sum.

    With ``encoder: transformer``, softmax attention replaces additive attention; all else is equal.
    """

    def __init__(self, dim: int, config: FastformerConfig) -> None:
        super().__init__()
        norm = config.norm == "post"
        kind = SoftmaxAttention if config.encoder == "transformer" else AdditiveAttention
        self.attention = kind(dim, config.heads)
        self.output = nn.Linear(dim, dim)
        self.attention_norm = LayerNorm(dim) if norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.ffn: nn.Sequential | None = None
        if config.ffn is not None:
            self.ffn = nn.Sequential(
                nn.Linear(dim, config.ffn), nn.GELU(), nn.Linear(config.ffn, dim)
            )
            self.ffn_norm = LayerNorm(dim) if norm else nn.Identity()

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """Return the layer's output; same arguments and shapes as ``AdditiveAttention``."""
        x = self.attention_norm(self.dropout(self.output(self.attention(x, mask))) + x)
        if self.ffn is not None:
            x = self.ffn_norm(self.dropout(self.ffn(x)) + x)
        return x


class Fastformer(nn.Module):
    """A stack of Fastformer layers, or of their softmax twins.

    Args:
        dim: Size of each element.
        config: Shape of the stack.
        max_length: Longest sequence; used only by positions.
    """

    def __init__(self, dim: int, config: FastformerConfig, max_length: int) -> None:
        super().__init__()
        config.check(dim)
        self.recency = config.positions == "recency"
        self.positions = None if config.positions == "none" else nn.Embedding(max_length, dim)
        self.norm = LayerNorm(dim) if config.norm == "post" else nn.Identity()
        self.dropout = Dropout(config.dropout)
        distinct = min(config.layers, 1) if config.share_layers else config.layers
        self.layers = nn.ModuleList(FastformerLayer(dim, config) for _ in range(distinct))
        self.passes = config.layers
        self._compiled: Any = None
        self.apply(init_weights)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """Run the layers over sequences ``[batch, length, dim]``, or joined ``[elements, dim]``.

        The output is undefined where a mask ``[batch, length]`` is False. Raises UserError if
        there are fewer positions than elements.
        """
        if isinstance(mask, Joined):
            sizes, longest = (len(mask.lengths), len(x)), max(mask.lengths.tolist(), default=0)
        else:
            sizes, longest = (x.shape[0], x.shape[1]), mask.shape[1]
        # During export the length is symbolic, and a comparison would fix it to one value.
        if self.positions is not None and not torch.compiler.is_exporting():
            self._check_length(longest, self.positions.num_embeddings)
        if self._compiled is not None and min(sizes) > 1:
            return self._compiled(x, mask)
        return self._run(x, mask)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile one kernel for all sizes; takes the arguments of ``torch.compile``.

        torch.compile would make extra kernels for sizes 0 and 1, and give up after eight. So a
        batch of one user, or of histories of one news item, runs uncompiled.
        """
        self._compiled = torch.compile(self._run, *args, **kwargs)

    def _run(self, x: Tensor, mask: Mask) -> Tensor:
        if self.positions is not None:
            x = x + self.positions(self._places(mask))
        x = self.dropout(self.norm(x))
        for number in range(self.passes):
            x = self.layers[number % len(self.layers)](x, mask)
        return x

    def _places(self, mask: Mask) -> Tensor:
        """Return the row of ``positions`` of each element, for all or only one of the sequences."""
        assert self.positions is not None
        if isinstance(mask, Joined):
            before = mask.numbers()
            later = mask.lengths[mask.owner] - 1 - before
        elif self.recency or torch.compiler.is_exporting():
            counted = mask.cumsum(dim=1)  # real elements may follow older ones that are masked
            before, later = counted - 1, mask.sum(dim=1, keepdim=True) - counted
        else:
            return torch.arange(mask.shape[1], device=mask.device)
        # The last real element gets row 0 at any length if positions count from there.
        return (later if self.recency else before).clamp(0, self.positions.num_embeddings - 1)

    @staticmethod
    def _check_length(length: int, known: int) -> None:
        if length > known:
            raise UserError(
                f"A sequence has {length} elements, but there are positions for {known}. Cut it, "
                "build the model for longer ones, or choose positions none."
            )


def init_weights(module: nn.Module) -> None:
    """Initialize as the authors' code does: weights from N(0, .02), biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
