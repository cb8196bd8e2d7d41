"""Sequences of different lengths, padded to one length or joined without padding.

Most operations of a layer work on each element alone. Those that work within a sequence are here,
for both forms: softmax, weighted sums, products and means. Padded sequences come with a mask that
is True where an element is real ``[batch, length]``; joined ones with ``Joined`` in its place.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Joined(NamedTuple):
    """Where each sequence is among joined elements ``[elements, ...]``; kept on the CPU."""

    lengths: Tensor
    """Number of elements of each sequence, in their order ``[batch]``."""
    owner: Tensor
    """Sequence of each element ``[elements]``."""

    @classmethod
    def of(cls, lengths: Tensor) -> "Joined":
        """Return where sequences of some lengths ``[batch]`` are."""
        return cls(lengths, torch.arange(len(lengths)).repeat_interleave(lengths))

    def sums(self, x: Tensor) -> Tensor:
        """Return the sum of each sequence's elements ``[batch, ...]``; zeros if it has none."""
        return _sums(x, self.owner, len(self.lengths))

    def numbers(self) -> Tensor:
        """Return the number of elements before each in its sequence ``[elements]``."""
        starts = self.lengths.cumsum(0) - self.lengths
        return torch.arange(len(self.owner)) - starts[self.owner]


Mask = Tensor | Joined


def masked_softmax(logits: Tensor, mask: Mask) -> Tensor:
    """Softmax within each sequence, in float32 or better; exactly 0 where a mask is False.

    Logits and weights are ``[batch, length, heads]``, or joined ``[elements, heads]``.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if isinstance(mask, Joined):
        weights: Tensor = _Softmax.apply(logits, mask.owner, len(mask.lengths))  # type: ignore[no-untyped-call]
        return weights
    logits = logits.masked_fill(~mask[..., None], torch.finfo(torch.float32).min)
    return logits.softmax(dim=1) * mask[..., None]


def weighted_sums(weights: Tensor, x: Tensor, mask: Mask) -> Tensor:
    """Return the weighted sums of each sequence's elements, each head's part by its own weights.

    Weights are ``[batch, length, heads]`` and elements ``[batch, length, dim]``, or both joined;
    the sums are ``[batch, dim]``.
    """
    if isinstance(mask, Joined):
        sums: Tensor = _WeightedSums.apply(weights, x, mask.owner, len(mask.lengths))  # type: ignore[no-untyped-call]
        return sums
    per_head = x.unflatten(-1, (weights.shape[-1], -1))  # [batch, length, heads, dim / heads]
    return torch.einsum("blh,blhe->bhe", weights.to(x.dtype), per_head).flatten(1)


def product(x: Tensor, vectors: Tensor, mask: Mask) -> Tensor:
    """Multiply each element by the vector of its sequence ``[batch, dim]``.

    Elements and products are ``[batch, length, dim]``, or joined ``[elements, dim]``.
    """
    if isinstance(mask, Joined):
        products: Tensor = _Product.apply(x, vectors, mask.owner, len(mask.lengths))  # type: ignore[no-untyped-call]
        return products
    return x * vectors.unsqueeze(1)


def masked_mean(x: Tensor, mask: Mask) -> Tensor:
    """Return the mean of each sequence's real elements ``[batch, dim]``; zeros if it has none.

    Elements are ``[batch, length, dim]``, or joined ``[elements, dim]``.
    """
    if isinstance(mask, Joined):
        return mask.sums(x) / mask.lengths[:, None].clamp(min=1)
    # A sum, because autocast would round a matrix product with weights.
    total = x.masked_fill(~mask[..., None], 0).sum(dim=1)
    return total / mask.sum(dim=1, keepdim=True).clamp(min=1)


def last_element(x: Tensor, mask: Mask) -> Tensor:
    """Return the last real element of each sequence, which has at least one ``[batch, dim]``.

    Elements are ``[batch, length, dim]``, padded at the end, or joined ``[elements, dim]``.
    """
    if isinstance(mask, Joined):
        return x[mask.lengths.cumsum(0) - 1]
    places = mask.sum(dim=1)[:, None, None] - 1
    return x.gather(1, places.expand(-1, 1, x.shape[-1])).squeeze(1)


def _sums(x: Tensor, owner: Tensor, batch: int) -> Tensor:
    return x.new_zeros(batch, *x.shape[1:]).index_add_(0, owner, x)


# For joined sequences, autograd would keep several results that are as large as the elements. Such
# work takes as long as filling memory does, so these functions keep less and compute it again.


class _Softmax(torch.autograd.Function):
    """Softmax within joined sequences."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, owner: Tensor, batch: int) -> Tensor:
        highest = logits.new_full((batch, logits.shape[1]), -torch.inf)
        highest.scatter_reduce_(0, owner[:, None].expand(logits.shape), logits, "amax")
        weights = (logits - highest[owner]).exp_()
        weights /= _sums(weights, owner, batch)[owner]
        ctx.save_for_backward(weights, owner)
        ctx.batch = batch
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weights, owner = ctx.saved_tensors
        gradient = gradient - _sums(weights * gradient, owner, ctx.batch)[owner]
        return gradient.mul_(weights), None, None


class _WeightedSums(torch.autograd.Function):
    """Sums of joined elements, each head's part by its own weights."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, x: Tensor, owner: Tensor, batch: int) -> Tensor:
        ctx.save_for_backward(weights, x, owner)
        weighted = weights[..., None] * x.unflatten(-1, (weights.shape[-1], -1))
        return _sums(weighted.flatten(1), owner, batch).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        weights, x, owner = ctx.saved_tensors
        own = gradient.to(weights.dtype).index_select(0, owner)
        per_head = own.unflatten(-1, (weights.shape[-1], -1))  # [elements, heads, dim / heads]
        of_weights = (own * x).view(per_head.shape).sum(dim=-1)
        per_head *= weights[..., None]
        return of_weights, own.to(x.dtype), None, None


class _Product(torch.autograd.Function):
    """Products of joined elements with the vectors of their sequences."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, vectors: Tensor, owner: Tensor, batch: int) -> Tensor:
        ctx.save_for_backward(x, vectors, owner)
        return vectors.index_select(0, owner).mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, vectors, owner = ctx.saved_tensors
        of_vectors = _sums(gradient * x, owner, len(vectors))
        return vectors.index_select(0, owner).mul_(gradient), of_vectors, None, None
