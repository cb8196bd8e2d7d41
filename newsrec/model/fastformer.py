"""Fastformer: additive attention in linear time (Wu et al., arXiv 2108.09084).

Knows nothing about news. Shapes use ``length`` for the sequence and ``dim`` for its elements; a
mask is True where an element is real.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from newsrec.errors import UserError


@dataclass
class FastformerConfig:
    """Shape of a Fastformer stack.

    Args:
        heads: Attention heads; must divide dim.
        layers: Layers.
        ffn: Width of the feed-forward part, or null to leave it out.
        dropout: Share of values dropped in training.
        norm: post puts a LayerNorm behind each residual sum, none leaves them out.
        positions: learned adds an embedding of the position, none leaves the order out.
    """

    heads: int = 16
    layers: int = 1
    ffn: int | None = 256
    dropout: float = 0.2
    norm: Literal["post", "none"] = "post"
    positions: Literal["learned", "none"] = "none"

    @classmethod
    def of(cls, values: "FastformerConfig | dict[str, Any]") -> "FastformerConfig":
        """Return a config from itself or from the plain dict that a checkpoint holds."""
        return values if isinstance(values, cls) else cls(**values)  # type: ignore[arg-type]


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over dimension 1, in float32 or better, exact zeros where ``mask`` is False.

    Args:
        logits: Any precision ``[batch, length, heads]``.
        mask: True where real ``[batch, length]``.

    Returns:
        Weights; all zeros in a row whose mask is all False ``[batch, length, heads]``.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits.masked_fill(~mask[..., None], torch.finfo(torch.float32).min)
    return logits.softmax(dim=1) * mask[..., None]


class AttentionPooling(nn.Module):
    """Weighted mean over a sequence, weights learned from its elements.

    Args:
        dim: Size of each element.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, dim)
        self.logit = nn.Linear(dim, 1, bias=False)  # a bias would move all logits alike

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Pool a padded sequence.

        Args:
            x: Sequence ``[batch, length, dim]``.
            mask: True where ``x`` is real ``[batch, length]``.

        Returns:
            Pooled vectors ``[batch, dim]``; zeros where a row of ``mask`` is all False.
        """
        weights = masked_softmax(self.logit(torch.tanh(self.hidden(x))), mask)
        return torch.einsum("blo,bld->bd", weights.to(x.dtype), x)


class AdditiveAttention(nn.Module):
    """Fastformer's attention: a global query, then a global key, each pooled by additive attention.

    Each head scores from the full query, values are the queries (there is no third projection), and
    the global key pools ``key * global query``, as in the authors' code.

    Args:
        dim: Size of each element.
        heads: Attention heads; must divide ``dim``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise UserError(f"heads is {heads}, which does not divide dim, {dim}.")
        self.heads = heads
        self.scale = 1 / math.sqrt(dim // heads)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        # Biases of the scores shift all positions alike: no effect, no gradient, left out.
        self.query_score = nn.Linear(dim, heads, bias=False)
        self.key_score = nn.Linear(dim, heads, bias=False)
        self.transform = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mix a padded sequence.

        Args:
            x: Sequence ``[batch, length, dim]``.
            mask: True where ``x`` is real ``[batch, length]``.

        Returns:
            Mixed sequence; of no meaning where ``mask`` is False ``[batch, length, dim]``.
        """
        query, key = self.query(x), self.key(x)
        global_query = self._pool(self.query_score(query), query, mask)  # [batch, 1, dim]
        key = key * global_query
        global_key = self._pool(self.key_score(key), key, mask)  # [batch, 1, dim]
        return self.transform(query * global_key) + query

    def _pool(self, logits: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        weights = masked_softmax(logits * self.scale, mask).to(x.dtype)  # [batch, length, heads]
        per_head = x.unflatten(-1, (self.heads, -1))  # [batch, length, heads, dim / heads]
        return torch.einsum("blh,blhe->bhe", weights, per_head).flatten(1).unsqueeze(1)


class FastformerLayer(nn.Module):
    """Additive attention and a feed-forward part, each with a residual sum.

    Args:
        dim: Size of each element.
        config: Shape of the layer.
    """

    def __init__(self, dim: int, config: FastformerConfig) -> None:
        super().__init__()
        norm = config.norm == "post"
        self.attention = AdditiveAttention(dim, config.heads)
        self.output = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=1e-12) if norm else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.ffn: nn.Sequential | None = None
        if config.ffn is not None:
            self.ffn = nn.Sequential(
                nn.Linear(dim, config.ffn), nn.GELU(), nn.Linear(config.ffn, dim)
            )
            self.ffn_norm = nn.LayerNorm(dim, eps=1e-12) if norm else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the sequence one layer up; arguments as in ``AdditiveAttention``."""
        x = self.attention_norm(self.dropout(self.output(self.attention(x, mask))) + x)
        if self.ffn is not None:
            x = self.ffn_norm(self.dropout(self.ffn(x)) + x)
        return x


class Fastformer(nn.Module):
    """A stack of Fastformer layers.

    Args:
        dim: Size of each element.
        config: Shape of the stack.
        max_length: Longest sequence; only learned positions need it.
    """

    def __init__(self, dim: int, config: FastformerConfig, max_length: int) -> None:
        super().__init__()
        learned = config.positions == "learned"
        self.positions = nn.Embedding(max_length, dim) if learned else None
        self.norm = nn.LayerNorm(dim, eps=1e-12) if config.norm == "post" else nn.Identity()
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(FastformerLayer(dim, config) for _ in range(config.layers))
        self.apply(init_weights)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Return the sequence with every element aware of the others.

        Args:
            x: Sequence ``[batch, length, dim]``.
            mask: True where ``x`` is real ``[batch, length]``.

        Returns:
            ``[batch, length, dim]``; of no meaning where ``mask`` is False.
        """
        if self.positions is not None:
            x = x + self.positions.weight[: x.shape[1]]
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x, mask)
        return x


def init_weights(module: nn.Module) -> None:
    """Initialise as the authors' code does: weights from N(0, .02), biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
