"""Sequences of different lengths, padded to one length or joined without padding.

Layers over sequences treat most things element by element. The rest is here, for both forms: a
softmax, weighted sums and means within each sequence. Padded sequences come with a mask that is True
where an element is real ``[batch, length]``; joined ones with ``Joined`` in its place.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Joined(NamedTuple):
    """Where each sequence is among joined elements ``[elements, ...]``; on the CPU."""

    lengths: Tensor
    """Number of elements of each sequence, in their order ``[batch]``."""
    owner: Tensor
    """Sequence of each element ``[elements]``."""

    @classmethod
    def of(cls, lengths: Tensor) -> "Joined":
        """Return where sequences of these lengths are ``[batch]``."""
        return cls(lengths, torch.arange(len(lengths)).repeat_interleave(lengths))

    def sums(self, x: Tensor) -> Tensor:
        """Return the sum of each sequence's elements ``[batch, ...]``; zeros if it has none."""
        return x.new_zeros(len(self.lengths), *x.shape[1:]).index_add(0, self.owner, x)

    def numbers(self) -> Tensor:
        """Return the number of elements before each in its sequence ``[elements]``."""
        starts = self.lengths.cumsum(0) - self.lengths
        return torch.arange(len(self.owner)) - starts[self.owner]


Mask = Tensor | Joined


class _JoinedSoftmax(torch.autograd.Function):
    """Softmax within joined sequences, which keeps only its result for the backward pass."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, lengths: Tensor, owner: Tensor) -> Tensor:
        where = Joined(lengths, owner)
        highest = logits.new_full((len(lengths), logits.shape[1]), -torch.inf)
        highest.scatter_reduce_(0, owner[:, None].expand(logits.shape), logits, "amax")
        weights = (logits - highest[owner]).exp_()
        weights /= where.sums(weights)[owner]
        ctx.save_for_backward(weights, lengths, owner)
        return weights

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        weights, lengths, owner = ctx.saved_tensors
        own = weights * gradients[0]
        return own - weights * Joined(lengths, owner).sums(own)[owner], None, None


def masked_softmax(logits: Tensor, mask: Mask) -> Tensor:
    """Softmax within each sequence, in float32 or better; exactly 0 where a mask is False.

    Logits and weights are ``[batch, length, heads]``, or joined ``[elements, heads]``.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if isinstance(mask, Joined):
        weights: Tensor = _JoinedSoftmax.apply(logits, *mask)
        return weights
    logits = logits.masked_fill(~mask[..., None], torch.finfo(torch.float32).min)
    return logits.softmax(dim=1) * mask[..., None]


def weighted_sums(weights: Tensor, x: Tensor, mask: Mask) -> Tensor:
    """Return the weighted sums of each sequence's elements, each head's part by its own weights.

    Weights are ``[batch, length, heads]`` and elements ``[batch, length, dim]``, or both joined;
    the sums are ``[batch, dim]``.
    """
    per_head = x.unflatten(-1, (weights.shape[-1], -1))  # [batch, length, heads, dim / heads]
    if isinstance(mask, Joined):
        return mask.sums(weights[..., None] * per_head).flatten(1).to(x.dtype)
    return torch.einsum("blh,blhe->bhe", weights.to(x.dtype), per_head).flatten(1)


def masked_mean(x: Tensor, mask: Mask) -> Tensor:
    """Return the mean of each sequence's real elements ``[batch, dim]``; zeros if it has none.

    Elements are ``[batch, length, dim]``, or joined ``[elements, dim]``.
    """
    if isinstance(mask, Joined):
        return mask.sums(x) / mask.lengths[:, None].clamp(min=1)
    # A sum, because autocast would round a matrix product with weights.
    total = x.masked_fill(~mask[..., None], 0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


def spread(vectors: Tensor, mask: Mask) -> Tensor:
    """Return a sequence's vector for each of its elements, from ``[batch, dim]``.

    The result is ``[batch, 1, dim]``, or joined ``[elements, dim]``.
    """
    if isinstance(mask, Joined):
        return vectors.index_select(0, mask.owner)
    return vectors.unsqueeze(1)
