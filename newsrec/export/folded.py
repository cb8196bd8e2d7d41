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
    """``AdditiveAttention`` without the products of its key, and with fewer products of its query.

    With query ``Q x + b``, the scores of the query are ``(S Q) x`` plus a number that a softmax
    ignores. With key ``K x + b`` and global query ``g``, the scores of the key are
    ``S (g * (K x + b))``, which is ``((S * g) K) x`` plus such a number; and the mean of the keys
    is the key of the mean click, of which each head needs its own part only.
    """

    def __init__(self, attention: AdditiveAttention) -> None:
        super().__init__()
        self.attention = attention
        heads, (dim, _) = attention.heads, attention.query.weight.shape
        own = torch.eye(heads).repeat_interleave(dim // heads, dim=1)
        self.own = nn.Buffer(own)  # 1 where a number belongs to the head [heads, dim]
        with torch.no_grad():
            score = attention.query_score.weight.double() @ attention.query.weight.double()
            self.query_score = nn.Buffer((score * attention.scale).float())  # [heads, dim]
            self.key_score = nn.Buffer(attention.key_score.weight * attention.scale)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mix sequences, as ``AdditiveAttention`` does."""
        part, columns = self.attention, x.transpose(1, 2)
        query = part.query(x)
        pooled = weights_of(self.query_score @ columns, mask) @ query  # [batch, heads, dim]
        global_query = (pooled * self.own).sum(dim=1, keepdim=True)  # each head's own numbers
        score = (self.key_score * global_query) @ part.key.weight
        pooled = weights_of(score @ columns, mask) @ x
        parts = part.key.weight.unflatten(0, (len(self.own), -1))  # [heads, dim / heads, dim]
        key = (parts @ pooled.unsqueeze(3)).flatten(1) + part.key.bias  # [batch, dim]
        mixed: Tensor = part.transform(query * (key.unsqueeze(1) * global_query)) + query
        return mixed


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
