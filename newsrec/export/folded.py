"""A user encoder in a form that runs faster where PyTorch does not run.

The vectors are the same up to rounding. The graph has fewer and cheaper nodes: the key of a click
is never computed, since only its product with a few score vectors and its weighted mean are needed,
and these follow from the click itself.
"""

import copy

import torch
from torch import Tensor, nn

from newsrec.model.fastformer import AdditiveAttention, AttentionPooling
from newsrec.model.user_encoders import UserEncoder


def folded(encoder: UserEncoder) -> UserEncoder:
    """Return a copy of a user encoder that gives the same vectors by fewer operations."""
    copied = copy.deepcopy(encoder)
    copied.joins = False  # the parts below take padded histories only
    for layer in copied.fastformer.layers:
        if isinstance(layer.attention, AdditiveAttention):
            layer.attention = FoldedAttention(layer.attention)
    if isinstance(copied.pooling, AttentionPooling):
        copied.pooling = FoldedPooling(copied.pooling)
    return copied


class FoldedAttention(nn.Module):
    """``AdditiveAttention`` without the products of its key.

    With key ``K x + b`` and global query ``g``, the scores of the key are ``S (g * (K x + b))``,
    which is ``((S * g) K) x`` plus a number that a softmax ignores; and the mean of the keys is the
    key of the mean click.
    """

    def __init__(self, attention: AdditiveAttention) -> None:
        super().__init__()
        self.attention = attention
        heads, dim = attention.heads, attention.query.out_features
        own = torch.eye(heads).repeat_interleave(dim // heads, dim=1)
        self.own = nn.Buffer(own)  # 1 where a number belongs to the head [heads, dim]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mix sequences, as ``AdditiveAttention`` does."""
        part = self.attention
        query = part.query(x)
        weights = weights_of(part.query_score(query).transpose(1, 2) * part.scale, mask)
        global_query = self._own(weights @ query)  # [batch, 1, dim]
        score = (part.key_score.weight * part.scale * global_query) @ part.key.weight
        weights = weights_of(score @ x.transpose(1, 2), mask)  # [batch, heads, length]
        global_key = self._own(part.key(weights @ x)) * global_query
        mixed: Tensor = part.transform(query * global_key) + query
        return mixed

    def _own(self, pooled: Tensor) -> Tensor:
        """Return each head's part of its own vector ``[batch, 1, dim]``."""
        return (pooled * self.own).sum(dim=1, keepdim=True)


class FoldedPooling(nn.Module):
    """``AttentionPooling``; the result is undefined where a row of the mask is all False."""

    def __init__(self, pooling: AttentionPooling) -> None:
        super().__init__()
        self.pooling = pooling

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Pool sequences ``[batch, length, dim]`` to vectors ``[batch, dim]``."""
        logits = self.pooling.logit(torch.tanh(self.pooling.hidden(x)))
        return (weights_of(logits.transpose(1, 2), mask) @ x).squeeze(1)


def weights_of(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax of ``[batch, heads, length]`` over elements; 0 where the mask is False.

    A row whose mask ``[batch, length]`` is all False gets equal weights.
    """
    lowest = torch.finfo(logits.dtype).min
    return logits.masked_fill(~mask[:, None], lowest).softmax(dim=-1)
